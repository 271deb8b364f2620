"""What steering does as alpha grows, what it costs, and the controls beside it: figures of notebook 05."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlib.figures import style
from steerlib.rules import RULES


class Metric(NamedTuple):
    """How a metric is drawn: its name, its unit, the range it cannot leave, and whether its axis is logarithmic."""

    name: str
    unit: str
    low: float = -np.inf
    high: float = np.inf
    log: bool = False


METRICS: Mapping[str, Metric] = {
    "toxicity": Metric("mean toxicity of the answers", "probability", 0, 1),
    "distance": Metric("toxicity distance to the accepted answers", "probability", 0, 1),
    "toxicity_difference": Metric("difference in mean toxicity", "probability", -1, 1),
    "perplexity_ratio": Metric("perplexity ratio to the base", "log axis", 0, log=True),
    "kl_per_token": Metric("KL(steered || base)", "nats per token", 0),
    "reduction_percent": Metric("reduction of toxicity distance", "%", high=100),
    "toxicity_reduction_percent": Metric("reduction of toxicity", "%", high=100),
    "net_margin": Metric("net win margin, (won - lost) / all", "share", -1, 1),
}
ARM = ["arm_id", "method", "alpha", "profile", "family", "vector_user", "control", "variant"]
CURVE = ["control", "profile", "family", "vector_user", "variant"]


def points(metrics: pd.DataFrame, arms: pd.DataFrame, metric: str, *, comparator: str = "") -> pd.DataFrame:
    """One metric of every arm over all test prompts, with the columns of the arms table that set arms apart.

    Rows are sorted by method, control and alpha. `comparator` is the arm_id of what the arms are compared with, empty
    for a metric of the arm alone. A KeyError where no row is left; a ValueError where an arm is unknown or has several
    values.
    """
    asked = {"metric": metric, "comparator": comparator, "subgroup": "all", "split": "test"}
    rows = metrics[(metrics[list(asked)] == pd.Series(asked)).all(axis=1)]
    if rows.empty:
        raise KeyError(f"no row has {asked}; the metrics are {', '.join(sorted(metrics['metric'].unique()))}")
    unknown = sorted(set(rows["arm_id"]) - set(arms["arm_id"]))
    if unknown:
        raise ValueError(f"{len(unknown)} arms are not in the arms table, the first is {unknown[0]!r}")
    if rows["arm_id"].duplicated().any():
        raise ValueError(f"{metric}: an arm has several values, by {', '.join(rows['scorer'].unique())}")
    joined = rows.merge(arms[ARM], on="arm_id", validate="one_to_one")
    joined["_order"] = joined["method"].map(list(RULES).index)
    joined = joined.sort_values(["_order", *CURVE, "alpha"], ignore_index=True)
    return joined.drop(columns="_order")


def curves(rows: pd.DataFrame) -> Iterator[tuple[str, bool, pd.DataFrame]]:
    """Each curve of one method: its name, whether it is a control, and its rows by alpha; controls come last."""
    for _, own in rows.sort_values([*CURVE, "alpha"]).groupby(CURVE, sort=True):
        yield style.arm_name(own.iloc[0], method=False), own["control"].iloc[0] != "", own


def clipped(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with intervals cut to the range that their metric cannot leave; an unbounded interval is none."""
    metric, bounded = METRICS[rows["metric"].iloc[0]], np.isfinite(rows[["low", "high"]]).all(axis=1)
    cut = {end: rows[end].where(bounded).clip(metric.low, metric.high) for end in ("low", "high")}
    return rows.assign(**cut)


def plot_against_alpha(points: pd.DataFrame) -> Figure:
    """A metric against alpha: a panel a method, its controls beside it, on one scale; base and prompts are levels.

    Bands and bars are 95 % intervals. A curve starts where its alpha is 0: at the base, or at the instruction alone.
    A ValueError where no arm has a strength.
    """
    points, metric = clipped(points), METRICS[points["metric"].iloc[0]]
    methods = [name for name in dict.fromkeys(points["method"]) if RULES[name].has_alpha]
    if not methods:
        raise ValueError(f"no arm has a strength, of {', '.join(points['method'].unique())}")
    n_rows = -(-len(methods) // 2)
    fig, axes = style.new_figure(n_rows, min(2, len(methods)), height=1.2 + 2.4 * n_rows, sharey=True)
    if metric.log:
        style.log_scale(axes[0, 0])
    drawn = [_draw_method(axis, points, method) for axis, method in zip(axes.flat, methods, strict=False)]
    if metric.low == 0 and not metric.log:
        axes[0, 0].set_ylim(bottom=0)
    for axis, names in zip(axes.flat, drawn, strict=False):
        style.direct_labels(axis, names)
    for axis in axes.flat[len(methods) :]:
        axis.set_visible(False)
    fig.supylabel(f"{metric.name}\n({metric.unit}; 95 % interval)", fontsize=9)
    title = f"{metric.name[0].upper()}{metric.name[1:]} against alpha, test prompts"
    base = [f"Base {number(row)}" for _, row in points[points["control"] == "base"].iterrows()]
    return style.say(fig, title, "; ".join([*base, *(_reached(points, method) for method in methods)]) + ".")


def _draw_method(axis: Axes, points: pd.DataFrame, method: str) -> list[tuple[float, str, str]]:
    """Draw one method's panel; height, text and colour of each label."""
    rule, own = RULES[method], points[points["method"] == method]
    none = 1.0 if METRICS[points["metric"].iloc[0]].log else 0.0
    levels = {"base": points.head(1).assign(value=none, low=none, high=none)}
    levels |= {name: rows.head(1) for name, rows in points[points["profile"] != "shuffled"].groupby("method")}
    labels = []
    for name, row in levels.items():
        # The base, and the contexts that the method reads, alone as a prompt.
        if not RULES[name].has_alpha and {*RULES[name].branches} <= {*rule.branches}:
            labels.append((row["value"].item(), style.label(name), RULES[name].colour))
            axis.axhline(row["value"].item(), color=RULES[name].colour, **style.LEVEL)
    for name, control, rows in curves(own):
        start = levels[rule.zero if rule.zero in levels else "base"].assign(alpha=0.0)
        drawn = pd.concat([start, rows]) if len(rows) > 1 else rows
        style.draw_curve(axis, drawn, rule.colour, control=control)
        labels.append((rows["value"].iloc[-1], name, rule.colour))
    axis.set(title=rule.label, xlabel=f"{rule.symbol} of {rule.label}")
    return labels


def _reached(points: pd.DataFrame, method: str) -> str:
    """What a method's first curve reaches at its largest alpha, and what its control reaches there."""
    found = list(curves(points[points["method"] == method]))
    last = found[0][2].iloc[-1]
    text = f"{style.label(method)} reaches {number(last)} at {RULES[method].symbol} {last['alpha']:g}"
    beside = [(name, rows[rows["alpha"] == last["alpha"]]) for name, control, rows in found if control]
    return text + "".join(f" ({name} {number(rows.iloc[0])})" for name, rows in beside[:1] if len(rows))


def number(row: pd.Series) -> str:
    """A value with its interval in brackets."""
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.2g}, {row['high']:.2g}]"
    return f"{row['value']:.2g}{interval}"


def plot_forest(points: pd.DataFrame, *, what: str, hollow: str = "controls") -> Figure:
    """Values with their 95 % intervals, one a line, for instance the chosen arms, each method's controls next to it.

    Rows are those of `points`, or have metric (one of `METRICS`), method, control, value, low, high, and `name` of
    each line. The title says what is compared, the caption what the hollow marks of rows with a control are.
    """
    rows, metric = clipped(points.reset_index(drop=True)), METRICS[points["metric"].iloc[0]]
    names = list(rows["name"]) if "name" in rows else [style.arm_at(row) for _, row in rows.iterrows()]
    fig, axes = style.new_figure(height=1.5 + 0.3 * len(rows))
    axis = axes[0, 0]
    axis.axvline(0, color=style.GREY, **style.LEVEL)
    for line, row in rows.iterrows():
        axis.errorbar(row["value"], line, xerr=style.half_widths(rows.loc[[line]]), **style.mark(row))
    axis.set_yticks(range(len(rows)), names)
    axis.set(xlabel=f"{metric.name} ({metric.unit}; 95 % interval)", ylim=(len(rows) - 0.5, -0.5))
    axis.grid(axis="y", visible=False)
    apart = rows[(rows["low"] > 0) | (rows["high"] < 0)]  # controls too: they may do as much
    told = "; ".join(f"{names[line]} {number(row)}" for line, row in apart.iterrows()) or "none"
    caption = f"Intervals that exclude 0: {told}. Open marks: {hollow}."
    return style.say(fig, f"{metric.name[0].upper()}{metric.name[1:]}, {what}", caption)
