"""What each answer measures, and per prompt and arm its average over seeds: the values that are compared.

Rows of the metrics table for one arm over some prompts: its own values, and its comparison with another arm.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from steerlib.evaluation.intervals import (
    Interval,
    cluster_interval,
    paired_interval,
    sign_test,
    trimmed_change,
)
from steerlib.evaluation.metrics import distinct_n, length, overshoots, repetition, toxicity_distance
from steerlib.toxicity.attributes import ATTRIBUTES

Floats = NDArray[np.float64]
Measure = tuple[str, Interval]

MEANS = (
    *("distance", "toxicity", "overshoot", "length", "repetition"),
    *("distinct_1", "distinct_2", "distinct_3", "stopped"),
)
COMPARISONS = {
    "reduction_percent": ("distance", "reduction_percent"),
    "win_rate": ("distance", "win_rate"),
    "tie_rate": ("distance", "tie_rate"),
    "toxicity_reduction_percent": ("toxicity", "reduction_percent"),
}
ROBUST = {"distance_change_median": 0.5, "distance_change_trimmed": 0.1}
"""Metric and the share of prompts that it cuts at either end."""


def measures(own: pd.DataFrame, users: ArrayLike, level: float) -> Iterator[Measure]:
    """Values of one arm, one row a prompt; `users` are the prompts' clusters."""
    for metric in own:
        if metric in MEANS or str(metric).startswith("shift_"):
            yield str(metric), cluster_interval(own[metric], users, level=level)
    if own["n_tokens"].sum() > 0:
        sums = own[["nll_base", "n_tokens"]].to_numpy(dtype=np.float64)
        yield "perplexity", cluster_interval(sums, users, lambda m: _exp(_per_token(m, 0)), level=level)
    if own["n_tokens"].sum() > 0 and own["kl_to_base"].notna().all():  # an aligner's answer has no KL
        sums = own[["kl_to_base", "n_tokens"]].to_numpy(dtype=np.float64)
        yield "kl_per_token", cluster_interval(sums, users, lambda m: _per_token(m, 0), level=level)


def comparisons(other: pd.DataFrame, own: pd.DataFrame, users: ArrayLike, level: float) -> Iterator[Measure]:
    """One arm against another on the same prompts, in the same order."""
    for metric, (column, statistic) in COMPARISONS.items():
        undefined = column not in own or (statistic == "reduction_percent" and other[column].sum() == 0)
        if not undefined:
            yield metric, paired_interval(other[column], own[column], users, statistic=statistic, level=level)
    if "distance" in own:
        pair = other["distance"].to_numpy(float), own["distance"].to_numpy(float)
        for metric, trim in ROBUST.items():
            yield metric, trimmed_change(*pair, users, trim=trim, level=level)
        yield "sign_test_p", _sign_test(*pair, users)
    yield from _ratio(other, own, "nll_base", users, level, "perplexity_ratio")


def _sign_test(other: Floats, own: Floats, users: ArrayLike) -> Interval:
    found = sign_test(other, own, users)
    tested = found.fell + found.rose
    return Interval(found.p_value, np.nan, np.nan, len(own), tested, "none: a p value")


def _ratio(
    other: pd.DataFrame, own: pd.DataFrame, nll: str, users: ArrayLike, level: float, metric: str
) -> Iterator[Measure]:
    if own["n_tokens"].sum() > 0 and other["n_tokens"].sum() > 0:
        sums = [nll, "n_tokens"]
        found = paired_interval(other[sums], own[sums], users, statistic="perplexity_ratio", level=level)
        yield metric, found


def text_measures(own: pd.DataFrame, users: ArrayLike, level: float) -> Iterator[Measure]:
    """Perplexity of the answers' text under another model: nll and n_tokens of that model by prompt."""
    if own["n_tokens"].sum() > 0:
        sums = own[["nll", "n_tokens"]].to_numpy(dtype=np.float64)
        found = cluster_interval(sums, users, lambda m: _exp(_per_token(m, 0)), level=level)
        yield "perplexity_of_text", found


def text_comparisons(
    other: pd.DataFrame, own: pd.DataFrame, users: ArrayLike, level: float
) -> Iterator[Measure]:
    """Perplexity of one arm's text over that of another's."""
    yield from _ratio(other, own, "nll", users, level, "perplexity_of_text_ratio")


def _per_token(means: Floats, column: int) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return means[..., column] / means[..., 1]


def _exp(nats: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return np.exp(nats)


CARRIED = ["nll_base", "kl_to_base", "n_tokens"]


def per_answer(
    generations: pd.DataFrame,
    prompts: pd.DataFrame,
    scores: ArrayLike | pd.DataFrame,
    accepted_scores: ArrayLike | pd.DataFrame | None,
) -> pd.DataFrame:
    """What each answer measures, in the order of the generations.

    Args:
        generations, prompts, scores, accepted_scores: see `summarise`.

    Returns:
        arm_id, prompt_id, seed, toxicity, distance, overshoot, shift_<attribute> (the last three with accepted
        answers only), length, repetition, stopped, nll_base, kl_to_base, n_tokens.

    Raises:
        ValueError: scores of another length than their rows, or a prompt that is not in its table.
    """
    six = _scores(scores, len(generations), "answers")
    place = pd.Index(prompts["prompt_id"]).get_indexer(generations["prompt_id"])
    if (place < 0).any():
        raise ValueError(
            f"prompt {generations['prompt_id'].iloc[int(np.argmax(place < 0))]!r} is not in the prompts"
        )
    texts = generations["text"].tolist()
    values = generations[["arm_id", "prompt_id", "seed"]].reset_index(drop=True)
    values["toxicity"] = six["toxicity"]
    if accepted_scores is not None:
        accepted = _scores(accepted_scores, len(prompts), "prompts").iloc[place].reset_index(drop=True)
        values["distance"] = toxicity_distance(six, accepted)
        values["overshoot"] = overshoots(six, accepted).astype(float)
        values = values.join((six - accepted).add_prefix("shift_"))
    values["length"], values["repetition"] = length(texts), repetition(texts)
    values["stopped"] = generations["stopped"].to_numpy(dtype=float)
    for column in CARRIED:
        values[column] = generations[column].to_numpy(dtype=float)
    return values


def per_prompt(
    generations: pd.DataFrame,
    prompts: pd.DataFrame,
    scores: ArrayLike | pd.DataFrame,
    accepted_scores: ArrayLike | pd.DataFrame | None,
) -> pd.DataFrame:
    """Values of each arm and prompt, averaged over seeds; distinct_1 to 3 over the seeds' answers together.

    Args:
        generations, prompts, scores, accepted_scores: see `summarise`.

    Returns:
        Columns of `per_answer` without seed, and distinct_1, distinct_2, distinct_3.
    """
    return average_seeds(per_answer(generations, prompts, scores, accepted_scores), generations)


def average_seeds(answers: pd.DataFrame, generations: pd.DataFrame) -> pd.DataFrame:
    """`per_prompt` from what `per_answer` gave for the same generations."""
    averages = answers.drop(columns="seed").groupby(["arm_id", "prompt_id"]).mean()
    grouped = generations.groupby(["arm_id", "prompt_id"])["text"]
    for n in (1, 2, 3):
        averages[f"distinct_{n}"] = grouped.agg(lambda texts, n=n: distinct_n(list(texts), n))
    return averages.reset_index()


def _scores(scores: ArrayLike | pd.DataFrame, rows: int, what: str) -> pd.DataFrame:
    six = scores[list(ATTRIBUTES)].to_numpy() if isinstance(scores, pd.DataFrame) else np.asarray(scores)
    if six.shape != (rows, len(ATTRIBUTES)):
        raise ValueError(f"scores of the {what} must be ({rows}, 6), not {six.shape}")
    return pd.DataFrame(six.astype(np.float64), columns=list(ATTRIBUTES))


def check_paired(generations: pd.DataFrame, arms: pd.DataFrame, base_arm: str) -> None:
    """Refuse arms that cannot be compared prompt by prompt.

    Raises:
        ValueError: an arm is not in the arms table, the base has no answers, or an arm has other prompts or seeds.
    """
    unknown = set(generations["arm_id"]) - set(arms["arm_id"])
    if unknown:
        raise ValueError(f"arm {sorted(unknown)[0]!r} of the generations is not in the arms")
    answered = {
        arm: set(zip(rows["prompt_id"], rows["seed"], strict=True))
        for arm, rows in generations.groupby("arm_id")
    }
    if base_arm not in answered:
        raise ValueError(
            f"the base arm {base_arm!r} has no generations; arms are {', '.join(map(str, answered))}"
        )
    for arm, keys in answered.items():
        shared, wanted = len(keys & answered[base_arm]), len(answered[base_arm])
        if not shared == wanted == len(keys):
            raise ValueError(
                f"arm {arm!r} has {len(keys)} answers, the base {wanted}, and {shared} share prompt and seed: "
                "finish the sweep first"
            )
