"""Figures are drawn, saved the same twice, and never let a model's text act."""

import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from steerlib import figures
from steerlib.decoding import RULES
from steerlib.figures import Grid, Picture, Section
from steerlib.figures.style import label
from steerlib.tables import ATTRIBUTE_COLUMNS, SCHEMA, write_manifest

pytestmark = pytest.mark.filterwarnings("error")

ATTACK = '<script>alert("x")</script><img src="https://example.org/x.png" onerror=1>'
SETTINGS = [
    ("base", 0.0, "none", "", "base"),
    ("prompt_only", 0.0, "own", "", "prompt_only"),
    *[("anti_expert", alpha, "own", "", "") for alpha in (0.5, 1.0)],
    ("anti_expert", 1.0, "shuffled", "", "shuffled_profile"),
    ("expert_anti_expert", 1.0, "own", "", ""),
    ("caa", 2.0, "none", "population", ""),
    ("caa", 2.0, "none", "random", "random_vector"),
]


@pytest.fixture
def arms() -> pd.DataFrame:
    rows = [
        dict.fromkeys(SCHEMA["arms"].columns, "")
        | {"arm_id": f"{method}-{profile}{family}-{alpha:g}", "method": method, "alpha": alpha}
        | {"profile": profile, "family": family, "control": control}
        for method, alpha, profile, family, control in SETTINGS
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def metrics(arms: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {"arm_id": arm_id, "comparator": comparator, "split": split, "subgroup": "all", "scorer": "s"}
        | {"metric": metric, "value": value, "low": value - 1, "high": value + 2, "n": 12, "n_clusters": 4}
        for metric, comparator, value in (("reduction_percent", "base", 5.0), ("perplexity", "", 8.0))
        for split in ("dev", "test")
        for arm_id in arms["arm_id"]
        if not (comparator and arm_id.startswith("base"))
    ]
    return pd.DataFrame(rows)[list(SCHEMA["metrics"].columns)]


@pytest.fixture
def prompts() -> pd.DataFrame:
    asked = {"prompt_id": ["p0", "p1"], "user_id": ["u0", "u1"], "split": "test", "prompt": ["Why?", ATTACK]}
    return pd.DataFrame(asked)


@pytest.fixture
def generations(arms: pd.DataFrame) -> pd.DataFrame:
    """Every steered answer to p0 differs from the base's, none to p1; the dose is 2 nats over 4 tokens."""
    rows = [
        {"arm_id": arm_id, "prompt_id": prompt, "seed": 0, "n_tokens": 4, "kl_to_base": 2.0}
        | {"text": ATTACK if prompt == "p0" and not arm_id.startswith("base") else "As the base."}
        for arm_id in arms["arm_id"]
        for prompt in ("p0", "p1")
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def profiles() -> pd.DataFrame:
    rows = [
        (f"u{user}", attribute, "paper", 0.1 * user, (user + 0.5) / 4, place == user)
        for user in range(4)
        for place, attribute in enumerate(ATTRIBUTE_COLUMNS)
    ]
    return pd.DataFrame(rows, columns=list(SCHEMA["profiles"].columns))


def drawn(fig: Figure) -> bool:
    fig.canvas.draw()
    return bool(fig.axes) and not plt.get_fignums()


def test_every_method_of_a_steering_rule_has_a_colour_of_its_own_and_a_label() -> None:
    assert set(ATTRIBUTE_COLUMNS) <= set(figures.LABEL)
    assert len({rule.colour for rule in RULES.values()}) == len(RULES)
    assert label("sda") == RULES["sda"].label == "SDA"


def test_pictures_of_profiles_are_drawn_without_warnings(profiles: pd.DataFrame) -> None:
    assert drawn(figures.plot_profiles(profiles))
    assert drawn(figures.plot_radar(profiles, ["u0", "u3"]))
    assert drawn(figures.plot_primary_categories(profiles))


def test_profiles_of_two_estimators_are_not_mixed(profiles: pd.DataFrame) -> None:
    both = pd.concat([profiles, profiles.assign(estimator="shrunk")])
    with pytest.raises(ValueError, match="choose one estimator; the profiles have paper, shrunk"):
        figures.plot_profiles(both)


def test_pictures_of_vectors_are_drawn_without_warnings() -> None:
    described = pd.DataFrame(
        {"layer": [15, 16], "relative_norm": [0.1, 0.2], "split_half_cosine": [0.9, -0.1]}
    )
    assert drawn(figures.plot_layers(described))
    cosines = figures.cosines_between_layers({15: torch.tensor([1.0, 0.0]), 16: torch.tensor([3.0, 4.0])})
    np.testing.assert_allclose(cosines.to_numpy(), [[1, 0.6], [0.6, 1]])
    assert drawn(figures.plot_cosines(cosines))


def test_a_projection_is_the_length_along_the_vector_and_its_auc_counts_pairs() -> None:
    vector = torch.tensor([0.0, 2.0])
    projected = figures.projections(
        torch.tensor([[9.0, 1.0], [9.0, 3.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]]), vector
    )
    assert projected["projection"].tolist() == [1, 3, 1, 2]
    assert figures.auc(projected) == (0.5 + 0 + 1 + 1) / 4
    assert drawn(figures.plot_projection(projected, layer=15))


def test_moved_answers_are_counted_against_the_base_of_the_same_prompt(
    generations: pd.DataFrame, arms: pd.DataFrame, prompts: pd.DataFrame
) -> None:
    moved = figures.answers_moved(generations, arms, prompts).set_index(["metric", "arm_id"])
    changed = moved.loc["changed_percent"].loc["caa-nonerandom-2"]
    assert 0 < changed["low"] < changed["value"] == 50 < changed["high"] < 100
    assert (changed["n"], changed["n_clusters"]) == (2, 2)
    assert moved.loc["kl_per_token", "value"].unique().tolist() == [0.5]
    assert drawn(figures.plot_changed_answers(moved.reset_index()))
    assert drawn(figures.plot_dose(moved.reset_index()))


def test_moved_answers_need_one_base_arm(
    generations: pd.DataFrame, arms: pd.DataFrame, prompts: pd.DataFrame
) -> None:
    with pytest.raises(ValueError, match="exactly one base arm, not 0"):
        figures.answers_moved(generations[generations["arm_id"] != "base-none-0"], arms, prompts)


def test_responses_are_drawn_without_warnings_with_and_without_intervals(
    metrics: pd.DataFrame, arms: pd.DataFrame
) -> None:
    reduction = figures.points(metrics, arms, "reduction_percent")
    cost = figures.points(metrics, arms, "perplexity")
    assert drawn(figures.plot_dose_response(reduction))
    assert drawn(figures.plot_dose_response(reduction.assign(low=np.nan, high=np.nan)))
    assert drawn(figures.plot_against_alpha(cost, ylabel="perplexity"))
    assert drawn(figures.plot_tradeoff(reduction, cost, xlabel="perplexity"))
    test = reduction[reduction["split"] == "test"]
    fig = figures.plot_effects(test, xlabel="reduction (%)")
    assert drawn(fig)
    assert len(fig.axes[0].get_yticks()) == len(test)
    interactive = figures.interactive_dose_response(reduction)
    assert [tuple(trace.x) for trace in interactive.data][:2] == [(0.5, 1.0), (0.5, 1.0)]


def test_placebos_are_told_from_steered_arms(metrics: pd.DataFrame, arms: pd.DataFrame) -> None:
    reduction = figures.points(metrics, arms, "reduction_percent", split="test")
    assert sorted(reduction.loc[figures.is_control(reduction), "arm_id"]) == [
        "anti_expert-shuffled-1",
        "caa-nonerandom-2",
    ]
    assert figures.counts(reduction) == "test: n = 12 in 4 clusters"
    table = figures.headline(reduction)
    assert table.loc[table["control"] == "placebo", "arm"].tolist() == [
        "Anti-Expert, shuffled profile",
        "CAA, random vector",
    ]


def test_vectors_and_variants_of_one_method_are_told_apart_and_stay_at_their_alpha() -> None:
    families = [
        ("population", "", ""),
        ("random", "", "random_vector"),
        ("own_way", "own", ""),
        ("own_way", "shuffled", "shuffled_profile"),
        ("population", "", ""),
    ]
    rows = [
        {
            "arm_id": f"{kind}{alpha}",
            "method": "caa",
            "alpha": alpha,
            "family": family,
            "vector_user": whose,
            "control": control,
            "split": "test",
        }
        | {"profile": whose or "none", "variant": "gated" * (kind == 4)}
        | {"value": 1.0, "low": 0.0, "high": 2.0, "n": 4, "n_clusters": 4}
        for kind, (family, whose, control) in enumerate(families)
        for alpha in (0.5, 0.6)
    ]
    axis = figures.plot_dose_response(pd.DataFrame(rows)).axes[0]
    curves = {bars.get_label(): bars.lines[0] for bars in axis.containers}
    marker = {name: line.get_marker() for name, line in curves.items()}
    assert marker["population vector, test"] == marker["random vector, test"]
    assert marker["own own way vector, test"] == marker["another user's own way vector, test"]
    assert len(set(marker.values())) == 3
    assert all(line.get_xdata()[0] - 0.5 <= 0.05 for line in curves.values())


def test_a_reduction_of_toxicity_is_not_called_one_of_the_distance(
    metrics: pd.DataFrame, arms: pd.DataFrame
) -> None:
    cost = figures.points(metrics, arms, "perplexity")
    for metric, name in (
        ("reduction_percent", "toxicity distance"),
        ("toxicity_reduction_percent", "toxicity"),
    ):
        renamed = metrics.replace({"metric": {"reduction_percent": metric}})
        reduction = figures.points(renamed, arms, metric)
        drawn_ones = [
            figures.plot_dose_response(reduction),
            figures.plot_tradeoff(reduction, cost, xlabel="x"),
        ]
        assert {fig.axes[0].get_ylabel() for fig in drawn_ones} == {
            f"reduction of {name} (%),\n95 % interval"
        }
        interactive = figures.interactive_dose_response(reduction)
        assert interactive.layout.yaxis.title.text == f"reduction of {name} (%)"


def test_a_legend_above_the_panels_stays_inside_the_figure(metrics: pd.DataFrame, arms: pd.DataFrame) -> None:
    level = arms[arms["method"] == "base"].assign(method="instructed", profile="own", control="instructed")
    levels = [level.assign(arm_id=str(n), variant="temperature by divergence" * n) for n in (0, 1)]
    told = [metrics[metrics["arm_id"] == "base-none-0"].assign(arm_id=str(n)) for n in (0, 1)]
    cost = figures.points(pd.concat([metrics, *told]), pd.concat([arms, *levels]), "perplexity")
    with plt.rc_context():
        figures.use_style()
        fig = figures.plot_against_alpha(cost, ylabel="perplexity", zero="Base (no change)")
        assert drawn(fig)
        box = fig.legends[0].get_window_extent()
        dashes = {str(line.get_linestyle()) + str(line._dash_pattern) for line in fig.legends[0].get_lines()}
    assert len(dashes) >= 3, "the base and two variants of one method are told apart by their dashes"
    assert box.x0 >= 0
    assert box.x1 <= fig.bbox.width


def test_a_choice_that_is_missing_is_asked_for(metrics: pd.DataFrame, arms: pd.DataFrame) -> None:
    with pytest.raises(KeyError, match="the metrics are perplexity, reduction_percent"):
        figures.points(metrics, arms, "win_rate")
    two = pd.concat([metrics, metrics.assign(scorer="t")])
    with pytest.raises(ValueError, match="several values on a split; choose one scorer"):
        figures.points(two, arms, "perplexity")
    with pytest.raises(ValueError, match="are not in the arms table"):
        figures.points(metrics, arms[arms["method"] != "caa"], "perplexity")


def test_a_method_without_a_colour_is_named(metrics: pd.DataFrame, arms: pd.DataFrame) -> None:
    odd = figures.points(metrics, arms, "perplexity").replace({"method": {"caa": "other"}})
    with pytest.raises(ValueError, match="method 'other' is none of"):
        figures.plot_against_alpha(odd, ylabel="perplexity")


def test_a_figure_saved_twice_has_the_same_bytes(
    tmp_path: Path, metrics: pd.DataFrame, arms: pd.DataFrame
) -> None:
    reduction = figures.points(metrics, arms, "reduction_percent")
    first, second = (
        {
            path.name: path.read_bytes()
            for folder in [tmp_path / turn]
            for _ in [figures.save(figures.plot_dose_response(reduction), "dose", folder, data=reduction)]
            for path in sorted((folder / "figures").iterdir())
        }
        for turn in ("first", "second")
    )
    assert list(first) == ["dose.csv", "dose.png", "dose.svg"]
    assert first == second


def test_a_figure_is_not_saved_outside_its_folder_or_without_its_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        figures.save(Figure(), "../dose", tmp_path, data=pd.DataFrame({"x": [1]}))
    with pytest.raises(ValueError, match="no data"):
        figures.save(Figure(), "dose", tmp_path, data=pd.DataFrame())


class Page(HTMLParser):
    """Tags of a page and every address in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")
        ]
        assert not [name for name, _ in attrs if name.startswith("on")]


def test_examples_escape_what_a_model_or_a_person_wrote(
    generations: pd.DataFrame, arms: pd.DataFrame, prompts: pd.DataFrame
) -> None:
    shown = figures.examples_html(generations, arms[arms["method"].isin(["base", "caa"])], prompts, n=2).data
    page = Page(shown)
    assert set(page.tags) == {"table", "tr", "th", "td"}
    assert "&lt;script&gt;" in shown
    assert page.tags.count("tr") == 3
    assert "CAA, random vector, alpha 2" in shown


def test_examples_say_when_no_prompt_was_answered_by_all(
    generations: pd.DataFrame, arms: pd.DataFrame, prompts: pd.DataFrame
) -> None:
    with pytest.raises(ValueError, match="answered by all 8 arms"):
        figures.examples_html(generations[generations["arm_id"] != "base-none-0"], arms, prompts)


def test_the_report_holds_everything_loads_nothing_and_escapes_what_comes_from_data(
    tmp_path: Path,
    generations: pd.DataFrame,
    arms: pd.DataFrame,
    prompts: pd.DataFrame,
    profiles: pd.DataFrame,
) -> None:
    figures.save(figures.plot_primary_categories(profiles), "primary", tmp_path, data=profiles)
    write_manifest(tmp_path, "01_user_profiles", {"model": ATTACK}, seconds=1.5)
    examples = figures.examples_html(generations, arms, prompts)
    frame = pd.DataFrame({ATTACK: [ATTACK], "value": [1.23456], "low": [np.nan]})
    path = figures.write_report(
        tmp_path,
        title=ATTACK,
        facts={"Model": "SmolLM2-135M-Instruct (Q4_1, dequantised)", ATTACK: ATTACK},
        synthetic=["The ratings are a demo. " + ATTACK],
        sections=[
            Section(ATTACK, [ATTACK, Grid(frame, ATTACK, ATTACK), Picture("primary", ATTACK), examples])
        ],
    )
    text = path.read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert page.tags.count("img") == 1
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"url\(|@import", text)
    for stated in ("SYNTHETIC", "dequantised", "1.235", "01_user_profiles", "1.5", "\u2013"):
        assert stated in text
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


def test_a_report_with_a_figure_that_was_not_saved_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(FileNotFoundError, match=r"'dose' is not in .*: save it first"):
        figures.write_report(tmp_path, title="t", facts={}, sections=[Section("s", [Picture("dose", "c")])])
    with pytest.raises(TypeError, match="not int"):
        figures.write_report(tmp_path, title="t", facts={}, sections=[Section("s", [3])])  # ty: ignore
    assert (tmp_path / "report.html").read_text() == "old"


def test_published_reductions_of_the_caa_study_follow_from_its_errors() -> None:
    table = figures.published()
    caa = table[table["system"] == "CAA on PRISM"].set_index(["metric", "setting"])["value"]
    for setting, reduction in caa["reduction of toxicity distance"].items():
        error = caa["toxicity MAE"]
        base = error[f"base, {str(setting).split(', ')[1]}"]
        assert reduction == pytest.approx(100 * (base - error[setting]) / base, abs=0.006)
    assert (table[["caveat", "source"]] != "").all(axis=None)


def test_our_numbers_stand_below_the_published_of_the_same_system_and_metric() -> None:
    ours = {"system": "STEER-Away", "setting": "ours", "metric": "perplexity", "value": 9.0, "unit": ""}
    both = figures.beside_published(pd.DataFrame([ours]))
    assert both["whose"].tolist() == ["published"] * 4 + ["ours"]
    assert set(both["metric"]) == {"perplexity"}
    with pytest.raises(ValueError, match="metric 'charm' is not among the published"):
        figures.beside_published(pd.DataFrame([ours | {"metric": "charm"}]))
