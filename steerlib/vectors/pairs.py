"""Contrast pairs: the answer a user preferred and one they did not, to the same prompt."""

import pandas as pd
import torch

from steerlib.models import FrozenModel
from steerlib.prompting import answer_ids, prompt_ids
from steerlib.vectors.residual import record_residual


def pairs_from_ratings(
    ratings: pd.DataFrame, splits: pd.DataFrame, *, tie: int = 5, ties: str = "drop"
) -> pd.DataFrame:
    """One pair a conversation: the highest-rated answer of the first turn against the lowest-rated.

    Args:
        ratings: the ratings table; only turn 0 is used, where the answers come from different models.
        splits: the splits table, which says on which side of the leak rule a conversation lies.
        tie: pairs whose ratings differ by this many points or fewer are ties (PRISM's own margin is 5).
        ties: "drop", or "half": a tie counts half as much as another pair. Equal ratings name no preferred answer
            and are dropped either way.

    Returns:
        The pairs table; `weight` is 1, and 0.5 for ties.

    Raises:
        ValueError: `ties` is neither.
    """
    if ties not in ("drop", "half"):
        raise ValueError(f"ties {ties!r} is neither 'drop' nor 'half'")
    first = ratings[ratings.turn == 0].sort_values(["rating", "utterance_id"], kind="stable")
    grouped = first.groupby(["user_id", "conversation_id"], sort=True)
    best, worst = grouped.tail(1), grouped.head(1)
    pairs = best.merge(worst, on=["user_id", "conversation_id"], suffixes=("", "_worst"))
    margin = pairs.rating - pairs.rating_worst
    pairs = pairs.assign(weight=(margin > tie).map({True: 1.0, False: 0.5}))
    pairs = pairs[(margin > tie) | ((margin > 0) & (ties == "half"))]
    pairs = pairs.merge(splits[["conversation_id", "split"]], on="conversation_id")
    table = pd.DataFrame(
        {
            "pair_id": "pair-" + pairs.conversation_id,
            "user_id": pairs.user_id,
            "conversation_id": pairs.conversation_id,
            "prompt": pairs.prompt,
            "preferred": pairs.response,
            "dispreferred": pairs.response_worst,
            "weight": pairs.weight,
            "split": pairs.split,
        }
    )
    return table.reset_index(drop=True)


def pair_residuals(
    frozen: FrozenModel, pairs: pd.DataFrame, *, layers: list[int], style: str, pool: str = "answer_mean"
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """Pooled residuals of both sides of each pair, recorded in one batched pass.

    Args:
        frozen: the model.
        pairs: the pairs table; both sides share the prompt's token ids.
        layers: 0-based decoder blocks.
        style: "chat" or "continuation", as for generation.
        pool: see `record_residual`.

    Returns:
        Preferred and dispreferred residuals, by layer `(n_pairs, d_model)` each.
    """
    prompts = [prompt_ids(frozen, prompt, style=style) for prompt in pairs.prompt]
    sides = [*pairs.preferred, *pairs.dispreferred]
    contexts = [p + answer_ids(frozen, side, style=style) for p, side in zip(prompts * 2, sides, strict=True)]
    lengths = [len(p) for p in prompts * 2]
    recorded = record_residual(frozen, contexts, layers=layers, prompt_lengths=lengths, pool=pool)
    n = len(pairs)
    return {la: h[:n] for la, h in recorded.items()}, {la: h[n:] for la, h in recorded.items()}
