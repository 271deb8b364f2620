"""How likely given answers are: what a model says of tokens that it may not have chosen."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from steerlib.models import FrozenModel, left_padded, position_ids
from steerlib.prompting import TokenIds


class GivenAnswer(NamedTuple):
    """Token ids of an answer and of what it answers."""

    prompt: TokenIds
    answer: TokenIds

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


def summed_nll(
    frozen: FrozenModel,
    answers: Sequence[GivenAnswer],
    *,
    batch_tokens: int = 2048,
    progress: Callable[[int], object] | None = None,
) -> list[float]:
    """Negative log-likelihood of each answer, given its prompt.

        nll = -sum_t ln p(y_t | prompt, y_<t)     over the answer's tokens, in nats

    Args:
        frozen: the model.
        answers: token ids by this model's tokenizer; equal ones are read once.
        batch_tokens: tokens in one forward pass, pads counted; bounds memory.
        progress: called with the number of distinct answers read since its last call.

    Returns:
        Nats, in the order of the answers; 0 for an empty answer.
    """
    found: dict[GivenAnswer, float] = {}
    for batch in _batches(list(dict.fromkeys(answers)), batch_tokens):
        found.update(zip(batch, _read(frozen, batch), strict=True))
        if progress:
            progress(len(batch))
    return [found[answer] for answer in answers]


def _batches(answers: Sequence[GivenAnswer], batch_tokens: int) -> Iterator[list[GivenAnswer]]:
    """Answers of like length together, the longest first, so that memory runs out at once or not at all."""
    waiting = sorted(answers, key=lambda answer: answer.length, reverse=True)
    while waiting:
        take = max(1, batch_tokens // waiting[0].length)
        batch, waiting = waiting[:take], waiting[take:]
        yield batch


@torch.inference_mode()
def _read(frozen: FrozenModel, batch: Sequence[GivenAnswer]) -> list[float]:
    ids, mask = left_padded([one.prompt + one.answer for one in batch], frozen.device)
    longest = max(len(one.answer) for one in batch)
    z = frozen.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids(mask),
        logits_to_keep=longest + 1,  # those that predict the answers, which all end at the right edge
    ).logits
    sums = []
    # Row by row, or the logits in double precision would be the largest thing in memory.
    for row, one in enumerate(batch):
        n = len(one.answer)
        predicted = z[row, longest - n : longest].double()
        tokens = ids[row, ids.shape[1] - n :]
        right = predicted.gather(-1, tokens[:, None])[:, 0]
        sums.append(float((predicted.logsumexp(-1) - right).sum()))
    return sums
