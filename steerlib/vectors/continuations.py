"""Residuals of given continuations, each behind a prompt of its own."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from steerlib.models import FrozenModel
from steerlib.prompting import answer_ids, prompt_ids
from steerlib.vectors.residual import record_residual


def continuation_residuals(
    frozen: FrozenModel,
    prompts: Iterable[str],
    continuations: Iterable[str],
    *,
    layers: Sequence[int],
    style: str = "continuation",
    pool: str = "answer_mean",
) -> dict[int, Tensor]:
    """Pooled residuals of continuations where, unlike in `pair_residuals`, no two share a prompt.

    Args:
        frozen: the model.
        prompts, continuations: n texts each.
        layers: 0-based decoder blocks.
        style: "chat" or "continuation", as for generation.
        pool: see `record_residual`; by default the mean over the continuation's tokens.

    Returns:
        By layer, `(n, d_model)` in float64, in activation units.

    Raises:
        ValueError: as `record_residual`, or the numbers of texts differ.
    """
    opened = [prompt_ids(frozen, prompt, style=style) for prompt in prompts]
    texts = [answer_ids(frozen, text, style=style) for text in continuations]
    contexts = [prompt + text for prompt, text in zip(opened, texts, strict=True)]
    lengths = [len(prompt) for prompt in opened]
    return record_residual(frozen, contexts, layers=layers, prompt_lengths=lengths, pool=pool)
