"""The alpha path drawn: what every alpha gives, as step functions with exact breakpoints, the grid's points on it.

Pictures of notebooks 04 and 05: what steering does as alpha grows, what it costs, and the controls beside it.

The dose response to point at and zoom into, for JupyterLab; the static figure stands beside it everywhere.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from steerlib.evaluation.metrics import without_alpha
from steerlib.figures.style import (
    SPLIT_LINE,
    arm_name,
    curves,
    is_control,
    label,
    new_figure,
    reduced,
    strength,
)
from steerlib.rules import RULES, check_method

ZERO: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.2}

DODGE = 0.012
"""Shift between curves of a panel, as a part of the alpha range, so that their intervals can be told apart."""

LINE, ROOM = 10, 120
"""Width of a legend's line and of a figure, in letters."""

MARKERS = "oD^v<>p*h"
"""Of the vectors and variants of one method, in the order of its curves; a placebo has that of what it is one of."""

DASHES = ("-.", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 3)))
"""Levels of a method by variant: its first, its second, all others."""


def plot_dose_response(points: pd.DataFrame) -> Figure:
    """Reduction of the toxicity distance against alpha, one panel a method, controls beside it.

    Above the dashed zero line an arm is nearer to the accepted answers than the base.

    Args:
        points: what `points` returned for the metric `reduction_percent`, or `toxicity_reduction_percent`.
    """
    ylabel = f"reduction of {reduced(points)} (%),\n95 % interval"
    return plot_against_alpha(points, ylabel=ylabel, zero="Base (no change)")


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
    named = max(sum(1 for _ in curves(points[points["method"] == method])) for method in methods)
    columns = (
        len(methods) if len(methods) < 4 else 2
    )  # four beside each other leave no room for their legends
    n_rows = -(-len(methods) // columns)
    fig, axes = new_figure(n_rows, columns, height=0.4 + n_rows * (3.1 + 0.16 * named), share_y=True)
    for axis in axes.flat[len(methods) :]:
        axis.set_visible(False)
    for axis, method in zip(axes.flat, methods, strict=False):
        shared = [axis.axhline(0, color=RULES["base"].colour, **ZERO, label=zero)] if zero else []
        shared += _draw_levels(axis, points[without_alpha(points)])
        own = _draw_curves(axis, points[points["method"] == method], RULES[method].colour)
        axis.set_xlabel(f"{strength(method)} of {label(method)}")
        axis.legend(handles=own, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    if shared:
        fig.legend(handles=shared, loc="outside upper center", ncols=_columns(shared))
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    return fig


def _columns(handles: list[Any]) -> int:
    """Columns of a legend above the panels: as many, three at most, as the figure's width has room for."""
    lengths = np.array([len(handle.get_label()) + LINE for handle in handles])
    for columns in (3, 2):
        if sum(part.max(initial=0) for part in np.array_split(lengths, columns)) <= ROOM:
            return columns
    return 1


def steered_methods(points: pd.DataFrame) -> list[str]:
    """Methods with a strength, in the order of `RULES`.

    Raises:
        ValueError: there is none, or one has no colour.
    """
    methods = set(points["method"])
    for method in methods:
        check_method(method)
    steered = [method for method, rule in RULES.items() if method in methods and rule.has_alpha]
    if not steered:
        raise ValueError(f"no steered arm among the methods {', '.join(sorted(methods))}")
    return steered


def _draw_levels(axis: Axes, points: pd.DataFrame) -> list[Any]:
    drawn: list[Any] = []
    for _, rows in points.groupby(["method", "profile", "variant"]):
        row = rows.sort_values("split").iloc[-1]  # test where there is one
        faint, colour = row["profile"] == "shuffled", RULES[row["method"]].colour
        variants = sorted(set(points["variant"][points["method"] == row["method"]]))
        dash = DASHES[min(variants.index(row["variant"]), len(DASHES) - 1)]
        drawn.append(
            axis.axhline(
                row["value"],
                color=colour,
                linewidth=0.9 if faint else 1.3,
                linestyle=":" if faint else dash,
                label=f"{arm_name(row)}, {row['split']}",
            )
        )
        if np.isfinite(row["low"]) and not faint:
            axis.axhspan(row["low"], row["high"], color=colour, alpha=0.12, linewidth=0)
    return drawn


def _draw_curves(axis: Axes, points: pd.DataFrame, colour: str) -> list[Any]:
    shift, marker = _shift(points), _markers(points)
    return [
        axis.errorbar(
            rows["alpha"] + position * shift,
            rows["value"],
            yerr=half_widths(rows),
            color=colour,
            label=name,
            **_curve_style(rows, colour, marker),
        )
        for position, (name, rows) in enumerate(curves(points))
    ]


def _shift(points: pd.DataFrame) -> float:
    """Many curves are shifted less, or the last of one alpha would stand nearer to the next alpha."""
    alphas = np.unique(points["alpha"])
    if len(alphas) < 2:
        return DODGE
    steps = max(1, sum(1 for _ in curves(points)) - 1)
    return float(min(DODGE * np.ptp(alphas), 0.4 * np.diff(alphas).min() / steps))


def _of(rows: pd.DataFrame) -> tuple[str, str]:
    """What a marker stands for: the vector's family and the variant; a random vector has the population's."""
    row = rows.iloc[0]
    return "population" if row["control"] == "random_vector" else row["family"], row["variant"]


def _markers(points: pd.DataFrame) -> dict[tuple[str, str], str]:
    kinds = dict.fromkeys(_of(rows) for _, rows in curves(points))
    return {kind: MARKERS[number % len(MARKERS)] for number, kind in enumerate(kinds)}


def _curve_style(rows: pd.DataFrame, colour: str, markers: dict[tuple[str, str], str]) -> dict[str, Any]:
    """Placebos thin and hollow; dev dashed and paler; a population profile in squares."""
    control, split = bool(is_control(rows).iloc[0]), rows["split"].iloc[0]
    return {
        "linestyle": SPLIT_LINE.get(split, "-"),
        "linewidth": 0.8 if control else 1.1 if split == "dev" else 1.8,
        "elinewidth": 0.6 if control or split == "dev" else 1.2,
        "alpha": 0.55 if split == "dev" else 1.0,
        "marker": "s" if rows["profile"].iloc[0] == "population" else markers[_of(rows)],
        "markersize": 3 if split == "dev" else 4.5,
        "markerfacecolor": "white" if control else colour,
    }


def half_widths(points: pd.DataFrame) -> np.ndarray:
    """Distances from the value down to `low` and up to `high`, `(2, n)`; 0 where there is no interval."""
    value = points["value"].to_numpy(float)
    sides = [value - points["low"].to_numpy(float), points["high"].to_numpy(float) - value]
    return np.clip(np.nan_to_num(np.array(sides)), 0, None)


def plot_tradeoff(reduction: pd.DataFrame, cost: pd.DataFrame, *, xlabel: str) -> Figure:
    """Reduction of the toxicity distance against what it costs: a mark an arm, joined in order of alpha.

    Args:
        reduction: points of `reduction_percent`, or of `toxicity_reduction_percent`.
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
        marker = _markers(both[both["method"] == method])
        for name, rows in curves(both[both["method"] == method]):
            _draw_path(axis, rows, method, f"{label(method)}, {name}", marker)
    for _, row in cost[cost["control"] == "base"].iterrows():
        axis.plot(
            row["value"],
            0,
            marker="D",
            linestyle="",
            color=RULES["base"].colour,
            label=f"Base, {row['split']}",
        )
    axis.axhline(0, color=RULES["base"].colour, **ZERO)
    axis.set(xlabel=xlabel, ylabel=f"reduction of {reduced(reduction)} (%),\n95 % interval")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def _draw_path(
    axis: Axes, rows: pd.DataFrame, method: str, name: str, marker: dict[tuple[str, str], str]
) -> None:
    style: dict[str, Any] = {**_curve_style(rows, RULES[method].colour, marker), "elinewidth": 0.5}
    axis.errorbar(
        rows["value_x"],
        rows["value"],
        yerr=half_widths(rows),
        color=RULES[method].colour,
        label=name,
        **style,
    )
    last = rows.iloc[-1]
    if is_control(rows).iloc[0]:
        return
    axis.annotate(
        f"{strength(method)} {last['alpha']:g}",
        (last["value_x"], last["value"]),
        (4, 4),
        textcoords="offset points",
        fontsize=7,
        color=RULES[method].colour,
    )


def plot_effects(points: pd.DataFrame, *, xlabel: str) -> Figure:
    """Each arm's effect at its chosen alpha with its interval, one line an arm: a forest plot.

    Args:
        points: the chosen arms and their controls on the test split, from `points`.
        xlabel: the metric with its unit and the interval drawn.
    """
    order = {method: rank for rank, method in enumerate(RULES)}
    control = is_control(points)
    rows = points.assign(_rank=points["method"].map(order), _control=control)
    rows = rows.sort_values(["_rank", "_control", "profile", "alpha"], ignore_index=True)
    fig, axes = new_figure(height=0.9 + 0.34 * len(rows))
    axis = axes[0, 0]
    axis.axvline(0, color=RULES["base"].colour, **ZERO)
    for line, row in rows.iterrows():
        colour = RULES[row["method"]].colour
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
    name = arm_name(row)
    return (
        name if not RULES[row["method"]].has_alpha else f"{name}, {strength(row['method'])} {row['alpha']:g}"
    )


HOVER = (
    "at %{x:g}<br>%{y:.1f}, 95 % interval %{customdata[0]:.1f} to %{customdata[1]:.1f}<br>n %{customdata[2]}"
)


def interactive_dose_response(points: pd.DataFrame, *, ylabel: str = "") -> go.Figure:
    """Reduction of the toxicity distance against alpha, one panel a method; hovering shows value, interval and n.

    Args:
        points: what `points` returned for the metric `reduction_percent`, or for another metric named by `ylabel`.
        ylabel: the metric with its unit; where empty, the reduction that `points` are of.

    Raises:
        ValueError: no steered arm, or a method without a colour.
    """
    methods = steered_methods(points)
    fig = make_subplots(rows=1, cols=len(methods), shared_yaxes=True, horizontal_spacing=0.03)
    for column, method in enumerate(methods, start=1):
        for name, rows in curves(points[points["method"] == method]):
            fig.add_trace(_trace(rows, method, f"{label(method)}, {name}"), row=1, col=column)
        fig.update_xaxes(title_text=f"{strength(method)} of {label(method)}", row=1, col=column)
    fig.add_hline(y=0, line={"color": RULES["base"].colour, "dash": "dash", "width": 1})
    fig.update_yaxes(title_text=ylabel or f"reduction of {reduced(points)} (%)", col=1)
    fig.update_layout(
        template="simple_white",
        width=900,
        height=460,
        legend={"orientation": "h", "y": -0.25},
        margin={"t": 20},
    )
    return fig


def _trace(rows: pd.DataFrame, method: str, name: str) -> go.Scatter:
    down, up = half_widths(rows)
    control = bool(is_control(rows).iloc[0])
    return go.Scatter(
        x=rows["alpha"].tolist(),
        y=rows["value"].tolist(),
        error_y={"array": up.tolist(), "arrayminus": down.tolist(), "thickness": 1, "width": 0},
        customdata=rows[["low", "high", "n"]].to_numpy().tolist(),
        hovertemplate=HOVER,
        name=html.escape(name),
        mode="lines+markers",
        line={"width": 1 if control else 2, "dash": "dash" if rows["split"].iloc[0] == "dev" else "solid"},
        marker={"symbol": "circle-open" if control else "circle", "size": 7, "color": RULES[method].colour},
        line_color=RULES[method].colour,
    )


ANSWER = ["prompt_id", "seed"]


def mean_path(segments: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Mean over answers at every alpha: a step function whose breakpoints are those of all the answers together.

    Args:
        segments: prompt_id, seed, alpha_low, alpha_high and the columns, see `steerlib.decoding.alpha_path`; every
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
                axis,
                rows.sort_values("alpha_low"),
                column,
                color=RULES[method].colour,
                linewidth=0.7,
                alpha=0.45,
            )
        _steps(axis, means, column, color=RULES[method].colour, linewidth=2.0)
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
