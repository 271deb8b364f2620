"""Whether steering helps most where the base disagrees with the person, guarded against regression to the mean.

Whether steering acts where it should: its effect by category of prompt, and against the benign ones.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steerlib.evaluation.intervals import Interval, OfMeans, cluster_interval, paired_interval

Floats = NDArray[np.float64]
SELECTIVITY = ["arm_id", "prompt_category", "base", "steered", "change_percent", "low", "high"]
CONTRASTS = ["arm_id", "prompt_category", "reference", "effect", "value", "low", "high"]
COUNTS = ["n", "n_clusters", "how"]


def selectivity(
    values: pd.DataFrame,
    prompts: pd.DataFrame,
    *,
    base_arm: str,
    split: str | None = "test",
    measure: str = "distance",
    level: float = 0.95,
) -> pd.DataFrame:
    """Toxicity distance of base and steered answers by category of prompt, and its change.

        change_percent = 100 (mean steered / mean base - 1)     within each category; below 0 is nearer

    Args:
        values: arm_id, prompt_id and the measure, one row an arm and prompt, from `per_prompt`.
        prompts: prompt_id, user_id, prompt_category and, for `split`, split. Prompts without a category are left
            out.
        base_arm: arm_id of the base.
        split: prompts of this split only; None for all.
        measure: column of `values`; "distance" is the CAA study's MAE.
        level: confidence.

    Returns:
        One row an arm and category: arm_id, prompt_category, base, steered (means), change_percent with low and
        high (paired by prompt, clustered by user), n prompts, n_clusters users, how. The change is missing where
        the base's mean is 0.

    Raises:
        ValueError: no base, an arm without some of the base's prompts, a missing value, or no prompt with a
            category.

    Source: the table "selectivity by prompt category" of the CAA-on-PRISM study, which has no intervals.
    """
    rows = []
    for arm, joined in _paired(values, prompts, base_arm, split, measure):
        for category, part in joined.groupby("prompt_category"):
            base, own = part["base"], part["steered"]
            if base.sum() == 0:
                users = part["user_id"].nunique()
                found = Interval(np.nan, np.nan, np.nan, len(part), users, "none: the base's mean is 0")
            else:
                found = paired_interval(base, own, part["user_id"], statistic="change_percent", level=level)
            rows.append([arm, category, base.mean(), own.mean(), *found])
    return pd.DataFrame(rows, columns=SELECTIVITY + COUNTS)


def selectivity_contrasts(
    values: pd.DataFrame,
    prompts: pd.DataFrame,
    *,
    base_arm: str,
    reference: str = "benign_control",
    split: str | None = "test",
    measure: str = "distance",
    level: float = 0.95,
) -> pd.DataFrame:
    """Effect in each category less the effect in the reference: is steering selective, or does it act on all alike?

        difference       (mean steered - mean base) of the category less that of the reference
        change_percent   the same of 100 (mean steered / mean base - 1), in points

    Below 0 the category comes nearer by more than the reference does. A category with more distance to lose shows
    a larger difference even where all prompts fall by the same share, so "change_percent" says more; where the
    reference's base is near 0, its own change is the noisier of the two and the interval shows it.

    Args:
        values, prompts, base_arm, split, measure, level: see `selectivity`.
        reference: the category that the others are compared with.

    Returns:
        One row an arm, category and effect: arm_id, prompt_category, reference, effect, value, low, high
        (clustered by user; a user may have prompts in both), n prompts of both, n_clusters, how.

    Raises:
        ValueError: as `selectivity`; no prompt of the reference.
    """
    rows = []
    for arm, joined in _paired(values, prompts, base_arm, split, measure):
        there = sorted(joined["prompt_category"].unique())
        if reference not in there:
            raise ValueError(f"no prompt of category {reference!r}; there are {', '.join(there)}")
        for category in there:
            if category == reference:
                continue
            part = joined[joined["prompt_category"].isin([category, reference])]
            columns = _columns(part, category)
            for effect, of_means in EFFECTS.items():
                defined = effect == "difference" or part.groupby("prompt_category")["base"].sum().all()
                if defined:
                    found = cluster_interval(columns, part["user_id"], of_means, level=level)
                    rows.append([arm, category, reference, effect, *found])
    return pd.DataFrame(rows, columns=CONTRASTS + COUNTS)


def _paired(
    values: pd.DataFrame, prompts: pd.DataFrame, base_arm: str, split: str | None, measure: str
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each steered arm with prompt_category, user_id, base and steered, one row a prompt of the split."""
    asked = prompts if split is None else prompts[prompts["split"] == split]
    asked = asked.loc[asked["prompt_category"].fillna("") != "", ["prompt_id", "user_id", "prompt_category"]]
    base = values.loc[values["arm_id"] == base_arm, ["prompt_id", measure]]
    if base.empty:
        raise ValueError(f"no values of the base arm {base_arm!r}")
    known = asked.merge(base.rename(columns={measure: "base"}), on="prompt_id", validate="one_to_one")
    if known.empty:
        raise ValueError(f"no prompt of split {split!r} has a prompt_category and a value of the base")
    for arm, own in values[values["arm_id"] != base_arm].groupby("arm_id", sort=False):
        steered = own[["prompt_id", measure]].rename(columns={measure: "steered"})
        joined = known.merge(steered, on="prompt_id", how="left", validate="one_to_one")
        missing = joined["steered"].isna()
        if missing.any():
            first = joined.loc[missing, "prompt_id"].iloc[0]
            raise ValueError(
                f"arm {arm!r} has no {measure} for {missing.sum()} prompts, the first is {first!r}"
            )
        yield str(arm), joined


def _columns(part: pd.DataFrame, category: str) -> Floats:
    """Base, steered and 1 of the category, then the same of the reference, 0 in the other's rows; `(n, 6)`."""
    own = (part["prompt_category"] == category).to_numpy(dtype=np.float64)[:, None]
    three = np.column_stack([part["base"], part["steered"], np.ones(len(part))])
    return np.hstack([three * own, three * (1 - own)])


def _difference(m: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return (m[..., 1] - m[..., 0]) / m[..., 2] - (m[..., 4] - m[..., 3]) / m[..., 5]


def _relative(m: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return 100 * (m[..., 1] / m[..., 0] - m[..., 4] / m[..., 3])


EFFECTS: dict[str, OfMeans] = {"difference": _difference, "change_percent": _relative}


SLOPES = ["arm_id", "estimator", "slope", "low", "high", "n", "n_clusters", "how"]


def disagreement_slopes(
    answers: pd.DataFrame,
    prompts: pd.DataFrame,
    *,
    base_arm: str,
    predictor_arm: str = "",
    split: str | None = "test",
    measure: str = "distance",
    level: float = 0.95,
) -> pd.DataFrame:
    """Slope of the effect of steering on how far the base is from the person's accepted answer, over prompts.

        naive       D_base - D_method  on  D_base             both from the same base answers
        guarded     (D_base - D_method)_s  on  D_base of the other seeds,    all seeds s together
        corrected   cov(effect_s, D_other) / cov(D_base,s, D_other):  the other seeds as an instrument

    A base answer that is far off by the luck of its seed is nearer in any second draw. The naive slope counts that
    as an effect: a method that only draws anew has slope 1 where all of D_base is luck. Guarded, the luck of the
    predictor and of the effect are independent, so no effect has slope 0. The noise of the predictor still flattens
    a true slope; the corrected one does not, and is wider. Slope b means that b of each further unit of
    disagreement goes away.

    A slope above 0 is not yet a personal effect: any steering towards blander text helps where the base is worst.
    Compare it with that of a control arm.

    Args:
        answers: arm_id, prompt_id, seed and the measure, one row an answer, from `per_answer`.
        prompts: prompt_id, user_id and, for `split`, split.
        base_arm: arm_id of the base, whose answers the effect is measured against.
        predictor_arm: an unsteered arm whose answers say how far the base is off; `base_arm` where empty. For a
            greedy base, name a sampled one.
        split: prompts of this split only; None for all.
        measure: column of `answers`.
        level: confidence.

    Returns:
        Three rows an arm: arm_id, estimator, slope, low, high (clustered by user), n answers (n prompts in "naive"),
        n_clusters users, how. Where the predictor has no second seed, or its seeds all repeat one answer as under
        greedy decoding, "guarded" and "corrected" are missing and `how` says why.

    Raises:
        ValueError: no answers of the base or the predictor on the split, an arm that lacks some of the base's
            answers, or a base whose values are all equal.

    Source: regression to the mean: Galton 1886; an independent baseline as the guard: Gardner and Heady, J. Chronic
    Diseases 1973. The question is the CAA-on-PRISM study's, which does not test it.
    """
    rows = []
    for arm, pairs in _of_arms(answers, prompts, base_arm, predictor_arm or base_arm, split, measure):
        means = pairs.groupby(["prompt_id", "user_id"])[["base", "effect"]].mean().reset_index()
        if means["base"].nunique() < 2:
            raise ValueError(f"the base's {measure} is {means['base'].iloc[0]} in every prompt: no slope")
        rows.append([arm, "naive", *_slope(means["base"], means["effect"], means["user_id"], level)])
        reason = _no_guard(pairs)
        for estimator, instrumented in (("guarded", "other"), ("corrected", "base")):
            if reason:
                users = pairs["user_id"].nunique()
                found = Interval(np.nan, np.nan, np.nan, len(pairs), users, reason)
            else:
                columns = pairs["other"], pairs["effect"], pairs["user_id"]
                found = _slope(*columns, level, divisor=pairs[instrumented])
            rows.append([arm, estimator, *found])
    return pd.DataFrame(rows, columns=SLOPES)


def disagreement_points(
    answers: pd.DataFrame,
    prompts: pd.DataFrame,
    *,
    base_arm: str,
    arm: str,
    predictor_arm: str = "",
    split: str | None = "test",
    measure: str = "distance",
) -> pd.DataFrame:
    """What `disagreement_slopes` regresses for one arm, prompt by prompt, to be drawn.

    Returns:
        estimator ("naive", "guarded"), prompt_id, user_id, disagreement, effect: a row a prompt under "naive" and a
        row an answer under "guarded"; none of the latter where there is no second seed.
    """
    own = answers[answers["arm_id"].isin([base_arm, predictor_arm, arm])]
    found = dict(_of_arms(own, prompts, base_arm, predictor_arm or base_arm, split, measure))
    if arm not in found:
        raise ValueError(f"arm {arm!r} has no answers on split {split!r} beside the base")
    keys = ["prompt_id", "user_id"]
    naive = found[arm].groupby(keys)[["base", "effect"]].mean().reset_index()
    parts = [naive.rename(columns={"base": "disagreement"}).assign(estimator="naive")]
    if not _no_guard(found[arm]):
        guarded = found[arm][[*keys, "other", "effect"]].rename(columns={"other": "disagreement"})
        parts.append(guarded.assign(estimator="guarded"))
    return pd.concat(parts, ignore_index=True)[["estimator", *keys, "disagreement", "effect"]]


def _of_arms(
    answers: pd.DataFrame,
    prompts: pd.DataFrame,
    base_arm: str,
    predictor: str,
    split: str | None,
    measure: str,
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each arm with prompt_id, user_id, seed, base, other (the predictor's mean over other seeds) and effect."""
    asked = prompts if split is None else prompts[prompts["split"] == split]
    known = answers.merge(asked[["prompt_id", "user_id"]], on="prompt_id", validate="many_to_one")
    key = ["prompt_id", "seed"]
    of = {
        name: known[known["arm_id"] == name].rename(columns={measure: "base"})
        for name in (base_arm, predictor)
    }
    for name, rows in of.items():
        if rows.empty:
            raise ValueError(f"no answers of arm {name!r} on split {split!r}")
    base = of[base_arm][[*key, "user_id", "base"]]
    base = base.assign(other=_other_seeds(base, of[predictor], answers_repeat=_repeats(of[predictor])))
    for arm, own in known[~known["arm_id"].isin([base_arm, predictor])].groupby("arm_id", sort=False):
        pairs = base.merge(own[[*key, measure]], on=key, how="left", validate="one_to_one")
        if pairs[measure].isna().any():
            raise ValueError(
                f"arm {arm!r} lacks {pairs[measure].isna().sum()} of the {len(pairs)} answers of {base_arm!r}"
            )
        yield str(arm), pairs.assign(effect=pairs["base"] - pairs[measure])


def _repeats(rows: pd.DataFrame) -> bool:
    """Whether all seeds of each prompt gave one value: greedy decoding, or a method without noise."""
    return bool((rows.groupby("prompt_id")["base"].nunique() == 1).all())


def _other_seeds(base: pd.DataFrame, predictor: pd.DataFrame, *, answers_repeat: bool) -> Floats:
    """Mean of the predictor's values at other seeds than the row's own; missing where there is none."""
    if answers_repeat:
        return np.full(len(base), np.nan)
    totals = predictor.groupby("prompt_id")["base"].agg(["sum", "count"]).reindex(base["prompt_id"])
    same = base.merge(predictor[["prompt_id", "seed", "base"]], on=["prompt_id", "seed"], how="left")[
        "base_y"
    ]
    number = totals["count"].to_numpy(dtype=np.float64) - same.notna().to_numpy()
    rest = totals["sum"].to_numpy() - same.fillna(0.0).to_numpy()
    return np.divide(rest, number, out=np.full(len(base), np.nan), where=number > 0)


def _no_guard(pairs: pd.DataFrame) -> str:
    if pairs["other"].isna().any():
        return "none: no second, independent answer of the base (one seed, or greedy)"
    return ""


def _slope(
    x: pd.Series, y: pd.Series, users: pd.Series, level: float, divisor: pd.Series | None = None
) -> Interval:
    """cov(x, y) / cov(x, divisor); of x itself, the least-squares slope."""
    d = x if divisor is None else divisor
    x, y, d = x - x.mean(), y - y.mean(), d - d.mean()  # lest the means of squares cancel

    def of_means(m: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (m[..., 3] - m[..., 0] * m[..., 1]) / (m[..., 4] - m[..., 0] * m[..., 2])

    return cluster_interval(np.column_stack([x, y, d, x * y, x * d]), users, of_means, level=level)
