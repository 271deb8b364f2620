"""What each arm changes, how far it moves the model, and the controls beside it: figures of notebook 05."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
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
    "toxicity_difference": Metric("difference in mean toxicity", "probability", -1, 1),
    "perplexity_ratio": Metric("perplexity ratio to the base", "log axis", 0, log=True),
}
ARM = ["arm_id", "method", "alpha", "profile", "family", "vector_user", "control", "variant"]
SMALL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "color": "#444444"}
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
    joined = rows.merge(arms[ARM], on="arm_id", validate="one_to_one")
    joined = joined.assign(order=joined["method"].map(list(RULES).index))
    return joined.sort_values(["order", *CURVE, "alpha"], ignore_index=True).drop(columns="order")


def clipped(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with intervals cut to the range that their metric cannot leave; an unbounded interval is none."""
    metric, bounded = METRICS[rows["metric"].iloc[0]], np.isfinite(rows[["low", "high"]]).all(axis=1)
    cut = {end: rows[end].where(bounded).clip(metric.low, metric.high) for end in ("low", "high")}
    return rows.assign(**cut)


def plot_against_kl(
    difference: pd.DataFrame, kl: pd.DataFrame, ratio: pd.DataFrame, *, max_perplexity_ratio: float
) -> Figure:
    """Change of toxicity from the base against KL per token (log axis), a mark an arm, a line through its alphas.

    Controls are open and dashed; arms whose perplexity ratio is above the limit are faded. Bars are 95 % intervals.

    Args:
        difference, kl, ratio: `points` of `toxicity_difference`, `kl_per_token` and `perplexity_ratio`.
        max_perplexity_ratio: the limit within which alpha is chosen.
    """
    rows = clipped(difference).assign(line=lambda rows: [style.arm_name(row) for _, row in rows.iterrows()])
    for name, other in {"kl": kl, "ratio": ratio}.items():
        rows[name] = rows["arm_id"].map(other.set_index("arm_id")["value"])
    shapes = dict(zip(rows["line"].unique(), itertools.cycle("osD^vP*X"), strict=False))
    fig, axes = style.new_figure(height=max(4.6, 1.5 + 0.2 * len(shapes)))
    axis = axes[0, 0]
    axis.axhline(0, color=style.GREY, **style.LEVEL)
    for name, own in rows.groupby("line", sort=False):
        own = own.sort_values("alpha")
        look = style.mark(own.iloc[0]) | {"marker": shapes[name]}
        dashes = (0, (3, 2)) if own["control"].iloc[0] else "-"
        axis.plot(own["kl"], own["value"], **look, linewidth=0.9, linestyle=dashes, alpha=0.3)
        for fluent, marks in own.groupby(own["ratio"] <= max_perplexity_ratio):
            shown = {"linestyle": "none", "alpha": 1.0 if fluent else 0.3}
            axis.errorbar(
                marks["kl"], marks["value"], yerr=style.half_widths(marks), **look, **shown, elinewidth=1
            )
        axis.plot([], [], **look, linewidth=0.9, linestyle=dashes, label=name)
        if len(own) > 1 and not own["control"].iloc[0]:
            for _, row in own.iterrows():
                axis.annotate(f"{row['alpha']:g}", (row["kl"], row["value"]), (5, -9), **SMALL)
    style.log_scale(axis, "x")
    axis.set_xlabel("KL(steered || base), nats per token (log axis; numbers at marks: alpha)")
    axis.set_ylabel("change of mean toxicity from the base\n(probability; 95 % interval)")
    style.beside(axis)
    fluent = rows[(rows["control"] == "") & (rows["ratio"] <= max_perplexity_ratio)]
    told = f"No arm under study stays within {max_perplexity_ratio:g} times the base's perplexity."
    if len(fluent):
        best = fluent.loc[fluent["value"].idxmin()]
        told = (
            f"Of the arms within {max_perplexity_ratio:g} times the base's perplexity, {style.arm_at(best)} has "
            f"the lowest toxicity: change {number(best)} at {best['kl']:.2g} nats per token."
        )
    faded = int((rows["ratio"] > max_perplexity_ratio).sum())
    told += f" Faded: {faded} above this limit." if faded else ""
    return style.say(fig, "Change of toxicity against how far an arm moves the model, test prompts", told)


def verdict_effects(verdict: pd.DataFrame, arms: pd.DataFrame) -> pd.DataFrame:
    """Rows for `plot_forest`: each method of the verdict minus the base, minus its control, minus its shuffled profile.

    A comparison that the verdict holds twice (the control is the shuffled profile, or the base) is drawn once; one that
    it lacks is left out. Names give KL per token of both, since the verdict compares at equal KL where it can.
    """
    known, rows = arms.set_index("arm_id"), []
    for _, row in verdict.iterrows():
        control = known.loc[row["control_arm"], "control"]
        compared = {"base": ("change", "change_low", "change_high", "")}
        compared.setdefault(control.replace("_", " "), ("difference", "low", "high", "control_kl"))
        compared.setdefault("shuffled profile", ("own_minus_shuffled", "own_low", "own_high", "shuffled_kl"))
        arm = style.arm_at(known.loc[row["arm_id"]].copy())
        for against, (value, low, high, kl) in compared.items():
            beside = f" (KL {row['kl_per_token']:.2f}, {row[kl]:.2f})" if kl else ""
            name = f"minus {against}{beside}" if kl else f"{arm}: minus base"
            numbers = dict(zip(("value", "low", "high"), row[[value, low, high]], strict=True))
            rows.append(
                {"name": name, "method": known.loc[row["arm_id"], "method"], "control": kl, **numbers}
            )
    found = pd.DataFrame(rows, columns=["name", "method", "control", "value", "low", "high"])
    return found.dropna(subset="value").assign(metric="toxicity_difference").reset_index(drop=True)


def number(row: pd.Series) -> str:
    """A value with its interval in brackets."""
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['value']:.2f}{interval}"


def plot_forest(points: pd.DataFrame, *, what: str, hollow: str = "controls", found: str = "") -> Figure:
    """Values with their 95 % intervals, one a line, for instance the chosen arms, each method's controls next to it.

    Rows are those of `points`, or have metric (one of `METRICS`), method, control, value, low, high, and `name` of
    each line. The title says what is compared, the caption what is found (by default the
    names whose interval excludes 0) and what the hollow marks of rows with a control are.
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
    told = "; ".join(names[line] for line in apart.index) or "none"
    found = found or f"Intervals that exclude 0: {told}."
    caption = f"{found} Open marks: {hollow}."
    return style.say(fig, f"{metric.name[0].upper()}{metric.name[1:]}, {what}", caption)
