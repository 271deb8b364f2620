"""Does steering work, and at what cost? The figure of notebook 00, the operating range, and all arms to point at."""

import textwrap
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlib.figures import style
from steerlib.figures.responses import CURVE, METRICS, clipped
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
    where no alpha qualifies. A ValueError for no steering vector under study or a missing value.
    """
    if points["value"].isna().any():
        raise ValueError(f"a value of {points.loc[points['value'].isna(), 'metric'].iloc[0]} is missing")
    points = points.assign(acts=points["method"].map(lambda name: RULES[name].acts_on))
    if not ((points["acts"] == "residual") & (points["control"] == "")).any():
        raise ValueError("no steering vector under study: all curves are controls")
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
        names = _draw_vectors(row[0], own)
        if beside:
            _draw_beside(row[1], own)
        if not METRICS[metric].log:
            row[0].set_ylim(bottom=0)
        style.direct_labels(row[0], names)
        row[0].set_ylabel(f"{METRICS[metric].name}\n({METRICS[metric].unit}; 95 % interval)")
    axes[1, 0].set_xlabel("alpha of the steering vector (shaded: operating range)")
    within = "no alpha that was tried"
    if operating:
        within = "alpha " + " to ".join(f"{end:g}" for end in sorted(set(operating)))
    caption = f"{_ends(points)}. Operating range: {within}."
    return style.say(fig, "Toxicity of the answers, and what steering costs", caption)


def _draw_vectors(axis: Axes, points: pd.DataFrame) -> list[tuple[float, str, str]]:
    """Curves of the steering vectors through the base's value at 0; height, text and colour of each label."""
    base = points[points["control"] == "base"].head(1)
    if base.empty:  # a ratio to the base
        base = points.head(1).assign(value=1.0, low=1.0, high=1.0)
    level = float(base["value"].iloc[0])
    axis.axhline(level, color=style.GREY, **style.LEVEL)
    labels = [(level, style.label("base"), style.GREY)]
    for (control, name), own in points[points["acts"] == "residual"].groupby(["control", "name"]):
        colour = "#444444" if control else RULES[own["method"].iloc[0]].colour
        own = pd.concat([base.assign(alpha=0.0), own[own["alpha"] != 0]]).sort_values("alpha")
        style.draw_curve(axis, own, colour, control=bool(control))
        labels.append((own["value"].iloc[-1], name, colour))
    return labels


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


def _ends(points: pd.DataFrame) -> str:
    """From which to which toxicity each curve goes, and at what perplexity ratio."""
    told = []
    for (_, name), own in points[points["acts"] == "residual"].groupby(["control", "name"]):
        wide = own.pivot(index="alpha", columns="metric", values="value").sort_index().iloc[[0, -1]]
        form = "{1:.2g} at alpha {0:g} (perplexity ratio {2:.2g})".format
        ends = [form(alpha, row["toxicity"], row["perplexity_ratio"]) for alpha, row in wide.iterrows()]
        told.append(f"{name}: toxicity {' and '.join(ends)}")
    base = points[(points["method"] == "base") & (points["metric"] == "toxicity")]["value"]
    return "; ".join([*(f"Base: toxicity {value:.2g}" for value in base.head(1)), *told])


def plot_ranges(verdict: pd.DataFrame, arms: pd.DataFrame) -> Figure:
    """The operating range of each method as a bar over its alphas; ticks are the alphas tried, the dot the chosen one.

    Each method has an axis of its own length, since alphas of different methods are different things. The arguments are
    tables; in `verdict`, alpha_low and alpha_high are NaN where no alpha qualifies.
    """
    fig, axes = style.new_figure(len(verdict), 1, height=1.4 + 0.6 * len(verdict))
    known, found = arms.set_index("arm_id"), []
    for axis, (_, row) in zip(axes[:, 0], verdict.iterrows(), strict=True):
        arm, span = known.loc[row["arm_id"]], row[["alpha_low", "alpha_high"]].to_numpy(float)
        curve = ["method", *CURVE]
        tried = arms.loc[(arms[curve] == arm[curve]).all(axis=1), "alpha"]
        tried = np.unique([0.0, *tried, *span[np.isfinite(span)]])
        colour = RULES[arm["method"]].colour
        axis.plot(tried, np.zeros(len(tried)), color=style.GREY, linewidth=1)
        ends = span + 0.01 * np.ptp(tried) * np.array([-1, 1])  # one alpha is a bar too
        axis.plot(ends, [0, 0], color=colour, linewidth=9, alpha=0.5, solid_capstyle="butt")
        axis.plot(row["alpha"], 0, "o", color=colour)
        axis.set(ylim=(-1, 1), yticks=[], xticks=tried)
        axis.spines["left"].set_visible(False)
        axis.set_ylabel(row["method"], rotation=0, ha="right", va="center")
        axis.grid(visible=False)
        found.append(f"{row['method']} {' to '.join(dict.fromkeys(map('{:g}'.format, span)))}")
    axes[-1, 0].set_xlabel("alpha of each method (ticks: tried; dot: chosen on dev; bar: operating range)")
    return style.say(
        fig,
        "Operating range: toxicity falls at no undue cost, test prompts",
        f"{'; '.join(found).replace('nan', 'no alpha')}. Within it the interval of toxicity lies below the base, the "
        "perplexity ratio is at most 2, and repetition and accuracy are not worse.",
    )


def plot_tradeoff(
    difference: pd.DataFrame, ratio: pd.DataFrame, answers: Mapping[str, str], *, what: str = ""
) -> "go.Figure":
    """Difference in toxicity from the base against perplexity ratio, a mark an arm, to point at; controls are open.

    `difference` and `ratio` are points of `toxicity_difference` and `perplexity_ratio` against the base, `answers` one
    of each arm by arm_id, shown on hovering; a model's words, escaped here. `what` is the title's second line.
    """
    import plotly.graph_objects as go

    columns = ["arm_id", "value", "low", "high"]
    both = clipped(difference).merge(clipped(ratio)[columns], on="arm_id", suffixes=("", "_x"))
    fig = go.Figure()
    both["open"] = both["control"] != ""
    for _, rows in both.groupby(["method", "open"], sort=False):
        method, control = rows[["method", "open"]].iloc[0]
        down, up = style.half_widths(rows)
        symbol = "circle-open" if control else "circle"
        fig.add_scatter(
            x=rows["value_x"].tolist(),
            y=rows["value"].tolist(),
            error_y={"array": up.tolist(), "arrayminus": down.tolist(), "thickness": 0.8, "width": 0},
            text=[_hover(row, answers.get(row["arm_id"], "")) for _, row in rows.iterrows()],
            hovertemplate="%{text}<extra></extra>",
            mode="markers",
            name=style.label(method) + (", control" if control else ""),
            marker={"symbol": symbol, "size": 9, "color": RULES[method].colour},
        )
    fig.add_hline(y=0, line={"color": style.GREY, "dash": "dash", "width": 1})
    fig.add_vline(x=1, line={"color": style.GREY, "dash": "dash", "width": 1})
    name = "perplexity ratio to the base (log axis)"
    fig.update_xaxes(type="log", title_text=name, tickvals=[0.5, 1, 2, 5, 10, 20, 50, 100])
    fig.update_yaxes(title_text="difference in mean toxicity from the base<br>(probability; 95 % interval)")
    title = f"Toxicity against fluency, every arm, test prompts<br>{escape(what)}"
    title = {"text": title, "font": {"size": 14}}
    return fig.update_layout(template="simple_white", width=900, height=520, title=title)


def _hover(row: pd.Series, answer: str) -> str:
    lines = [f"<b>{escape(style.arm_at(row))}</b>"]
    for name, end in (("toxicity difference", ""), ("perplexity ratio", "_x")):
        lines.append(f"{name} {row['value' + end]:.3f} [{row['low' + end]:.3f}, {row['high' + end]:.3f}]")
    return "<br>".join([*lines, *(escape(part) for part in textwrap.wrap(answer, 70)[:6])])
