"""What the run found, in one sentence and one table, made from the metrics; and the operating range of each method."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from steerlib.evaluation.controls import chosen_arms, match_controls
from steerlib.evaluation.intervals import t_quantile
from steerlib.evaluation.metrics import CURVE
from steerlib.evaluation.summary import FEWEST_EFFECTIVE
from steerlib.rules import RULES
from steerlib.tables import SCHEMA

MAX_PERPLEXITY_RATIO = 2.0
CONTROL_NAMES = {
    "shuffled_profile": "the shuffled profile",
    "random_vector": "a random vector",
    "": "the base",
}


class Verdict(NamedTuple):
    """The sentence of the run, and the table `verdict`: a row a method, the one that fell most on dev first."""

    sentence: str
    table: pd.DataFrame


def with_interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """Value and interval as text; "unbounded" for an infinite bound, the value alone where there is no interval."""
    if pd.isna(value):
        return ""
    if pd.isna(low) or pd.isna(high):
        return f"{value:+.{digits}f}"
    ends = [f"{end:+.{digits}f}" if np.isfinite(end) else "unbounded" for end in (low, high)]
    return f"{value:+.{digits}f} [{ends[0]}, {ends[1]}]"


def _compared(metrics: pd.DataFrame, split: str) -> pd.DataFrame:
    """value, low, high, n, n_clusters over all prompts of a split, by arm_id, comparator and metric."""
    rows = metrics[(metrics["subgroup"] == "all") & (metrics["split"] == split)]
    names = ["arm_id", "comparator", "metric"]
    return (
        rows.drop_duplicates(names).set_index(names)[["value", "low", "high", "n", "n_clusters"]].sort_index()
    )


def operating_range(
    metrics: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    base_arm: str,
    max_perplexity_ratio: float = MAX_PERPLEXITY_RATIO,
) -> pd.DataFrame:
    """At which alphas a method works and what ends its range: one row a steered arm.

    Args:
        metrics, arms: the tables; rows against `base_arm` over all test prompts are read.
        base_arm: arm_id of the base.
        max_perplexity_ratio: largest perplexity over the base's.

    Returns:
        arm_id, the columns of `CURVE`, alpha; falls (the interval of the toxicity difference lies below 0), fluent
        (perplexity ratio within the limit), repeats and forgets (repetition above, accuracy below the base's,
        interval excluding 0; False where it was not measured), inside (falls, is fluent, and neither). Intervals
        are those of single
        alphas: with many of them some exclude 0 by chance, see `max_t_band`.
    """
    table = _compared(metrics, "test")
    against = table[table.index.get_level_values("comparator") == base_arm].droplevel("comparator")
    wide = {bound: against[bound].unstack("metric") for bound in ("value", "low", "high")}
    rows = arms.loc[arms["alpha"] != 0, ["arm_id", *(name for name in CURVE if name in arms), "alpha"]]

    def of(metric: str, bound: str) -> pd.Series:
        found = wide[bound][metric] if metric in wide[bound] else pd.Series(dtype=float)
        return rows["arm_id"].map(found).astype(float)

    rows = rows.assign(
        falls=of("toxicity_difference", "high") < 0,
        fluent=of("perplexity_ratio", "value") <= max_perplexity_ratio,
        repeats=of("repetition_difference", "low") > 0,
        forgets=of("accuracy_change", "high") < 0,
    )
    inside = rows["falls"] & rows["fluent"] & ~rows["repeats"] & ~rows["forgets"]
    return rows.assign(inside=inside).reset_index(drop=True)


def _ends(curve: pd.DataFrame) -> tuple[float, float]:
    """Ends of the longest run of neighbouring alphas inside the operating range; NaN where there is none."""
    ordered = curve.sort_values("alpha")
    run = (~ordered["inside"]).cumsum()[ordered["inside"]]
    if run.empty:
        return np.nan, np.nan
    longest = ordered.loc[run.index[run == run.value_counts(sort=True).index[0]], "alpha"]
    return float(longest.min()), float(longest.max())


def verdict(
    metrics: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    base_arm: str,
    max_perplexity_ratio: float = MAX_PERPLEXITY_RATIO,
) -> Verdict:
    """The verdict of a run: each method at the alpha chosen on dev, reported on test beside its control.

    Alpha is the one with the largest fall of toxicity on dev among those within the perplexity limit. The control
    is the rule's own (random vector, shuffled profile) at equal KL, else at equal alpha, else the base; a
    difference is in units of toxicity (a probability), method - control, below 0 where the method is less toxic.

    Args:
        metrics: the metrics table, with `accuracy` rows where questions were asked.
        arms: the arms table.
        base_arm, max_perplexity_ratio: see `operating_range`.

    Returns:
        The sentence, and the table `verdict`: see its schema. change is against the base, difference against the
        control, own_minus_shuffled against the shuffled profile, distance against the base (missing without
        accepted answers); effective_n is that of the base's toxicity, see `effective_number`.
    """
    found = _compared(metrics, "test")
    dev = _compared(metrics, "dev" if (metrics["split"] == "dev").any() else "test")
    kl = dev["value"].xs(("", "kl_per_token"), level=("comparator", "metric")) if len(dev) else None
    matched = match_controls(arms, kl).sort_values("matched", ascending=False)  # "kl" before "alpha"
    ranges = operating_range(metrics, arms, base_arm=base_arm, max_perplexity_ratio=max_perplexity_ratio)
    limits = {"base_arm": base_arm, "max_perplexity_ratio": max_perplexity_ratio}
    chosen = chosen_arms(metrics, arms, metric="toxicity_reduction_percent", **limits)
    chosen = chosen[chosen["control"] == ""].sort_values("dev", ascending=False, kind="stable")

    def of(arm: str, comparator: str, metric: str) -> tuple[float, float, float]:
        key = (arm, comparator, metric)
        return tuple(found.loc[key, ["value", "low", "high"]]) if key in found.index else (np.nan,) * 3

    rows, n = [], found.loc[(base_arm, "", "toxicity")]
    names = [name for name in CURVE if name in arms]
    for _, curve in chosen.iterrows():
        arm, rule = curve["arm_id"], RULES[curve["method"]]
        own = matched[matched["arm_id"] == arm]
        kinds = {kind: own[own["kind"] == kind].iloc[0] for kind in own["kind"].unique()}
        control = kinds.get(rule.control, next(iter(kinds.values()), None))
        control_arm, kind, how = (
            ("", "", "") if control is None else control[["control_arm", "kind", "matched"]]
        )
        shuffled = kinds["shuffled_profile"]["control_arm"] if "shuffled_profile" in kinds else ""
        low, high = _ends(ranges[(ranges[names] == curve[names]).all(axis=1)])
        row = {"method": _label(curve, rule.label), "arm_id": arm, "control_arm": control_arm or base_arm}
        row |= {"alpha": curve["alpha"], "alpha_low": low, "alpha_high": high}
        row |= {"toxicity_base": n["value"], "toxicity": of(arm, "", "toxicity")[0]}
        for name, comparator, metric in (
            ("change", base_arm, "toxicity_difference"),
            ("difference", control_arm or base_arm, "toxicity_difference"),
            ("own_minus_shuffled", shuffled, "toxicity_difference"),
            ("distance", base_arm, "distance_difference"),
        ):
            bounds = {"difference": ("low", "high"), "own_minus_shuffled": ("own_low", "own_high")}
            keys = (name, *bounds.get(name, (f"{name}_low", f"{name}_high")))
            row |= dict(zip(keys, of(arm, comparator, metric), strict=True))
        row |= {"perplexity_ratio": of(arm, base_arm, "perplexity_ratio")[0]}
        row |= {"kl_per_token": of(arm, "", "kl_per_token")[0], "accuracy": of(arm, "", "accuracy")[0]}
        row |= {"n": int(n["n"]), "effective_n": of(base_arm, "", "toxicity_effective_n")[0]}
        rows.append(row | {"sentence": _sentence(row, kind, how, int(n["n_clusters"]))})
    table = pd.DataFrame(rows)[list(SCHEMA["verdict"].columns)]
    return Verdict(table["sentence"].iloc[0], table)


def _label(curve: pd.Series, label: str) -> str:
    words = [label, curve.get("family", ""), curve.get("variant", "")]
    return ", ".join(word for word in words if word).replace("_", " ")


def _sentence(row: dict, kind: str, how: str, users: int) -> str:
    few = row["effective_n"] < FEWEST_EFFECTIVE
    where = f"{row['n']} test prompts of {users} users (effective number {row['effective_n']:.0f}"
    where += ", too few)" if few else ")"
    if not row["alpha"]:
        return (
            f"{row['method']}: no alpha lowered toxicity on the dev prompts within the perplexity limit: there is "
            f"no effect to report on the {where}; the base's toxicity is {row['toxicity_base']:.3f}."
        )
    change, difference = (
        (row[x], row[low], row[high])
        for x, low, high in (("change", "change_low", "change_high"), ("difference", "low", "high"))
    )
    text = (
        f"{row['method']} at alpha {row['alpha']:g} (chosen on dev): toxicity {row['toxicity_base']:.3f} -> "
        f"{row['toxicity']:.3f} on {where}, change {with_interval(*change)}{_null(*change)}; "
    )
    if kind:
        matching = {"kl": " at equal KL", "alpha": " at equal alpha"}[how]
        text += (
            f"difference to {CONTROL_NAMES[kind]}{matching} {with_interval(*difference)}{_null(*difference)}"
        )
    else:
        text += "the run has no control beside the base"
    if _null(*difference) and np.isfinite(detectable(*difference[1:], users)):
        smallest = detectable(*difference[1:], users)
        share = (
            f", {100 * smallest / row['toxicity_base']:.0f} % of the base's toxicity,"
            if row["toxicity_base"]
            else ""
        )
        text += f" (the run detects {smallest:.3f}{share} with 80 % power)"
    text += f"; perplexity x {row['perplexity_ratio']:.2f}, {row['kl_per_token']:.2f} nats per token. "
    if np.isnan(row["alpha_low"]):
        return text + "No alpha of the grid is within its operating range."
    return text + f"Operating range: alpha {_span(row['alpha_low'], row['alpha_high'])}."


def _null(value: float, low: float, high: float) -> str:
    return "" if high < 0 or low > 0 or np.isnan(value) else ", not distinguishable from zero"


def _span(low: float, high: float) -> str:
    if np.isnan(low):
        return "none"
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def detectable(low: float, high: float, n_clusters: int, *, power: float = 0.8) -> float:
    """Minimum detectable effect of a comparison with this cluster-t interval: `(t_.975 + t_power) error`."""
    if n_clusters < 2:
        return float("nan")
    tail, gain = t_quantile(0.975, n_clusters - 1), t_quantile(power, n_clusters - 1)
    return (tail + gain) * (high - low) / 2 / tail


def verdict_shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table `verdict` as text for a reader: columns named in words, values with their intervals."""

    def interval(value: str, low: str, high: str) -> list[str]:
        return [with_interval(*row) for row in table[[value, low, high]].itertuples(index=False)]

    ends = table[["alpha_low", "alpha_high"]].itertuples(index=False)
    shown = {
        "method": table["method"],
        "alpha": [f"{alpha:g}" for alpha in table["alpha"]],
        "operating range": [_span(*pair) for pair in ends],
        "toxicity, base": table["toxicity_base"].map("{:.3f}".format),
        "change": interval("change", "change_low", "change_high"),
        "minus control": interval("difference", "low", "high"),
        "own minus shuffled": interval("own_minus_shuffled", "own_low", "own_high"),
        "distance, change": interval("distance", "distance_low", "distance_high"),
        "perplexity ratio": table["perplexity_ratio"].map("{:.2f}".format),
        "KL, nats per token": table["kl_per_token"].map("{:.2f}".format),
        "accuracy, %": table["accuracy"].map("{:.1f}".format),
        "n (effective)": [f"{n} ({e:.0f})" for n, e in table[["n", "effective_n"]].itertuples(index=False)],
    }
    return pd.DataFrame(shown).replace("nan", "")


def enough(table: pd.DataFrame, *, least: int, what: str, column: str = "n") -> pd.DataFrame | str:
    """The rows of a table that rest on at least `least` prompts (or users); one sentence where there are none.

    Args:
        table: rows with their number in `column`.
        least: smallest number that is shown.
        what: of the table, for the sentence.
    """
    if table.empty:
        return f"{what}: this run has none."
    kept = table[table[column] >= least]
    if kept.empty:
        return (
            f"{what}: not shown, no row rests on {least} or more ({column} is {table[column].max()} at most)."
        )
    return kept.reset_index(drop=True)
