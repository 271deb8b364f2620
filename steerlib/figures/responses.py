"""Pictures of notebooks 04 and 05: what steering does as alpha grows, what it costs, and the controls beside it."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlib.figures.points import AT_ONE_ALPHA, SPLIT_LINE, arm_label, curves, is_control
from steerlib.figures.style import COLOUR, label, new_figure

DODGE = 0.012
"""Shift between curves of a panel, as a part of the alpha range, so that their intervals can be told apart."""


def plot_dose_response(points: pd.DataFrame) -> Figure:
    """Reduction of the toxicity distance against alpha, one panel a method, controls beside it.

    Above the dashed zero line an arm is nearer to the accepted answers than the base.

    Args:
        points: what `points` returned for the metric `reduction_percent`.
    """
    return plot_against_alpha(
        points, ylabel="reduction of toxicity distance (%),\n95 % interval", zero="Base (no change)"
    )


def plot_against_alpha(points: pd.DataFrame, *, ylabel: str, zero: str = "") -> Figure:
    """A metric against alpha, one panel a method, because an alpha means something else in each.

    The test split is solid, dev dashed; placebos are thin with hollow marks; base and prompt-only are levels.

    Args:
        points: what `points` returned: method, alpha, profile, vector, split, value, low, high.
        ylabel: the metric with its unit and the interval drawn.
        zero: name of the zero line; none is drawn where empty.

    Raises:
        ValueError: no steered arm, or a method without a colour.
    """
    methods = steered_methods(points)
    fig, axes = new_figure(1, len(methods), height=3.6, share_y=True)
    for axis, method in zip(axes[0], methods, strict=True):
        if zero:
            axis.axhline(0, color=COLOUR["base"], linestyle=(0, (4, 2)), linewidth=1.2, label=zero)
        _draw_levels(axis, points[points["method"].isin(AT_ONE_ALPHA)])
        _draw_curves(axis, points[points["method"] == method], COLOUR[method])
        axis.set_xlabel(f"alpha of {label(method)}")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
    axes[0, 0].set_ylabel(ylabel)
    return fig


def steered_methods(points: pd.DataFrame) -> list[str]:
    """Methods with a strength, in the order of `COLOUR`.

    Raises:
        ValueError: there is none, or one has no colour.
    """
    methods = set(points["method"])
    colourless = sorted(methods - set(COLOUR))
    if colourless:
        raise ValueError(f"method {colourless[0]!r} has no colour; those that have are {', '.join(COLOUR)}")
    steered = [method for method in COLOUR if method in methods and method not in AT_ONE_ALPHA]
    if not steered:
        raise ValueError(f"no steered arm among the methods {', '.join(sorted(methods))}")
    return steered


def _draw_levels(axis: Axes, points: pd.DataFrame) -> None:
    for (method, profile), rows in points.groupby(["method", "profile"]):
        row = rows.sort_values("split").iloc[-1]  # test where there is one
        name, faint = arm_label(method, profile, ""), profile == "shuffled"
        style = {"color": COLOUR[method], "linewidth": 0.9 if faint else 1.3}
        axis.axhline(row["value"], linestyle=":" if faint else "--", label=f"{name}, {row['split']}", **style)
        if np.isfinite(row["low"]) and not faint:
            axis.axhspan(row["low"], row["high"], color=COLOUR[method], alpha=0.12, linewidth=0)


def _draw_curves(axis: Axes, points: pd.DataFrame, colour: str) -> None:
    reach = points["alpha"].max() - points["alpha"].min()
    for position, (name, rows) in enumerate(curves(points)):
        control = bool(is_control(rows).iloc[0])
        axis.errorbar(
            rows["alpha"] + position * DODGE * reach,
            rows["value"],
            yerr=half_widths(rows),
            color=colour,
            linestyle=SPLIT_LINE.get(rows["split"].iloc[0], "-"),
            linewidth=0.8 if control else 1.7,
            elinewidth=0.7 if control else 1.1,
            marker="s" if rows["profile"].iloc[0] == "population" else "o",
            markersize=4,
            markerfacecolor="white" if control else colour,
            capsize=0,
            label=name,
        )


def half_widths(points: pd.DataFrame) -> np.ndarray:
    """Distances from the value down to `low` and up to `high`, `(2, n)`; 0 where there is no interval."""
    value = points["value"].to_numpy(float)
    sides = [value - points["low"].to_numpy(float), points["high"].to_numpy(float) - value]
    return np.clip(np.nan_to_num(np.array(sides)), 0, None)


def plot_tradeoff(reduction: pd.DataFrame, cost: pd.DataFrame, *, xlabel: str) -> Figure:
    """Reduction of the toxicity distance against what it costs, each mark an arm, marks of a method joined by alpha.

    Args:
        reduction: points of `reduction_percent`.
        cost: points of another metric of the same arms and splits, for instance perplexity.
        xlabel: that metric with its unit.

    Raises:
        ValueError: no arm has both.
    """
    both = reduction.merge(
        cost[["arm_id", "split", "value", "low", "high"]], on=["arm_id", "split"], suffixes=("", "_x")
    )
    if both.empty:
        raise ValueError("no arm has both a reduction and a cost on the same split")
    fig, axes = new_figure(height=3.8)
    axis = axes[0, 0]
    for method in steered_methods(both):
        for name, rows in curves(both[both["method"] == method]):
            _draw_path(axis, rows, method, f"{label(method)}, {name}")
    for _, row in cost[cost["method"] == "base"].iterrows():
        axis.plot(
            row["value"], 0, marker="D", linestyle="", color=COLOUR["base"], label=f"Base, {row['split']}"
        )
    axis.axhline(0, color=COLOUR["base"], linestyle=(0, (4, 2)), linewidth=1.0)
    axis.set(xlabel=xlabel, ylabel="reduction of toxicity distance (%),\n95 % interval")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def _draw_path(axis: Axes, rows: pd.DataFrame, method: str, name: str) -> None:
    control = bool(is_control(rows).iloc[0])
    axis.errorbar(
        rows["value_x"],
        rows["value"],
        yerr=half_widths(rows),
        color=COLOUR[method],
        elinewidth=0.5,
        linewidth=0.8 if control else 1.3,
        linestyle=SPLIT_LINE.get(rows["split"].iloc[0], "-"),
        marker="o",
        markersize=4,
        markerfacecolor="white" if control else COLOUR[method],
        label=name,
    )
    if not control:
        for _, row in rows.iloc[[0, -1]].iterrows() if len(rows) > 1 else rows.iterrows():
            axis.annotate(
                f"{row['alpha']:g}",
                (row["value_x"], row["value"]),
                (3, 4),
                textcoords="offset points",
                fontsize=7,
            )


def plot_effects(points: pd.DataFrame, *, xlabel: str) -> Figure:
    """Each arm's effect at its chosen alpha with its interval, one line an arm: a forest plot.

    Args:
        points: the chosen arms and their controls on the test split, from `points`.
        xlabel: the metric with its unit and the interval drawn.
    """
    order = {method: rank for rank, method in enumerate(COLOUR)}
    control = is_control(points)
    rows = points.assign(_rank=points["method"].map(order), _control=control)
    rows = rows.sort_values(["_rank", "_control", "profile", "alpha"], ignore_index=True)
    fig, axes = new_figure(height=0.9 + 0.34 * len(rows))
    axis = axes[0, 0]
    axis.axvline(0, color=COLOUR["base"], linestyle=(0, (4, 2)), linewidth=1.2)
    for line, row in rows.iterrows():
        colour = COLOUR[row["method"]]
        axis.errorbar(
            row["value"],
            line,
            xerr=half_widths(rows.loc[[line]]),
            color=colour,
            marker="o",
            markersize=6,
            markerfacecolor="white" if row["_control"] else colour,
            linewidth=0.9 if row["_control"] else 1.8,
        )
    axis.set_yticks(range(len(rows)), [_effect_label(row) for _, row in rows.iterrows()])
    axis.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
    axis.grid(axis="y", visible=False)
    return fig


def _effect_label(row: pd.Series) -> str:
    name = arm_label(row["method"], row["profile"], row["vector"])
    return name if row["method"] in AT_ONE_ALPHA else f"{name}, alpha {row['alpha']:g}"
