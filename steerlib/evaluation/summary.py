"""From answers and their toxicity to the metrics table: every arm, split and subgroup, with intervals."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from steerlib.evaluation.answers import check_paired, per_prompt
from steerlib.evaluation.intervals import Interval, cluster_interval
from steerlib.evaluation.statistics import paired_interval
from steerlib.tables import SCHEMA

Floats = NDArray[np.float64]

MEANS = ("distance", "toxicity", "length", "repetition", "distinct_2", "overshoot", "stopped")
COMPARISONS = {
    "reduction_percent": ("distance", "reduction_percent"),
    "win_rate": ("distance", "win_rate"),
    "tie_rate": ("distance", "tie_rate"),
    "toxicity_reduction_percent": ("toxicity", "reduction_percent"),
}
LABELS = ["arm_id", "comparator", "split", "subgroup", "scorer", "metric"]


def summarise(
    generations: pd.DataFrame,
    arms: pd.DataFrame,
    prompts: pd.DataFrame,
    scores: ArrayLike | pd.DataFrame,
    accepted_scores: ArrayLike | pd.DataFrame | None,
    *,
    base_arm: str,
    scorer: str,
    level: float = 0.95,
) -> pd.DataFrame:
    """Metrics of each arm, and its comparison with base and with the shuffled-profile arm, clustered by user.

    A prompt's values are averaged over its seeds first, so prompts count once. Subgroups are "all",
    `category=<c*(u)>` and `prompt_category=<...>`; a subgroup of one user has values without interval.

    Args:
        generations: the generations table.
        arms: the arms table.
        prompts: the prompts table; at least prompt_id, user_id, split, category, prompt_category.
        scores: toxicity of each answer, `(len(generations), 6)`, in the order of the generations.
        accepted_scores: toxicity of each prompt's accepted answer, `(len(prompts), 6)`, in the order of the prompts;
            None where there is none: then distances are left out and toxicity itself is compared.
        base_arm: arm_id of the base.
        scorer: id of the scorer.
        level: confidence of the intervals.

    Returns:
        The metrics table. Comparator "": distance (the CAA study's MAE), toxicity, length (words), distinct_2,
        repetition, overshoot and stopped (shares), shift_<attribute>, perplexity, kl_per_token (nats).
        Comparator an arm: reduction_percent, win_rate, tie_rate, toxicity_reduction_percent, perplexity_ratio.
        A metric that is undefined (a perplexity of no tokens, a reduction from 0) has no row.

    Raises:
        ValueError: scores of another length than their rows, a prompt or arm not in its table, no base, or an arm
            that lacks some of the base's prompts or seeds.
    """
    answers = per_prompt(generations, prompts, scores, accepted_scores)
    check_paired(generations, arms, base_arm)
    shuffled = shuffled_twins(arms)
    by_arm = {str(arm): rows.set_index("prompt_id") for arm, rows in answers.groupby("arm_id")}
    rows = []
    for split, subgroup, members in _subgroups(prompts[prompts["prompt_id"].isin(answers["prompt_id"])]):
        for arm, values in by_arm.items():
            own, users = values.loc[members.index], members.to_numpy()
            found = [("", *measure) for measure in _measures(own, users, level)]
            for comparator in dict.fromkeys([base_arm, shuffled.get(arm, "")]):
                if comparator in by_arm and comparator != arm:
                    other = by_arm[comparator].loc[members.index]
                    found += [(comparator, *measure) for measure in _comparisons(other, own, users, level)]
            rows += [[arm, other, split, subgroup, scorer, metric, *i[:5]] for other, metric, i in found]
    return pd.DataFrame(rows, columns=list(SCHEMA["metrics"].columns))


def shuffled_twins(arms: pd.DataFrame) -> dict[str, str]:
    """By arm of profile "own", the arm that differs from it in nothing but having the shuffled profile."""
    settings = [column for column in arms if column not in ("arm_id", "profile")]
    own, other = arms[arms["profile"] == "own"], arms[arms["profile"] == "shuffled"]
    pairs = own.merge(other, on=settings, suffixes=("", "_shuffled"))
    return dict(zip(pairs["arm_id"], pairs["arm_id_shuffled"], strict=True))


def _subgroups(prompts: pd.DataFrame) -> Iterator[tuple[str, str, pd.Series]]:
    """Split, subgroup and its prompts' users by prompt_id."""
    for split, rows in prompts.set_index("prompt_id").groupby("split"):
        yield str(split), "all", rows["user_id"]
        for column in ("category", "prompt_category"):
            for value, part in rows[rows[column] != ""].groupby(column):
                yield str(split), f"{column}={value}", part["user_id"]


def _measures(own: pd.DataFrame, users: NDArray, level: float) -> Iterator[tuple[str, Interval]]:
    for metric in own:
        if metric in MEANS or str(metric).startswith("shift_"):
            yield str(metric), cluster_interval(own[metric], users, level=level)
    if own["n_tokens"].sum() > 0:
        sums = own[["nll_base", "n_tokens", "kl_to_base"]].to_numpy(dtype=np.float64)
        yield "perplexity", cluster_interval(sums, users, lambda m: _exp(_per_token(m, 0)), level=level)
        yield "kl_per_token", cluster_interval(sums, users, lambda m: _per_token(m, 2), level=level)


def _per_token(means: Floats, column: int) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return means[..., column] / means[..., 1]


def _exp(nats: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return np.exp(nats)


def _comparisons(
    other: pd.DataFrame, own: pd.DataFrame, users: NDArray, level: float
) -> Iterator[tuple[str, Interval]]:
    for metric, (column, statistic) in COMPARISONS.items():
        undefined = column not in own or (statistic == "reduction_percent" and other[column].sum() == 0)
        if not undefined:
            yield metric, paired_interval(other[column], own[column], users, statistic=statistic, level=level)
    sums = ["nll_base", "n_tokens"]
    if own["n_tokens"].sum() > 0 and other["n_tokens"].sum() > 0:
        found = paired_interval(other[sums], own[sums], users, statistic="perplexity_ratio", level=level)
        yield "perplexity_ratio", found
