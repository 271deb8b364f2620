"""An arm's alpha path on a few prompts, the same arm at single alphas, and whether the two say the same."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd

from steerlib.generation import Contexts, Sampling, alpha_path, decode, make_arms
from steerlib.generation.requests import sampling_of
from steerlib.models import FrozenModel

UNIT = "1"
"""Factor of SDA on a path: with a = 1 the path over k holds every a, that of a prompt at k a."""


def path_sampling(arm: pd.Series, *, min_p: float, max_new_tokens: int) -> Sampling:
    """The arm's own choice of tokens with a nucleus that is linear in alpha: min-p in place of top-p.

    Args:
        arm: a row of the arms table.
        min_p: see `Sampling`; greedy arms have none.
        max_new_tokens: longest answer.
    """
    own = sampling_of(arm)
    return replace(own, top_p=1.0, min_p=min_p if own.temperature else 0.0, max_new_tokens=max_new_tokens)


def arm_path(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arm: pd.Series,
    *,
    sampling: Sampling,
    contexts: Contexts,
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Every answer that a logit rule gives from alpha 0 to the arm's own alpha.

    Args:
        frozen: the model.
        prompts: the prompts to be answered.
        arm: a row of the arms table, of a logit rule whose branches are contexts.
        sampling: see `path_sampling`.
        contexts: texts of the branches by category.
        seeds: of the noise.

    Returns:
        The segments table, see `alpha_path`; of SDA with a = 1 for every prompt.
    """
    return alpha_path(
        frozen,
        prompts,
        method=arm["method"],
        alpha_max=float(arm["alpha"]),
        sampling=sampling,
        profile=arm["profile"],
        category=arm["category"],
        factor=_factor(arm),
        style=arm["style"],
        seeds=seeds,
        contexts=contexts,
        base_top_p=float(arm["base_top_p"]),
    )


def arm_at(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arm: pd.Series,
    alphas: Iterable[float],
    *,
    sampling: Sampling,
    contexts: Contexts,
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """The same arm decoded at single alphas: the generations table with column alpha. Arguments as `arm_path`."""
    arms = make_arms(
        arm["method"],
        sorted({float(alpha) for alpha in alphas}),
        model=frozen.name,
        contexts=contexts,
        profile=arm["profile"],
        category=arm["category"],
        factor=_factor(arm),
        style=arm["style"],
        sampling=sampling,
        base_top_p=float(arm["base_top_p"]),
    )
    answers = decode(frozen, prompts, arms, seeds=seeds, contexts=contexts)
    return answers.merge(arms[["arm_id", "alpha"]], on="arm_id")


def path_against_grid(segments: pd.DataFrame, grid: pd.DataFrame) -> pd.DataFrame:
    """Whether the segment that holds an alpha has the answer decoded at that alpha, token for token.

    Args:
        segments: what `arm_path` returned.
        grid: what `arm_at` returned for the same prompts and seeds.

    Returns:
        prompt_id, seed, alpha, agrees, near_ties (of the answer decoded at one alpha: where it is above 0, rounding
        of another batch shape may decide) and complete (of the segment; where it is not, only the tokens that the
        segment has are compared).

    Raises:
        ValueError: an alpha of the grid lies in no segment.
    """
    rows = []
    answers = {key: part.sort_values("alpha_low") for key, part in segments.groupby(["prompt_id", "seed"])}
    for row in grid.to_dict("records"):
        part = answers.get((row["prompt_id"], row["seed"]), segments.head(0))
        inside = part[(part["alpha_low"] <= row["alpha"]) & (row["alpha"] <= part["alpha_high"])]
        if inside.empty:
            raise ValueError(f"alpha {row['alpha']:g} of prompt {row['prompt_id']!r} is in no segment")
        segment = inside.iloc[-1]  # segments are closed below
        ids, decoded = list(segment["token_ids"]), list(row["token_ids"])
        agrees = ids == (decoded if segment["complete"] else decoded[: len(ids)])
        rows.append(
            [row["prompt_id"], row["seed"], row["alpha"], agrees, row["near_ties"], segment["complete"]]
        )
    return pd.DataFrame(rows, columns=["prompt_id", "seed", "alpha", "agrees", "near_ties", "complete"])


def _factor(arm: pd.Series) -> str:
    return UNIT if arm["method"] == "sda" else ""
