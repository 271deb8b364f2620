"""Figures show what the tables hold, within its range, with their controls, and are saved the same twice."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from steerlib import figures as fg
from steerlib.decoding.sampling import Sampling
from steerlib.rules import RULES, Rule
from steerlib.tables import ATTRIBUTE_COLUMNS, SCHEMA, write_manifest

pytestmark = pytest.mark.filterwarnings("error")


def words(fig: Figure) -> list[str]:
    """All that stands in a figure, one string a text."""
    fig.canvas.draw()
    assert not plt.get_fignums()
    return [text.get_text() for text in fig.findobj(lambda one: hasattr(one, "get_text")) if text.get_text()]


def caption(fig: Figure) -> str:
    return " ".join(fig.get_supxlabel().split())


def test_points_are_of_test_prompts_with_what_sets_arms_apart(metrics, arms):
    found = fg.points(metrics, arms, "toxicity")
    assert set(found["split"]) == {"test"}
    assert len(found) == len(arms)
    with pytest.raises(KeyError, match="win_rate"):
        fg.points(metrics, arms, "win_rate")
    with pytest.raises(ValueError, match="one-to-one"):
        fg.points(pd.concat([metrics, metrics.assign(scorer="scorer2")]), arms, "toxicity")
    with pytest.raises(ValueError, match="'arm0'"):
        fg.points(metrics, arms[arms["method"] != "base"], "toxicity")


def against_kl(metrics, arms, ratios=()) -> Figure:
    """The figure of these arms, whose KL per token is 1, 2, 3, ... tenths in the order of the arms table."""
    kl = fg.points(metrics, arms, "toxicity").assign(metric="kl_per_token")
    kl["value"] = kl["arm_id"].map({arm: 0.1 * place for place, arm in enumerate(arms["arm_id"], 1)})
    names = ("toxicity_difference", "perplexity_ratio")
    difference, ratio = (fg.points(metrics, arms, name, comparator="arm0") for name in names)
    for arm, value in ratios:
        ratio.loc[ratio["arm_id"] == arm, "value"] = value
    return fg.plot_against_kl(difference, kl, ratio, max_perplexity_ratio=2.0)


def test_toxicity_stands_against_kl_with_a_line_a_method_even_ones_own_and_controls_open(
    metrics, arms, monkeypatch
):
    mine = Rule("mine", ("anti",), lambda z, alpha: z["anti"], "My rule", "#123456", symbol="m")  # noqa: ARG005
    monkeypatch.setitem(RULES, "mine", mine)
    fig = against_kl(metrics, arms.replace({"method": {"sda": "mine"}}))
    axis = fig.axes[0]
    assert axis.get_xscale() == "log"
    lines = {text.get_text() for text in axis.get_legend().get_texts()}
    assert {"Expert-Anti-Expert, own profile", "CAA, random vector", "Prompt only, own profile"} <= lines
    assert {"My rule, own profile", "CAA, another user's dislike weighted vector"} <= lines
    of_mine = [line for line in axis.lines if line.get_color() == "#123456"]
    own = next(line for line in of_mine if len(line.get_xdata()) == 2)
    assert list(own.get_xdata()) == pytest.approx([0.7, 0.8])
    faces = {line.get_label(): line.get_markerfacecolor() for line in axis.lines}
    assert faces["CAA, random vector"] == faces["Expert-Anti-Expert, shuffled profile"] == "white"
    assert faces["CAA, population vector"] == RULES["caa"].colour
    assert words(fig).count("0.5") == 1  # the alpha of a mark


def test_arms_above_the_limit_of_perplexity_are_faded_and_not_in_the_caption(metrics, arms):
    assert "Faded: 13 above" in caption(against_kl(metrics, arms))
    told = caption(against_kl(metrics, arms, [("arm3", 1.5), ("arm4", 2.0)]))
    assert "own profile, alpha 0.5 has the lowest toxicity: change -0.20 [-0.50, -0.10] at 0.4 nats" in told
    assert told.endswith("Faded: 11 above this limit.")


def test_the_verdict_is_drawn_minus_base_control_and_shuffled_profile_each_once():
    arms = pd.DataFrame({"control": ["", "random_vector", "shuffled_profile", "base"], "method": "caa"})
    arms = arms.assign(arm_id=["arm0", "arm1", "arm2", "arm3"], alpha=0.5)
    arms = arms.reindex(columns=SCHEMA["arms"].columns, fill_value="")
    row = dict.fromkeys(SCHEMA["verdict"].columns, 0.25)
    row |= {"arm_id": "arm0", "control_kl": 0.5, "shuffled_kl": 0.125}
    verdict = pd.DataFrame([row, row]).assign(control_arm=["arm1", "arm2"], difference=[-0.5, -0.75])
    verdict.loc[1, "change"] = float("nan")
    drawn = fg.verdict_effects(verdict, arms)
    assert drawn["name"].tolist() == [
        "CAA, alpha 0.5: minus base",
        "minus random vector (KL 0.25, 0.50)",
        "minus shuffled profile (KL 0.25, 0.12)",
        "minus shuffled profile (KL 0.25, 0.50)",
    ]
    assert drawn["value"].tolist() == [0.25, -0.5, 0.25, -0.75]
    assert drawn["control"].astype(bool).tolist() == [False, True, True, True]
    alone = verdict.tail(1).assign(control_arm="arm3", change=0.5, own_minus_shuffled=float("nan"))
    assert fg.verdict_effects(alone, arms)["value"].tolist() == [0.5]  # there is no control but the base
    assert fg.verdict_effects(verdict.head(0), arms).empty


def test_a_forest_names_the_intervals_that_exclude_its_null(metrics, arms):
    rows = fg.points(metrics, arms, "toxicity_difference", comparator="arm0")
    rows.loc[rows["method"] == "sda", "high"] = 0.5
    fig = fg.plot_forest(rows, what="test prompts")
    assert len(fig.axes[0].get_yticks()) == len(rows)
    assert "CAA, population vector, alpha 0.3;" in caption(fig)
    assert "SDA" not in caption(fig)
    assert "random" in caption(fig), "a control whose interval excludes 0 is named too"


def test_the_effect_has_curves_of_vectors_marks_of_other_rules_and_the_operating_range(metrics, arms):
    panels = {"toxicity": "", "perplexity_ratio": "arm0"}
    rows = [fg.points(metrics, arms, name, comparator=other) for name, other in panels.items()]
    rows = pd.concat(rows, ignore_index=True)
    rows["name"] = [fg.arm_name(row, method=False) for _, row in rows.iterrows()]
    fig = fg.plot_effect(rows, operating=(-0.3, 0.0))
    texts = words(fig)
    toxic, _, ratio, beside = fig.axes
    assert [tick.get_text() for tick in beside.get_xticklabels()][:3] == ["Prompt only", "EAE 0.5", "EAE 1"]
    assert {"population vector", "random vector", "Base"} <= set(texts)
    assert ratio.get_yscale() == "log"
    assert [one.get_x() for one in toxic.patches] == [-0.3]
    curve = next(line for line in toxic.lines if len(line.get_xdata()) == 3)
    assert list(curve.get_xdata()) == [-0.3, 0, 0.3]
    assert "alpha -0.3 to 0. Toxicity there: population vector 0.10 [0.00, 0.20] at alpha -0.3" in caption(
        fig
    )


def test_a_path_has_a_step_line_a_prompt_and_counts_its_breakpoints():
    rows = [("p", 0.0, 0.5, 1.0), ("p", 0.5, 2.0, 3.0), ("q", 0.0, 2.0, 0.0)]
    segments = pd.DataFrame(rows, columns=["prompt", "alpha_low", "alpha_high", "words"])
    fig = fg.plot_alpha_path(segments, {"words": "length (words)"}, method="sda")
    assert [list(patch.get_data().edges) for patch in fig.axes[0].patches] == [[0, 0.5, 2], [0, 2]]
    assert fig.axes[0].get_xlabel() == "k of SDA, continuous"
    assert fig.get_supxlabel().startswith("3 answers with 1 exact breakpoints")


def test_profiles_stand_beside_how_far_they_repeat():
    six = list(ATTRIBUTE_COLUMNS)
    users = [pd.DataFrame({"user_id": f"u{i}", "attribute": six, "percentile": i / 4}) for i in range(4)]
    profiles = pd.concat(users).assign(estimator="paper")
    profiles["primary"] = profiles["user_id"].str[1:].astype(int) == profiles["attribute"].map(six.index)
    agreement = pd.DataFrame([{"agreement": 0.21, "low": 0.1, "high": 0.34, "chance": 0.19}])
    fig = fg.plot_profiles(profiles, agreement)
    assert "not distinguishably more often than by chance (19%)" in caption(fig)
    assert "Threat\n(0)" in words(fig)
    with pytest.raises(ValueError, match="paper, shrunk"):
        fg.plot_profiles(pd.concat([profiles, profiles.assign(estimator="shrunk")]), agreement)


def test_held_out_answers_are_drawn_by_what_the_vector_separates():
    sides = ["preferred"] * 2 + ["dispreferred"] * 2
    projected = pd.DataFrame({"side": sides, "projection": [1.0, 3.0, 1.0, 2.0]})
    fig = fg.plot_projection(projected, layer=15)
    assert f"probability {(0.5 + 0 + 1 + 1) / 4:.2f}" in caption(fig)


def test_sdas_temperature_is_that_of_the_runs_sampling():
    scores, divergences = [80.0, 90.0], [0.01, 0.01, 0.3]
    sampling = Sampling(temperature=0.7, js_sigma=0.01, min_temperature=0.2)
    fig = fg.plot_sda(scores, divergences, function="sigmoid", sampling=sampling)
    falling = fig.axes[1].lines[0].get_ydata()
    assert falling[0] == pytest.approx(0.7, abs=0.01)
    assert falling[-1] == 0.2
    assert "the temperature is 0.35; it starts at 0.7." in caption(fig)
    level = fg.plot_sda(scores, divergences, function="sigmoid", sampling=Sampling(temperature=0.5))
    assert set(level.axes[1].lines[0].get_ydata()) == {0.5}


def test_published_reductions_of_the_caa_study_follow_from_its_errors():
    table = fg.published()
    caa = table[table["system"] == "CAA on PRISM"].set_index(["metric", "setting"])["value"]
    for setting, reduction in caa["reduction of toxicity distance"].items():
        error = caa["toxicity MAE"]
        base = error[f"base, {str(setting).split(', ')[1]}"]
        assert reduction == pytest.approx(100 * (base - error[setting]) / base, abs=0.006)
    assert (table[["caveat", "source"]] != "").all(axis=None)


def test_the_printed_means_of_sdas_table_are_those_of_its_models():
    table = fg.published_margins().query("comparison == 'SDA vs base'")
    own = table.groupby(["rows", "set", "dimension"], sort=False).value.mean()
    assert own["full"].tolist() == pytest.approx([81.7, 40.7, 37.7, 13.1, 46.8, 9.8, 28.4], abs=0.06)
    assert own["refined"].tolist() == pytest.approx([88.3, 40.4, 51.6, 12.0, 57.6, 9.1, 30.0], abs=0.06)


def test_a_figure_saved_twice_has_the_same_bytes_says_its_run_and_needs_its_data(tmp_path, metrics, arms):
    points, written = fg.points(metrics, arms, "toxicity"), []
    for turn in ("first", "second"):
        folder = tmp_path / turn / "quick"
        folder.mkdir(parents=True)
        write_manifest(folder, "02_steering_vectors", {"model": "a model"}, seconds=1)
        fig = fg.plot_forest(points, what="test prompts")
        shown = fg.save(fig, "dose", folder, data=points)
        assert fig.get_suptitle().endswith("test prompts\na model · n = 12 of 4 users · run quick")
        written.append({path.name: path.read_bytes() for path in sorted((folder / "figures").iterdir())})
        assert shown.data == written[-1]["dose.png"]
    assert list(written[0]) == ["dose.csv", "dose.png", "dose.svg"]
    assert written[0] == written[1]
    with Image.open(folder / "figures" / "dose.png") as image:
        assert image.info["Description"] == fig.get_supxlabel()
    with pytest.raises(ValueError, match="'dose'"):
        fg.save(Figure(), "dose", tmp_path, data=pd.DataFrame())
