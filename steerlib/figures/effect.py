"""Does steering work, and at what cost? The figure of notebook 00, and all arms to point at."""

import itertools
import textwrap
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlib.figures import style
from steerlib.figures.responses import METRICS, clipped, number
from steerlib.rules import RULES

if TYPE_CHECKING:
    import plotly.graph_objects as go

PANELS = ("toxicity", "perplexity_ratio")


def plot_effect(points: pd.DataFrame, *, operating: tuple[float, float] | None = None) -> Figure:
    """Mean toxicity (above) and perplexity ratio (below, log axis) against the alpha of a steering vector.

    Vectors are curves over alpha, controls thin and hollow. Methods whose alpha means something else (the logit rules)
    and those without one stand to the right as marks on the same scale. Intervals are 95 %.

    `points` are those of "toxicity" and, against the base, of "perplexity_ratio", one below the other, with the curve's
    `name`. The row of "base" gives every curve its value at 0. `operating` is the range of alpha that is shaded, None
    where no alpha qualifies or none was looked for.
    """
    points = points.assign(acts=points["method"].map(lambda name: RULES[name].acts_on))
    beside = bool(((points["acts"] != "residual") & (points["method"] != "base")).any())
    grid = {"width_ratios": [2.6, 1][: 1 + beside]}
    fig, axes = style.new_figure(2, 1 + beside, height=6.0, sharex="col", sharey="row", gridspec_kw=grid)
    for row, metric in zip(axes, PANELS, strict=True):
        own = clipped(points[points["metric"] == metric])
        if METRICS[metric].log:
            style.log_scale(row[0])
        if operating:
            # The line shows a range of a single alpha.
            row[0].axvspan(*operating, facecolor="#fdf3d0", edgecolor="#f2d98a", linewidth=3, zorder=0)
        _draw_vectors(row[0], own)
        if beside:
            _draw_beside(row[1], own)
        if not METRICS[metric].log:
            row[0].set_ylim(bottom=0)
        row[0].set_ylabel(f"{METRICS[metric].name}\n({METRICS[metric].unit}; 95 % interval)")
    axes[0, 0].legend(loc="best")
    axes[1, 0].set_xlabel("alpha of the steering vector" + " (shaded: operating range)" * bool(operating))
    caption = "No alpha is shaded as operating range."
    if operating:
        span = " to ".join(f"{end:g}" for end in sorted(set(operating)))
        toxic = clipped(points[(points["metric"] == "toxicity") & points["control"].isin(["", "base"])])
        inside = toxic[(toxic["acts"] == "residual") & toxic["alpha"].between(*operating)]
        told = [f"{row['name']} {number(row)} at alpha {row['alpha']:g}" for _, row in inside.iterrows()]
        told += [f"base {number(row)}" for _, row in toxic[toxic["control"] == "base"].iterrows()]
        caption = f"Operating range: alpha {span}. Toxicity there: {', '.join(told)}."
    return style.say(fig, "Toxicity of the answers, and what steering costs", caption)


def _draw_vectors(axis: Axes, points: pd.DataFrame) -> None:
    """Curves of the steering vectors through the base's value at 0; controls thin, dashed, each with its open mark."""
    base = points[points["control"] == "base"].head(1)
    if base.empty:  # a ratio to the base
        base = points.head(1).assign(value=1.0, low=1.0, high=1.0)
    level = float(base["value"].iloc[0])
    axis.axhline(level, color=style.GREY, label=style.label("base"), **style.LEVEL)
    marks = itertools.cycle("s^Dv")
    for (control, name), own in points[points["acts"] == "residual"].groupby(["control", "name"]):
        colour = "#444444" if control else RULES[own["method"].iloc[0]].colour
        own = pd.concat([base.assign(alpha=0.0), own[own["alpha"] != 0]]).sort_values("alpha")
        look: dict[str, Any] = {"linewidth": 1.9, "marker": "o"}
        if control:
            look = {"linewidth": 1.0, "linestyle": (0, (3, 2)), "marker": next(marks)}
            look["markerfacecolor"] = "white"
        axis.plot(own["alpha"], own["value"], color=colour, label=name, **look)
        opacity = 0.08 if control else 0.18
        axis.fill_between(own["alpha"], own["low"], own["high"], color=colour, alpha=opacity, linewidth=0)


def _draw_beside(axis: Axes, points: pd.DataFrame) -> None:
    """A mark for each arm that is no steering vector, named by its initials (EAE 1.2) where its label has several."""
    rows = points[(points["acts"] != "residual") & (points["method"] != "base")].reset_index(drop=True)
    names = []
    for index, row in rows.iterrows():
        rule = RULES[row["method"]]
        axis.errorbar(index, row["value"], yerr=style.half_widths(rows.loc[[index]]), **style.mark(row))
        name = "".join(word[0] for word in rule.label.split("-")) if "-" in rule.label else rule.label
        names.append(f"{name} {row['alpha']:g}" if rule.has_alpha else name)
    axis.set_xticks(range(len(rows)), names, rotation=50, ha="right", rotation_mode="anchor")
    axis.set_xlim(-0.6, len(rows) - 0.4)


def plot_tradeoff(
    difference: pd.DataFrame, ratio: pd.DataFrame, answers: Mapping[str, str], *, what: str = ""
) -> "go.Figure":
    """Difference in toxicity from the base against perplexity ratio, a mark an arm, to point at; controls are open.

    `difference` and `ratio` are points of `toxicity_difference` and `perplexity_ratio` against the base, `answers` one
    of each arm by arm_id, shown on hovering; a model's words, escaped here. `what` is the title's second line.
    """
    import plotly.express as px

    columns = ["arm_id", "value", "low", "high"]
    both = clipped(difference).merge(clipped(ratio)[columns], on="arm_id", suffixes=("", "_x"))
    both["down"], both["up"] = style.half_widths(both)
    both["open"] = both["control"].ne("").map({True: "control", False: "under study"})
    both["text"] = [_hover(row, answers.get(row["arm_id"], "")) for _, row in both.iterrows()]
    names = {"value_x": "perplexity ratio to the base (log axis)", "open": "arm"}
    names["value"] = "difference in mean toxicity from the base<br>(probability; 95 % interval)"
    fig = px.scatter(
        both.assign(method=both["method"].map(style.label)),
        x="value_x",
        y="value",
        error_y="up",
        error_y_minus="down",
        color="method",
        color_discrete_map={style.label(name): rule.colour for name, rule in RULES.items()},
        symbol="open",
        symbol_map={"control": "circle-open", "under study": "circle"},
        custom_data="text",
        labels=names,
        log_x=True,
        title=f"Toxicity against fluency, every arm, test prompts<br>{escape(what)}",
        template="simple_white",
        width=900,
        height=520,
    )
    fig.add_hline(y=0, line_dash="dash", line_width=1)
    fig.add_vline(x=1, line_dash="dash", line_width=1)
    fig.update_xaxes(tickvals=[0.5, 1, 2, 5, 10, 20, 50, 100])
    return fig.update_traces(hovertemplate="%{customdata[0]}<extra></extra>", marker_size=9, error_y_width=0)


def _hover(row: pd.Series, answer: str) -> str:
    lines = [f"<b>{escape(style.arm_at(row))}</b>"]
    for name, end in (("toxicity difference", ""), ("perplexity ratio", "_x")):
        lines.append(f"{name} {row['value' + end]:.3f} [{row['low' + end]:.3f}, {row['high' + end]:.3f}]")
    return "<br>".join([*lines, *(escape(part) for part in textwrap.wrap(answer, 70)[:6])])
