"""Teacher forcing: what each branch says at every token of answers that are given, the prompt being read once."""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from steerlib.models import FrozenModel, left_padded, position_ids
from steerlib.prompting import TokenIds


@torch.inference_mode()
def forced_logits(
    frozen: FrozenModel,
    contexts: Mapping[str, TokenIds],
    answers: Sequence[TokenIds],
    *,
    batch_tokens: int = 1024,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Logits of every branch that predict the tokens of given answers.

        z_b[t] = logits after (context of b, y_1 .. y_{t-1})

    All branches read their contexts in one forward pass, whose cache the answers share.

    Args:
        frozen: the model.
        contexts: token ids that each branch reads before the answer.
        answers: token ids of each answer; none empty.
        batch_tokens: answer tokens in one forward pass, over all branches and pads counted; bounds memory.

    Yields:
        Place of an answer in `answers`, and by branch its logits `(n_tokens, vocab)`; the longest answers first.
    """
    ids, mask = left_padded(list(contexts.values()), frozen.device)
    read = frozen.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids(mask),
        logits_to_keep=1,
        use_cache=True,
    )
    for places in _batches(answers, len(contexts), batch_tokens):
        inputs = [answers[i][:-1] for i in places]
        later = _continued(frozen, read.past_key_values, mask, inputs) if any(inputs) else None
        for row, (place, given) in enumerate(zip(places, inputs, strict=True)):
            z = {}
            for branch, name in enumerate(contexts):
                first = read.logits[branch, -1:]
                rest = [] if later is None else [later[branch * len(places) + row, : len(given)]]
                z[name] = torch.cat([first, *rest])
            yield place, z


def _batches(answers: Sequence[TokenIds], branches: int, batch_tokens: int) -> Iterator[list[int]]:
    """Places of answers of like length together, the longest first."""
    waiting = sorted(range(len(answers)), key=lambda i: len(answers[i]), reverse=True)
    while waiting:
        take = max(1, batch_tokens // (branches * max(1, len(answers[waiting[0]]))))
        batch, waiting = waiting[:take], waiting[take:]
        yield batch


def _continued(frozen: FrozenModel, cache: object, mask: Tensor, inputs: Sequence[TokenIds]) -> Tensor:
    """Logits after each token of the inputs behind each cached context, `(branches * inputs, longest, vocab)`."""
    longest = max(map(len, inputs))
    ids = torch.zeros(len(inputs), longest, dtype=torch.long, device=mask.device)
    for row, given in enumerate(inputs):
        ids[row, : len(given)] = torch.tensor(given, dtype=torch.long)
    own = copy.deepcopy(cache)  # a pass writes into its cache
    own.batch_repeat_interleave(len(inputs))  # ty: ignore[missing-attribute]
    before = mask.repeat_interleave(len(inputs), 0)
    # Pads stand right of an answer, where no token of it looks.
    whole = torch.cat([before, torch.ones_like(ids).repeat(len(mask), 1)], 1)
    return frozen.model(
        input_ids=ids.repeat(len(mask), 1),
        attention_mask=whole,
        position_ids=position_ids(whole)[:, -longest:],
        past_key_values=own,
        use_cache=True,
    ).logits
