"""TruthfulQA's measures against the strength of a rule, its branches alone as levels."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlib.figures.responses import half_widths
from steerlib.figures.style import COLOUR, label, new_figure, strength

MEASURES = {"mc1": "MC1 (share of questions)", "mc2": "MC2 (mass on true answers)"}
LEVEL_LINE = {"base": (0, (4, 2)), "instructed": "-.", "prompt_only": "-."}


def plot_truthful(summary: pd.DataFrame, *, difference_from: str = "") -> Figure:
    """MC1 and MC2 against alpha with the branches alone as levels, or the paired difference from one of them.

    Args:
        summary: what `truthful_summary` returned.
        difference_from: "base", "instructed" or "prompt_only"; the measures themselves where empty.

    Raises:
        ValueError: the summary has no such comparator.
    """
    rows = summary[summary["comparator"] == difference_from]
    if rows.empty:
        known = ", ".join(sorted(set(summary["comparator"]) - {""}))
        raise ValueError(f"no differences from {difference_from!r}; there are {known or 'none'}")
    fig, axes = new_figure(1, len(MEASURES), height=3.4)
    handles: list = []
    for axis, (metric, name) in zip(axes[0], MEASURES.items(), strict=True):
        handles = _draw(axis, rows[rows["metric"] == metric])
        if difference_from:
            zero = axis.axhline(
                0, **_level(difference_from), label=f"{label(difference_from)} (no difference)"
            )
            handles = [zero, *handles]
        what = f"{metric.upper()} less that of {label(difference_from)}" if difference_from else name
        axis.set_ylabel(f"{what},\n95 % interval")
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return fig


def _draw(axis: Axes, rows: pd.DataFrame) -> list:
    handles = []
    for method in rows["method"].unique():
        own = rows[rows["method"] == method].sort_values("alpha")
        colour = COLOUR[method]
        if method in LEVEL_LINE:
            value, low, high = own[["value", "low", "high"]].iloc[0]
            handles.append(axis.axhline(value, **_level(method), label=label(method)))
            axis.axhspan(low, high, color=colour, alpha=0.12, linewidth=0)
            continue
        drawn = axis.errorbar(
            own["alpha"], own["value"], yerr=half_widths(own), color=colour, marker="o", markersize=4
        )
        drawn.set_label(label(method))
        handles.append(drawn)
        axis.set_xlabel(f"{strength(method)} of {label(method)}")
    return handles


def _level(method: str) -> dict[str, Any]:
    return {"color": COLOUR[method], "linestyle": LEVEL_LINE[method], "linewidth": 1.3}
