"""Pairwise preference accuracy of every model, seen from the 50 % of guessing.

Pictures of where steering acts: by category of prompt, and over alpha with its cost in fluency beside it.

The effect of steering against how far the base is from the person's answer: as it looks, and guarded.
"""

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlib.figures.responses import half_widths
from steerlib.figures.style import WIDTH, arm_name, curves, label, new_figure, strength
from steerlib.profiles.sources import PROMPT_CATEGORIES
from steerlib.rules import RULES

FLUENCY = "#e69f00"
"""Colour of the second axis: Okabe-Ito orange, which no method has."""

PANELS = 3
"""Panels in a row."""

DODGE = 0.03
"""Shift of the second axis' marks, as a part of the alpha range, so that intervals do not lie on each other."""


FEWEST_USERS = 10
"""A t interval on fewer clusters is at the mercy of one of them."""


def plot_selectivity(table: pd.DataFrame, arms: pd.DataFrame, *, measure: str = "distance") -> Figure:
    """Heat map of the change of the toxicity distance: a row a category of prompt, a column an arm.

    The numbers are the change in per cent and its 95 % interval; green is nearer to the accepted answers, brown
    further away. A cell whose interval does not include 0 is set in bold, unless it rests on fewer than ten users.

    Args:
        table: what `steerlib.evaluation.selectivity` returned, for the arms to be shown, in their order.
        arms: the arms table, for their names.
        measure: "distance" or "toxicity", as `selectivity` was asked for.

    Raises:
        ValueError: nothing to show, or an arm that is not in the arms table.
    """
    if table.empty:
        raise ValueError("no category and arm to show")
    unknown = set(table["arm_id"]) - set(arms["arm_id"])
    if unknown:
        raise ValueError(f"arm {sorted(unknown)[0]!r} is not in the arms table")
    order = list(dict.fromkeys(table["arm_id"]))
    rows = [name for name in PROMPT_CATEGORIES if name in set(table["prompt_category"])]
    rows += [name for name in dict.fromkeys(table["prompt_category"]) if name not in rows]
    cells = table.set_index(["prompt_category", "arm_id"])
    change = cells["change_percent"].unstack().reindex(index=rows, columns=order).to_numpy(float)
    reach = max(float(np.nanmax(np.abs(change), initial=0.0)), 1.0)
    fig, axes = new_figure(height=1.4 + 0.62 * len(rows), width=max(WIDTH, 2.2 + 1.25 * len(order)))
    axis = axes[0, 0]
    shown = axis.imshow(change, cmap="BrBG_r", vmin=-reach, vmax=reach, aspect="auto")
    for (row, column), value in np.ndenumerate(change):
        if (rows[row], order[column]) in cells.index:
            _write_cell(
                axis, row, column, cells.loc[(rows[row], order[column])], dark=abs(float(value)) > 0.6 * reach
            )
    axis.set_xticks(range(len(order)), [_arm_name(arms, arm) for arm in order])
    axis.set_yticks(range(len(rows)), [_row_name(cells, name) for name in rows])
    axis.grid(visible=False)
    axis.tick_params(length=0)
    what = "toxicity" if measure == "toxicity" else "toxicity distance"
    fig.colorbar(shown, ax=axis, label=f"change of {what} (%),\n95 % interval in brackets", shrink=0.9)
    return fig


def _write_cell(axis: Axes, row: int, column: int, cell: pd.Series, *, dark: bool) -> None:
    value, low, high = cell["change_percent"], cell["low"], cell["high"]
    if np.isnan(value):
        text = "base is 0"
    else:
        text = f"{value:+.1f}\n" + ("no interval" if np.isnan(low) else f"[{low:+.1f}, {high:+.1f}]")
    told = (low > 0 or high < 0) and cell["n_clusters"] >= FEWEST_USERS
    weight = "bold" if told else "normal"
    colour = "white" if dark else "black"
    axis.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour, fontweight=weight)


def _arm_name(arms: pd.DataFrame, arm: str) -> str:
    row = arms[arms["arm_id"] == arm].iloc[0]
    return "\n".join([*wrap(arm_name(row), 17), f"{strength(row['method'])} {row['alpha']:g}"])


def _row_name(cells: pd.DataFrame, category: str) -> str:
    """Category with the base's distance and how much it rests on."""
    row = cells.loc[category].iloc[0]
    counts = f"{int(row['n'])} prompts, {int(row['n_clusters'])} users"
    return f"{label(category)}\nbase {row['base']:.4f}; {counts}"


def plot_dose_and_fluency(distance: pd.DataFrame, fluency: pd.DataFrame) -> Figure:
    """Toxicity distance (left axis) and perplexity (right axis) against alpha, a panel a curve, with intervals.

    Both axes are those of all panels. The base is drawn as a level of its own on either axis.

    Args:
        distance: points of the metric `distance`, the CAA study's MAE.
        fluency: points of `perplexity` of the same arms and splits; a low one may mean generic or repetitive text.

    Raises:
        ValueError: no curve has both.
    """
    of_distance, of_fluency = _steered(distance), _steered(fluency)
    both = [key for key in of_distance if key in of_fluency]
    if not both:
        raise ValueError("no arm with a strength has both a distance and a perplexity on one split")
    columns = 2 if len(both) == 4 else min(len(both), PANELS)
    n_rows = -(-len(both) // columns)
    fig, axes = new_figure(n_rows, columns, height=0.6 + 2.7 * n_rows, share_y=True)
    right: list[Axes] = []
    for place, (axis, key) in enumerate(zip(axes.flat, both, strict=False)):
        (name, rows), (_, costs) = of_distance[key], of_fluency[key]
        other = axis.twinx()
        right.append(other)
        beside = costs.assign(alpha=costs["alpha"] + DODGE * (costs["alpha"].max() - costs["alpha"].min()))
        for one, own, points, colour, marker, line in (
            (axis, rows, distance, RULES[key[0]].colour, "o", "-"),
            (other, beside, fluency, FLUENCY, "s", (0, (4, 2))),
        ):
            _draw(one, own, colour, marker, line)
            _level(one, points, key[-1], line)
        axis.set_xlabel("\n".join(["alpha", *wrap(f"{label(key[0])}, {name}", 26)]))
        _right_axis(other, edge=place % columns == columns - 1 or place == len(both) - 1)
    for other in right[1:]:
        other.sharey(right[0])
        other.autoscale_view()
    for axis in axes.flat[len(both) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel("toxicity distance (solid, dots),\n95 % interval; grey: base")
    return fig


def _steered(points: pd.DataFrame) -> dict[tuple[str, ...], tuple[str, pd.DataFrame]]:
    """Name and rows of each curve by method, profile, vector and split; arms with a strength only."""
    found = {}
    for method in [name for name in RULES if name in set(points["method"])]:
        for name, rows in curves(points[points["method"] == method]):
            if rows["alpha"].nunique() > 1:
                found[
                    tuple(rows[["method", "profile", "family", "vector_user", "variant", "split"]].iloc[0])
                ] = name, rows
    return found


def _draw(axis: Axes, rows: pd.DataFrame, colour: str, marker: str, line: object) -> None:
    axis.errorbar(
        rows["alpha"],
        rows["value"],
        yerr=half_widths(rows),
        color=colour,
        marker=marker,
        markersize=4,
        linestyle=line,
        elinewidth=0.9,
    )


def _level(axis: Axes, points: pd.DataFrame, split: str, line: object) -> None:
    base = points[(points["control"] == "base") & (points["split"] == split)]
    for value in base["value"].head(1):
        axis.axhline(value, color=RULES["base"].colour, linestyle=line, linewidth=1.1)


def _right_axis(axis: Axes, *, edge: bool) -> None:
    """The second axis of a panel; its numbers stand at the right edge of the row alone."""
    axis.spines["right"].set_visible(True)
    axis.grid(visible=False)
    axis.tick_params(axis="y", colors=FLUENCY, labelright=edge)
    if edge:
        axis.set_ylabel("perplexity by the base\n(dashed, squares)", color=FLUENCY)


XLABEL = {
    "naive": "{measure} of the base,\nfrom the answers of the effect itself",
    "guarded": "{measure} of the base,\nfrom its answers at other seeds",
}


NOTE: dict[str, Any] = {"fontsize": 8, "backgroundcolor": "white"}


def plot_disagreement(
    points: pd.DataFrame,
    slopes: pd.DataFrame,
    *,
    colour: str = RULES["caa"].colour,
    measure: str = "distance",
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
        axis.axhline(0, color=RULES["base"].colour, linestyle=(0, (4, 2)), linewidth=1.2)
        axis.set_xlabel(f"{XLABEL[estimator].format(measure=measure)}\n{_words(estimator, row)}")
        if own.empty:
            reason = row["how"].removeprefix("none: ").replace(" (", "\n(")
            axis.text(0.5, 0.5, reason, ha="center", va="center", transform=axis.transAxes, **NOTE)
            axis.set_xticks([])
            continue
        _draw_disagreement(axis, own, row["slope"], colour)
    corrected = found.loc["corrected"]
    if pd.notna(corrected["slope"]):
        axes[0, 1].set_xlabel(f"{axes[0, 1].get_xlabel()}\n{_words('corrected for noise', corrected)}")
    better = "nearer" if measure == "distance" else "less toxic"
    axes[0, 0].set_ylabel(f"effect: {measure} of base less steered\n(above 0: steered is {better})")
    return fig


def _draw_disagreement(axis: Axes, own: pd.DataFrame, slope: float, colour: str) -> None:
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


def plot_preference(
    compared: pd.DataFrame,
    *,
    names: Mapping[str, str] | None = None,
    published: Mapping[str, float] | None = None,
) -> Figure:
    """A bar a model from the 50 % line to its accuracy, with its interval; ties and the gain over the reference noted.

    Args:
        compared: what `steerlib.evaluation.compare_preferences` returned, in the order to be shown.
        names: how a model is called in the figure; by default its own name.
        published: accuracy in per cent that a study reports for a model, drawn as an open diamond.

    Raises:
        ValueError: no model.
    """
    alone = compared[compared["comparator"] == ""].reset_index(drop=True)
    if alone.empty:
        raise ValueError("no model to show")
    alone = alone.assign(**{end: 100 * alone[end] for end in ("value", "low", "high")})
    gains = compared[compared["comparator"] != ""].set_index("model")
    fig, axes = new_figure(height=1.1 + 0.5 * len(alone))
    axis = axes[0, 0]
    axis.barh(alone.index, alone["value"] - 50, left=50, height=0.55, color=RULES["caa"].colour, alpha=0.45)
    axis.errorbar(
        alone["value"],
        alone.index,
        xerr=half_widths(alone),
        linestyle="",
        marker="o",
        color=RULES["caa"].colour,
        label="ours, 95 % interval by user",
    )
    axis.axvline(50, color=RULES["base"].colour, linestyle=(0, (4, 2)), linewidth=1.2, label="guessing")
    theirs = [(row, (published or {}).get(model)) for row, model in alone["model"].items()]
    known = [(value, row) for row, value in theirs if value is not None]
    if known:
        marks = {"linestyle": "", "marker": "D", "markerfacecolor": "none", "color": "black"}
        axis.plot(*np.array(known).T, **marks, label="published, no interval")
    texts = [_note(row, gains, names) for _, row in alone.iterrows()]
    axis.set_yticks(alone.index, [_name(model, names) for model in alone["model"]])
    notes = axis.secondary_yaxis("right")
    notes.set_yticks(alone.index, texts)
    notes.tick_params(length=0)
    notes.spines["right"].set_visible(False)
    axis.set(xlabel=_xlabel(alone), ylim=(len(alone) - 0.5, -0.5))
    axis.grid(axis="y", visible=False)
    fig.legend(loc="outside upper center", ncols=3)
    return fig


def _name(model: str, names: Mapping[str, str] | None) -> str:
    return (names or {}).get(model, str(model).replace("_", " "))


def _note(row: pd.Series, gains: pd.DataFrame, names: Mapping[str, str] | None) -> str:
    text = f"ties {100 * row['ties']:.1f} %"
    if row["model"] not in gains.index:
        return text
    gain = gains.loc[row["model"]]
    value, low, high = (100 * gain[end] for end in ("value", "low", "high"))
    interval = "" if np.isnan(low) else f" [{low:+.1f}, {high:+.1f}]"
    return f"{text}\n{value:+.1f}{interval} points over {_name(gain['comparator'], names)}"


def _xlabel(alone: pd.DataFrame) -> str:
    n, users = int(alone["n"].iloc[0]), int(alone["n_clusters"].iloc[0])
    return f"held-out pairs ordered as the person does (%), ties count half; {n} pairs of {users} users"
