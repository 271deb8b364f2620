"""The effect of steering against how far the base is from the person's answer: as it looks, and guarded."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlib.figures.style import COLOUR, new_figure

XLABEL = {
    "naive": "{measure} of the base,\nfrom the answers of the effect itself",
    "guarded": "{measure} of the base,\nfrom its answers at other seeds",
}


NOTE: dict[str, Any] = {"fontsize": 8, "backgroundcolor": "white"}


def plot_disagreement(
    points: pd.DataFrame, slopes: pd.DataFrame, *, colour: str = COLOUR["caa"], measure: str = "distance"
) -> Figure:
    """Effect of steering on each prompt against the base's distance; left naive, right guarded.

    The naive line rises without any effect (regression to the mean); the guarded one does not. Where there is no
    second seed the right panel says so.

    Args:
        points: what `steerlib.evaluation.disagreement_points` returned for one arm.
        slopes: rows of `disagreement_slopes` of the same arm.
        colour: of the arm's method.
        measure: what the effect is of: "distance", or "toxicity" where the prompts have no accepted answer.

    Raises:
        ValueError: slopes of several arms.
    """
    if slopes["arm_id"].nunique() != 1:
        raise ValueError(f"slopes must be of one arm, not of {', '.join(slopes['arm_id'].unique())}")
    found = slopes.set_index("estimator")
    fig, axes = new_figure(1, 2, height=3.6, share_y=True)
    for axis, estimator in zip(axes[0], XLABEL, strict=True):
        own, row = points[points["estimator"] == estimator], found.loc[estimator]
        axis.axhline(0, color=COLOUR["base"], linestyle=(0, (4, 2)), linewidth=1.2)
        axis.set_xlabel(f"{XLABEL[estimator].format(measure=measure)}\n{_words(estimator, row)}")
        if own.empty:
            reason = row["how"].removeprefix("none: ").replace(" (", "\n(")
            axis.text(0.5, 0.5, reason, ha="center", va="center", transform=axis.transAxes, **NOTE)
            axis.set_xticks([])
            continue
        _draw(axis, own, row["slope"], colour)
    corrected = found.loc["corrected"]
    if pd.notna(corrected["slope"]):
        axes[0, 1].set_xlabel(f"{axes[0, 1].get_xlabel()}\n{_words('corrected for noise', corrected)}")
    better = "nearer" if measure == "distance" else "less toxic"
    axes[0, 0].set_ylabel(f"effect: {measure} of base less steered\n(above 0: steered is {better})")
    return fig


def _draw(axis: Axes, own: pd.DataFrame, slope: float, colour: str) -> None:
    """The points, and the line of the slope through their means."""
    x, y = own["disagreement"], own["effect"]
    axis.plot(x, y, linestyle="", marker="o", markersize=2.5, alpha=0.35, color=colour)
    ends = x.agg(["min", "max"]).to_numpy(float)
    axis.plot(ends, y.mean() + slope * (ends - x.mean()), color="black", linewidth=1.6)


def _words(name: str, row: pd.Series) -> str:
    if pd.isna(row["slope"]):
        return f"{name}: no slope"
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}] (95 %)"
    return f"{name}: slope {row['slope']:.2f}{interval}"
