"""What the run found, in one sentence and one table, made from the metrics; and the operating range of each method."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from steerlib.evaluation.controls import CURVE, chosen_arms, match_controls
from steerlib.evaluation.intervals import paired_interval, t_quantile
from steerlib.evaluation.summary import FEWEST_EFFECTIVE
from steerlib.rules import RULES
from steerlib.tables import SCHEMA

CONTROLS = {"shuffled_profile": "the shuffled profile", "random_vector": "a random vector", "": "the base"}
OWN = ("own_minus_shuffled", "own_low", "own_high")
BOUNDS = {"difference": ("difference", "low", "high"), OWN[0]: OWN}
KLS = {"difference": "control_kl", OWN[0]: "shuffled_kl"}
MATCHED = {"kl": " at equal KL", "alpha": " at equal alpha", "": " (the run has no other control)"}


def with_interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """Value and interval as text; "unbounded" for an infinite bound, the value alone where there is no interval."""
    if pd.isna(value):
        return ""
    if pd.isna(low) or pd.isna(high):
        return f"{value:+.{digits}f}"
    ends = [f"{end:+.{digits}f}" if np.isfinite(end) else "unbounded" for end in (low, high)]
    return f"{value:+.{digits}f} [{ends[0]}, {ends[1]}]"


def difference_text(values: pd.DataFrame, first: str, second: str, users: pd.Series) -> str:
    """Mean of one column (an arm) minus that of another over the prompts that `users` names, with its interval."""
    pair = values.loc[users.index, first], values.loc[users.index, second]
    return with_interval(*paired_interval(*pair, users, within=(-1, 1))[:3])


def _over_all(metrics: pd.DataFrame, split: str) -> pd.DataFrame:
    """value, low, high, n, n_clusters over all prompts of a split, by arm_id, comparator and metric."""
    rows = metrics[(metrics["subgroup"] == "all") & (metrics["split"] == split)]
    names = ["arm_id", "comparator", "metric"]
    rows = rows.drop_duplicates(names).set_index(names).sort_index()
    return rows[["value", "low", "high", "n", "n_clusters"]]


def operating_range(
    metrics: pd.DataFrame, arms: pd.DataFrame, *, base_arm: str, max_perplexity_ratio: float
) -> pd.DataFrame:
    """At which alphas a method works and what ends its range, against base over all test prompts: a row a steered arm.

    arm_id, the columns of `CURVE`, alpha; falls (the interval of the toxicity difference lies below 0), fluent
    (perplexity ratio within the limit), repeats and forgets (repetition above, accuracy below the base's, interval
    excluding 0; False where not measured), inside (falls, fluent, and neither of these). Intervals are those of
    single alphas: with many of them some exclude 0 by chance, see `max_t_band`.
    """
    against = _over_all(metrics, "test").xs(base_arm, level="comparator").unstack("metric")
    rows = arms.loc[arms["alpha"] != 0, ["arm_id", *CURVE, "alpha"]]

    def of(bound: str, metric: str) -> pd.Series:
        return rows["arm_id"].map(against.get((bound, metric), pd.Series(dtype=float))).astype(float)

    rows = rows.assign(
        falls=of("high", "toxicity_difference") < 0,
        fluent=of("value", "perplexity_ratio") <= max_perplexity_ratio,
        repeats=of("low", "repetition_difference") > 0,
        forgets=of("high", "accuracy_change") < 0,
    )
    inside = rows["falls"] & rows["fluent"] & ~rows["repeats"] & ~rows["forgets"]
    return rows.assign(inside=inside).reset_index(drop=True)


def _ends(curve: pd.DataFrame) -> tuple[float, float]:
    """Ends of the longest run of neighbouring alphas inside the operating range; NaN where there is none."""
    ordered = curve.sort_values("alpha")
    runs = [run for _, run in ordered[ordered["inside"]].groupby((~ordered["inside"]).cumsum())["alpha"]]
    longest = max(runs, key=len, default=pd.Series([np.nan]))
    return float(longest.min()), float(longest.max())


def verdict(
    metrics: pd.DataFrame, arms: pd.DataFrame, *, base_arm: str, max_perplexity_ratio: float
) -> pd.DataFrame:
    """The table `verdict`: each method at the alpha chosen on dev, reported on test beside its control.

    A row a method, the one that fell most on dev first; its sentence says what was found.

    For alpha see `chosen_arms`. The control is the rule's own (random vector, shuffled profile) at equal KL (see
    `match_controls`; KL is measured on dev, and the weights are fixed in the intervals of the paired difference), else
    at equal alpha, else the base.

    The table's differences are method - comparator in units of toxicity, below 0 where the method is less toxic: change
    (from the base), difference (to the control), own_minus_shuffled; distance is the change of the toxicity distance
    (missing without accepted answers). control_arm is the arm next to the control. KL per token of method, control and
    shuffled profile are measured on test. alpha_low and alpha_high are the operating range, effective_n is that of the
    base's toxicity, see `effective_number`.
    """
    limits = {"base_arm": base_arm, "max_perplexity_ratio": max_perplexity_ratio}
    chosen = chosen_arms(metrics, arms, **limits)
    ranges, names = operating_range(metrics, arms, **limits), list(CURVE)
    known = metrics[(metrics["metric"] == "kl_per_token") & (metrics["subgroup"] == "all")]
    known = known[known["split"] == ("dev" if (metrics["split"] == "dev").any() else "test")]
    matched = match_controls(arms, known.set_index("arm_id")["value"])
    matched["comparator"] = matched["control_arm"].where(matched["matched"] == "alpha", matched["kind"])
    matched = matched.sort_values("matched", ascending=False)  # "kl" before "alpha"
    found, nothing = _over_all(metrics, "test"), (np.nan,) * 3
    base, rows = found.loc[(base_arm, "", "toxicity")], []

    def of(arm: str, metric: str, comparator: str = "") -> tuple[float, ...]:
        key = (arm, comparator, metric)
        return tuple(found.loc[key, ["value", "low", "high"]]) if key in found.index else nothing

    def kl_of(arm: str, control: pd.Series) -> float:
        if control["matched"] == "kl":
            return of(arm, "control_kl_per_token", control["comparator"])[0]
        return of(control["control_arm"], "kl_per_token")[0]

    chosen = chosen[chosen["control"] == ""].sort_values("dev", ascending=False, kind="stable")
    for _, curve in chosen.iterrows():
        arm, rule = curve["arm_id"], RULES[curve["method"]]
        own = matched[matched["arm_id"] == arm].drop_duplicates("kind").set_index("kind")
        kind = rule.control if rule.control in own.index else next(iter(own.index), "")
        nobody = pd.Series({"control_arm": base_arm, "comparator": base_arm, "matched": ""})
        control = own.loc[kind] if kind else nobody
        shuffled = own.loc["shuffled_profile"] if "shuffled_profile" in own.index else None
        words = [rule.label, curve["family"], curve["variant"]]
        row = {"method": ", ".join(filter(None, words)).replace("_", " "), "arm_id": arm}
        of_curve = ranges[(ranges[names] == curve[names]).all(axis=1)]
        row |= {"control_arm": control["control_arm"], "alpha": curve["alpha"]}
        row |= {"toxicity_base": base["value"], "toxicity": of(arm, "toxicity")[0]}
        row["alpha_low"], row["alpha_high"] = _ends(of_curve)
        for columns, comparator, metric in (
            (("change", "change_low", "change_high"), base_arm, "toxicity_difference"),
            (("difference", "low", "high"), control["comparator"], "toxicity_difference"),
            (OWN, "none" if shuffled is None else shuffled["comparator"], "toxicity_difference"),
            (("distance", "distance_low", "distance_high"), base_arm, "distance_difference"),
        ):
            row |= dict(zip(columns, of(arm, metric, comparator), strict=True))
        row |= {name: of(arm, name)[0] for name in ("accuracy", "kl_per_token")}
        asked = (arm, "", "accuracy")
        row["questions"] = int(found.loc[asked, "n_clusters"]) if asked in found.index else 0
        for name, one in (("control_kl", control), ("shuffled_kl", shuffled)):
            row[name] = np.nan if one is None else kl_of(arm, one)
        row["perplexity_ratio"] = of(arm, "perplexity_ratio", base_arm)[0]
        row |= {"n": int(base["n"]), "effective_n": of(base_arm, "toxicity_effective_n")[0]}
        against = {"difference": (kind, control["matched"])}
        if shuffled is not None and kind != "shuffled_profile":
            against["own_minus_shuffled"] = ("shuffled_profile", shuffled["matched"])
        rows.append(row | {"sentence": _sentence(row, against, int(base["n_clusters"]), len(of_curve))})
    return pd.DataFrame(rows)[list(SCHEMA["verdict"].columns)]


def _sentence(row: dict, against: Mapping[str, tuple[str, str]], users: int, tried: int) -> str:
    how_chosen = f"of {tried}, chosen on dev" if tried > 1 else "the only one tried"
    few = ", too few" if row["effective_n"] < FEWEST_EFFECTIVE else ""
    where = f"{row['n']} test prompts of {users} users (effective number {row['effective_n']:.0f}{few})"
    if not row["alpha"]:
        return (
            f"{row['method']}: no alpha lowered toxicity on dev within the perplexity limit, so there is no effect to "
            f"report on {where}; the base's toxicity is {row['toxicity_base']:.3f}."
        )
    text = (
        f"{row['method']} at alpha {row['alpha']:g} ({how_chosen}): toxicity {row['toxicity_base']:.3f} -> "
        f"{row['toxicity']:.3f} on {where}, change {_stated(row['change'], row['change_low'], row['change_high'])}"
    )
    kls = f"{row['kl_per_token']:.2f} nats per token"
    for name, (kind, how) in against.items():
        value, low, high = (row[column] for column in BOUNDS[name])
        text += f"; difference to {CONTROLS[kind]}{MATCHED[how]} {_stated(value, low, high)}"
        smallest = detectable(low, high, users)
        if low <= 0 <= high and np.isfinite(smallest):
            share = f"{100 * smallest / row['toxicity_base']:.0f} % of the base's toxicity"
            text += f" (the run detects {smallest:.3f}, {share}, with 80 % power)"
        if kind:
            kls += f", {CONTROLS[kind]} {row[KLS[name]]:.2f}"
    text += f"; perplexity x {row['perplexity_ratio']:.2f}, {kls}. "
    return text + f"Operating range: {_span(row['alpha_low'], row['alpha_high'])}."


def _stated(value: float, low: float, high: float) -> str:
    return with_interval(value, low, high) + (", not distinguishable from zero" if low <= 0 <= high else "")


def _span(low: float, high: float) -> str:
    if np.isnan(low):
        return "no alpha of the grid"
    return f"alpha {low:g}" if low == high else f"alpha {low:g} to {high:g}"


def detectable(low: float, high: float, n_clusters: int) -> float:
    """Minimum detectable effect at 80 % power of a comparison with this cluster-t interval: `(t_.975 + t_.8) error`."""
    tail, gain = t_quantile(0.975, n_clusters - 1), t_quantile(0.8, n_clusters - 1)
    return (tail + gain) * (high - low) / 2 / tail


def verdict_shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table `verdict` as text for a reader: columns named in words, values with their intervals."""

    def interval(value: str, low: str, high: str) -> list[str]:
        return [with_interval(*row) for row in table[[value, low, high]].itertuples(index=False)]

    ends = table[["alpha_low", "alpha_high"]].itertuples(index=False)
    answered = zip(table["accuracy"], table["questions"], strict=True)
    shown = {
        "method": table["method"],
        "alpha": [f"{alpha:g}" for alpha in table["alpha"]],
        "operating range": [_span(*pair).removeprefix("alpha ") for pair in ends],
        "toxicity, base": table["toxicity_base"].map("{:.3f}".format),
        "change": interval("change", "change_low", "change_high"),
        "minus control": interval("difference", "low", "high"),
        "own minus shuffled": interval("own_minus_shuffled", "own_low", "own_high"),
        "distance, change": interval("distance", "distance_low", "distance_high"),
        "perplexity ratio": table["perplexity_ratio"].map("{:.2f}".format),
        "KL, nats per token": table["kl_per_token"].map("{:.2f}".format),
        "KL of control": table["control_kl"].map("{:.2f}".format),
        "KL of shuffled": table["shuffled_kl"].map("{:.2f}".format),
        "accuracy, % (questions)": [f"{a:.0f} ({q})" if q else "" for a, q in answered],
        "n (effective)": [f"{n} ({e:.0f})" for n, e in table[["n", "effective_n"]].itertuples(index=False)],
    }
    return pd.DataFrame(shown).replace("nan", "")


def enough(table: pd.DataFrame, *, least: int, what: str, column: str = "n") -> pd.DataFrame | str:
    """The rows of a table that rest on at least `least` prompts (or users, by `column`); a sentence where none does."""
    if table.empty:
        return f"{what}: this run has none."
    kept = table[table[column] >= least]
    if kept.empty:
        most = table[column].max()
        return f"{what}: not shown, no row rests on {least} or more ({column} is {most} at most)."
    return kept.reset_index(drop=True)
