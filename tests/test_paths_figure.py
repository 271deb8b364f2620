"""The mean of step functions, and its picture."""

import numpy as np
import pandas as pd
import pytest

from steerlib.figures import mean_path, plot_alpha_path

SEGMENTS = pd.DataFrame(
    [("p", 0, 0.0, 0.5, 1.0), ("p", 0, 0.5, 2.0, 3.0), ("q", 0, 0.0, 1.0, 0.0), ("q", 0, 1.0, 2.0, 8.0)],
    columns=["prompt_id", "seed", "alpha_low", "alpha_high", "length"],
)


def test_the_mean_of_two_paths_changes_where_either_does():
    found = mean_path(SEGMENTS, ["length"])
    assert found.to_numpy().tolist() == [[0.0, 0.5, 0.5], [0.5, 1.0, 1.5], [1.0, 2.0, 5.5]]


def test_the_mean_at_any_alpha_is_that_of_the_answers_segments():
    means = mean_path(SEGMENTS, ["length"])
    for alpha in np.random.default_rng(0).uniform(0, 2, 20):
        alone = SEGMENTS[(SEGMENTS.alpha_low <= alpha) & (alpha < SEGMENTS.alpha_high)].length.mean()
        inside = means[(means.alpha_low <= alpha) & (alpha < means.alpha_high)]
        assert inside.length.tolist() == [alone]


def test_paths_of_different_ranges_have_no_mean():
    short = SEGMENTS[SEGMENTS.alpha_high < 2]
    with pytest.raises(ValueError, match=r"different ranges of alpha: \[\(0.0, 0.5\), \(0.0, 1.0\)\]"):
        mean_path(short, ["length"])
    with pytest.raises(ValueError, match="no segments"):
        mean_path(SEGMENTS.head(0), ["length"])


def test_the_picture_has_a_panel_a_measure_with_answers_mean_and_grid():
    grid = pd.DataFrame({"alpha": [0.0, 1.0], "length": [0.5, 5.5]})
    fig = plot_alpha_path(SEGMENTS, grid, {"length": "words"}, method="sda")
    (axis,) = fig.axes
    assert len(axis.patches) == 3
    assert axis.lines[0].get_xydata().tolist() == [[0.0, 0.5], [1.0, 5.5]]
    assert axis.get_xlabel().startswith("k of SDA, continuous\n2 prompts (thin) with 4 answers")
    assert len(plot_alpha_path(SEGMENTS, grid.head(0), {"length": "words"}, method="caa").axes[0].lines) == 0
