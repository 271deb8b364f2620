"""Pictures of selectivity and preference: what they say is what the tables hold."""

import numpy as np
import pandas as pd
import pytest
from test_preference import preference

from steerlib import figures
from steerlib.evaluation import compare_preferences

pytestmark = pytest.mark.filterwarnings("error")

ARMS = pd.DataFrame(
    [
        ("base", "base", 0.0, "none", "", "", "base"),
        ("a", "caa", 7.5, "own", "composed", "own", ""),
        ("b", "caa", 0.5, "none", "random", "", "random_vector"),
    ],
    columns=["arm_id", "method", "alpha", "profile", "family", "vector_user", "control"],
).assign(variant="")


def words(fig):
    """All that stands in a figure, one string a text."""
    fig.canvas.draw()
    return [text.get_text() for text in fig.findobj(lambda one: hasattr(one, "get_text")) if text.get_text()]


def selectivity_table():
    rows = [
        (arm, category, 0.02, 0.02, change, change - 4, change + 6, 12, 5, "cluster-t")
        for arm, change in (("a", -12.5), ("b", 3.0))
        for category in ("safe_sensitive", "benign_control")
    ]
    columns = [
        "arm_id",
        "prompt_category",
        "base",
        "steered",
        "change_percent",
        "low",
        "high",
        "n",
        "n_clusters",
        "how",
    ]
    return pd.DataFrame(rows, columns=columns)


def test_each_cell_of_the_heat_map_holds_its_change_and_interval():
    texts = words(figures.plot_selectivity(selectivity_table(), ARMS))
    assert texts.count("-12.5\n[-16.5, -6.5]") == 2
    assert texts.count("+3.0\n[-1.0, +9.0]") == 2
    assert "benign control\nbase 0.0200; 12 prompts, 5 users" in texts
    assert "CAA, own composed\nvector\nalpha 7.5" in texts


def test_the_heat_map_of_toxicity_does_not_speak_of_a_distance():
    for measure, name in (("distance", "toxicity distance"), ("toxicity", "toxicity")):
        *_, bar = figures.plot_selectivity(selectivity_table(), ARMS, measure=measure).axes
        assert bar.get_ylabel().startswith(f"change of {name} (%)")


def test_cells_without_interval_or_base_say_so():
    table = selectivity_table()
    table.loc[0, ["low", "high"]] = np.nan
    table.loc[1, ["change_percent", "low", "high"]] = np.nan
    texts = words(figures.plot_selectivity(table, ARMS))
    assert "-12.5\nno interval" in texts
    assert "base is 0" in texts
    with pytest.raises(ValueError, match="arm 'a' is not in the arms table"):
        figures.plot_selectivity(table, ARMS.head(1))
    with pytest.raises(ValueError, match="no category and arm"):
        figures.plot_selectivity(table.head(0), ARMS)


COLUMNS = ["arm_id", "method", "alpha", "profile", "family", "vector_user", "control", "value"]


def dose_points(arms=4, value=0.02):
    rows = [("base", "base", 0.0, "none", "", "", "base", value)]
    rows += [
        (f"{v}{p}{i}", "caa", i / 2, p, v, "" if p == "none" else p, c, value * (1 + 0.1 * i))
        for i in range(1, arms)
        for v, p, c in (
            ("population", "none", ""),
            ("composed", "own", ""),
            ("composed", "shuffled", "shuffled_profile"),
            ("random", "none", "random_vector"),
        )
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(
        variant="", split="test", low=table["value"] * 0.9, high=table["value"] * 1.1, n=9, n_clusters=3
    )


def test_distance_and_perplexity_stand_on_axes_of_their_own_shared_by_all_panels():
    fig = figures.plot_dose_and_fluency(dose_points(), dose_points(value=4.3))
    shown = [axis for axis in fig.axes if axis.get_visible()]
    assert len(shown) == 8  # four curves, two axes each
    limits = {axis.get_ylim() for axis in shown}
    assert len(limits) == 2
    (left, right) = sorted(limits)
    assert left[1] < 0.1
    assert right[0] > 1
    with pytest.raises(ValueError, match="both a distance and a perplexity"):
        figures.plot_dose_and_fluency(dose_points(arms=2), dose_points(arms=2))


def test_the_preference_plot_notes_ties_gains_and_published_numbers():
    compared = compare_preferences(preference(), reference="population", tie={"safety": 0.01})
    fig = figures.plot_preference(compared, names={"safety": "six scores"}, published={"personal": 59.9})
    texts = words(fig)
    assert "six scores" in texts
    assert any(text.startswith("ties 100.0 %") and text.endswith("points over population") for text in texts)
    assert "published, no interval" in texts
    assert any("200 pairs of 40 users" in text for text in texts)
    assert "published, no interval" not in words(figures.plot_preference(compared))
    with pytest.raises(ValueError, match="no model to show"):
        figures.plot_preference(compared.head(0))


def test_the_published_sweep_has_each_alpha_on_one_gpu_alone():
    sweep = figures.published_caa_sweep().dropna(subset="alpha")
    assert sweep.groupby("alpha")["gpu"].nunique().max() == 1


def test_the_published_selectivity_is_in_the_table_of_published_numbers():
    table = figures.published()
    rows = table[table["metric"] == "change of toxicity MAE by category"].set_index("setting")["value"]
    assert len(rows) == 12
    assert rows["safe_sensitive, alpha 17.5"] == rows.min() == -19.6
    assert figures.published_caa_selectivity()["change_percent"].tolist() == rows.tolist()
