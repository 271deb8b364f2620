"""From answers and their toxicity to the metrics table: every arm, split and subgroup, with intervals."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from steerlib.evaluation.answers import average_seeds, check_paired, per_answer
from steerlib.evaluation.intervals import Interval
from steerlib.evaluation.measures import Measure, comparisons, measures, text_comparisons, text_measures
from steerlib.evaluation.seeds import over_seeds
from steerlib.evaluation.settings import family
from steerlib.profiles.demographics import DEMOGRAPHICS
from steerlib.tables import SCHEMA

Floats = NDArray[np.float64]
Frames = Mapping[str, pd.DataFrame]
Found = tuple[str, str, str, Interval]
"""Comparator, scorer, metric and interval: the rest of a row is the arm, the split and the subgroup."""


class Subgroup(NamedTuple):
    """Some prompts of a split; `users` are theirs, by prompt_id."""

    split: str
    name: str
    users: pd.Series


def summarise(
    generations: pd.DataFrame,
    arms: pd.DataFrame,
    prompts: pd.DataFrame,
    scores: ArrayLike | pd.DataFrame,
    accepted_scores: ArrayLike | pd.DataFrame | None,
    *,
    base_arm: str,
    scorer: str,
    users: pd.DataFrame | None = None,
    fluency: pd.DataFrame | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """Metrics of each arm, and its comparison with base and with the shuffled-profile arm, clustered by user.

    A prompt's values are averaged over its seeds first, so prompts count once. Subgroups are "all",
    `category=<c*(u)>`, `prompt_category=<...>` and, with `users`, `age=<...>`, `gender=<...>`, `religion=<...>`;
    a subgroup of one user has values without interval, see `small_subgroups`.

    Args:
        generations: the generations table.
        arms: the arms table.
        prompts: the prompts table; at least prompt_id, user_id, split, category, prompt_category.
        scores: toxicity of each answer, `(len(generations), 6)`, in the order of the generations.
        accepted_scores: toxicity of each prompt's accepted answer, `(len(prompts), 6)`, in the order of the prompts;
            None where there is none: then distances are left out and toxicity itself is compared.
        base_arm: arm_id of the base.
        scorer: id of the scorer.
        users: the users table; who is not in it, or has an empty value, is in no subgroup of it.
        fluency: the fluency table, see `answer_likelihood`; one row an answer and judging model.
        level: confidence of the intervals.

    Returns:
        The metrics table. Comparator "": distance (the CAA study's MAE), toxicity, length (words), distinct_1 to 3,
        repetition, overshoot and stopped (shares), shift_<attribute>, perplexity, kl_per_token (nats).
        Comparator an arm: reduction_percent, win_rate, tie_rate, toxicity_reduction_percent, perplexity_ratio;
        distance_change_median and distance_change_trimmed (10 % cut at either end) of arm less comparator;
        sign_test_p (two-sided, over users; no interval, n_clusters without ties).
        Comparator base, with two seeds or more: reduction_percent_over_seeds, reduction_percent_seed_low and
        _high, reduction_percent_users_and_seeds, see `over_seeds`.
        With `fluency`: perplexity_of_text and perplexity_of_text_ratio; their scorer is the judging model.
        A metric that is undefined (a perplexity of no tokens, a reduction from 0, an aligner's KL) has no row.

    Raises:
        ValueError: scores of another length than their rows, a prompt or arm not in its table, no base, an arm
            that lacks some of the base's prompts or seeds, or an answer that a judging model lacks.
    """
    answers = per_answer(generations, prompts, scores, accepted_scores)
    check_paired(generations, arms, base_arm)
    by_prompt = by_arm(average_seeds(answers, generations))
    texts = _texts(fluency, generations)
    shuffled = shuffled_twins(arms)
    members = list(subgroups(prompts[prompts["prompt_id"].isin(answers["prompt_id"])], users))
    rows = []
    for arm in by_prompt:
        against = [c for c in dict.fromkeys([base_arm, shuffled.get(arm, "")]) if c in by_prompt and c != arm]
        seeds = _of_seeds(answers, arm, base_arm) if "distance" in answers and arm != base_arm else None
        for split, name, of_users in members:
            found = list(_compare(by_prompt, arm, against, scorer, of_users, level, measures, comparisons))
            if seeds is not None:
                found += [(base_arm, scorer, *one) for one in _over_seeds(*seeds, of_users, level)]
            for model, frames in texts.items():
                found += _compare(
                    frames, arm, against, model, of_users, level, text_measures, text_comparisons
                )
            rows += [[arm, other, split, name, who, metric, *i[:5]] for other, who, metric, i in found]
    return pd.DataFrame(rows, columns=list(SCHEMA["metrics"].columns))


def by_arm(values: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of each arm by prompt_id."""
    return {str(arm): rows.set_index("prompt_id") for arm, rows in values.groupby("arm_id")}


def _compare(
    frames: Frames,
    arm: str,
    against: list[str],
    scorer: str,
    users: pd.Series,
    level: float,
    alone: Callable[..., Iterator[Measure]],
    paired: Callable[..., Iterator[Measure]],
) -> Iterator[Found]:
    own, labels = frames[arm].loc[users.index], users.to_numpy()
    for measure in alone(own, labels, level):
        yield "", scorer, *measure
    for comparator in against:
        for measure in paired(frames[comparator].loc[users.index], own, labels, level):
            yield comparator, scorer, *measure


def _of_seeds(answers: pd.DataFrame, arm: str, base_arm: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Answers of base and arm in the same order of prompts and seeds."""
    base, own = (
        answers[answers["arm_id"] == one].sort_values(["prompt_id", "seed"], ignore_index=True)
        for one in (base_arm, arm)
    )
    return base, own


def _over_seeds(base: pd.DataFrame, own: pd.DataFrame, users: pd.Series, level: float) -> Iterator[Measure]:
    rows = base["prompt_id"].isin(users.index)
    of_users = base.loc[rows, "prompt_id"].map(users)
    return over_seeds(base[rows].assign(user_id=of_users), own[rows].assign(user_id=of_users), level)


def _texts(fluency: pd.DataFrame | None, generations: pd.DataFrame) -> dict[str, Frames]:
    """Of each judging model, nll and n_tokens by arm and prompt, averaged over seeds."""
    if fluency is None:
        return {}
    key, found = ["arm_id", "prompt_id", "seed"], {}
    for model, rows in fluency.groupby("scorer_model"):
        joined = generations[key].merge(rows, on=key, how="left", validate="one_to_one")
        if joined["nll"].isna().any():
            first = joined.loc[joined["nll"].isna(), key].iloc[0].to_dict()
            raise ValueError(
                f"{joined['nll'].isna().sum()} answers lack a likelihood by {model}, first {first}"
            )
        means = joined.groupby(["arm_id", "prompt_id"])[["nll", "n_tokens"]].mean().reset_index()
        found[str(model)] = by_arm(means)
    return found


def shuffled_twins(arms: pd.DataFrame) -> dict[str, str]:
    """By arm of profile "own", the arm that differs from it in nothing but having the shuffled profile.

    The shuffled twin of a family of personal vectors is the family `<name>_shuffled`.
    """
    named = arms.assign(vector=family(arms["vector"])) if "vector" in arms else arms
    settings = [column for column in named if column not in ("arm_id", "profile")]
    own, other = named[named["profile"] == "own"], named[named["profile"] == "shuffled"]
    pairs = own.merge(other, on=settings, suffixes=("", "_shuffled"))
    return dict(zip(pairs["arm_id"], pairs["arm_id_shuffled"], strict=True))


def subgroups(prompts: pd.DataFrame, users: pd.DataFrame | None = None) -> Iterator[Subgroup]:
    """All prompts of each split, then its prompts by category and by what the users table says of their users."""
    columns = [column for column in ("category", "prompt_category") if column in prompts]
    if users is not None:
        known = users[["user_id", *DEMOGRAPHICS]]
        prompts = prompts.merge(known, on="user_id", how="left", validate="many_to_one")
        columns += DEMOGRAPHICS
    for split, rows in prompts.set_index("prompt_id").groupby("split"):
        yield Subgroup(str(split), "all", rows["user_id"])
        for column in columns:
            for value, part in rows[rows[column].fillna("") != ""].groupby(column):
                yield Subgroup(str(split), f"{column}={value}", part["user_id"])


def small_subgroups(metrics: pd.DataFrame, least: int = 30) -> pd.DataFrame:
    """Subgroups of fewer users than it takes to say something of them.

    Args:
        metrics: the metrics table, see `summarise`.
        least: users that are enough.

    Returns:
        split, subgroup, n (prompts), n_clusters (users), the smallest first; empty where all are large enough.
    """
    rows = metrics[(metrics["metric"] == "toxicity") & (metrics["subgroup"] != "all")]
    small = rows[rows["n_clusters"] < least].drop_duplicates(["split", "subgroup"])
    wanted = small[["split", "subgroup", "n", "n_clusters"]]
    return wanted.sort_values(["n_clusters", "split", "subgroup"], ignore_index=True)
