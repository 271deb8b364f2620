"""The alpha path drawn: what every alpha gives, as step functions with exact breakpoints, the grid's points on it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlib.figures.style import COLOUR, label, new_figure, strength

ANSWER = ["prompt_id", "seed"]


def mean_path(segments: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Mean over answers at every alpha: a step function whose breakpoints are those of all the answers together.

    Args:
        segments: prompt_id, seed, alpha_low, alpha_high and the columns, see `steerlib.generation.alpha_path`; every
            answer covers the same range of alpha.
        columns: numbers to be averaged.

    Returns:
        alpha_low, alpha_high, the columns' means; `[alpha_low, alpha_high)`, in order and without gap.

    Raises:
        ValueError: no segments, or answers that cover different ranges.
    """
    if segments.empty:
        raise ValueError("no segments to average")
    answers = [rows.sort_values("alpha_low") for _, rows in segments.groupby(ANSWER)]
    ranges = {(float(rows["alpha_low"].iloc[0]), float(rows["alpha_high"].iloc[-1])) for rows in answers}
    if len(ranges) > 1:
        raise ValueError(f"the answers cover different ranges of alpha: {sorted(ranges)}")
    low = np.unique(segments["alpha_low"].to_numpy(float))
    total = np.zeros((len(low), len(columns)))
    for rows in answers:
        place = np.searchsorted(rows["alpha_low"].to_numpy(float), low, side="right") - 1
        total += rows[list(columns)].to_numpy(float)[place]
    found = pd.DataFrame(total / len(answers), columns=list(columns))
    found.insert(0, "alpha_low", low)
    found.insert(1, "alpha_high", [*low[1:], next(iter(ranges))[1]])
    return found


def plot_alpha_path(
    segments: pd.DataFrame, grid: pd.DataFrame, measures: Mapping[str, str], *, method: str
) -> Figure:
    """Measures against continuous alpha, one panel a measure: each prompt thin, their mean thick, the grid as dots.

    The dots are decoded at single alphas with the path's sampler, so they lie on the mean's steps. There is no
    interval: a path shows what alpha does to a few answers, not what steering does to people.

    Args:
        segments: the path with one column a measure.
        grid: alpha and the measures' means over the same answers, one row an alpha; may be empty.
        measures: label with unit by column.
        method: whose path it is.
    """
    means = mean_path(segments, list(measures))
    fig, axes = new_figure(len(measures), 1, height=0.7 + 1.75 * len(measures))
    for axis, (column, text) in zip(axes[:, 0], measures.items(), strict=True):
        for _, rows in segments.groupby(ANSWER):
            _steps(
                axis, rows.sort_values("alpha_low"), column, color=COLOUR[method], linewidth=0.7, alpha=0.45
            )
        _steps(axis, means, column, color=COLOUR[method], linewidth=2.0)
        if len(grid):
            axis.plot(
                grid["alpha"],
                grid[column],
                linestyle="",
                marker="o",
                color="black",
                markersize=4,
                clip_on=False,
            )
        axis.set_ylabel(text)
        axis.set_xlim(means["alpha_low"].iloc[0], means["alpha_high"].iloc[-1])
    for axis in axes[:-1, 0]:
        axis.tick_params(labelbottom=False)
    prompts, seeds = segments["prompt_id"].nunique(), segments["seed"].nunique()
    asked = f"{prompts} prompts" + (f" with {seeds} seeds" if seeds > 1 else "")
    axes[-1, 0].set_xlabel(
        f"{strength(method)} of {label(method)}, continuous\n{asked} (thin) with {len(segments)} answers, their "
        f"mean (thick) in {len(means)} steps; dots: decoded at single values"
    )
    return fig


def _steps(axis: Axes, rows: pd.DataFrame, column: str, **line: Any) -> None:
    edges = [*rows["alpha_low"], rows["alpha_high"].iloc[-1]]
    axis.stairs(rows[column].to_numpy(float), edges, baseline=None, **line)
