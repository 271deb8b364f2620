"""How likely given answers are under a language model: perplexity by a model that did not write them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd
import torch

from steerlib.models import FrozenModel, check_length, left_padded, position_ids
from steerlib.progress import progress_bar
from steerlib.prompting import TokenIds, prompt_ids, read_history
from steerlib.tables import SCHEMA


class _Answer(NamedTuple):
    prompt: TokenIds
    answer: TokenIds

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


def answer_likelihood(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    generations: pd.DataFrame,
    *,
    style: str,
    batch_tokens: int = 2048,
) -> pd.DataFrame:
    """Negative log-likelihood of each answer, given its prompt, under any model.

        nll = -sum_t ln p(y_t | prompt, y_<t)     over the answer's tokens, in nats

    Answers are read as text, so a model with another tokenizer can judge them; what ends an answer is no token of
    it. Under the model that wrote an answer, `nll` is the table's `nll_base` where its text has the same tokens
    again. Prompt and answer are tokenised apart and an answer keeps the white space that it opens with.

    Args:
        frozen: the model that judges; `FrozenModel.name` names it in the table.
        prompts: prompt_id, prompt and, where there are earlier turns, history.
        generations: arm_id, prompt_id, seed, text.
        style: of the generations, "chat" (by the judging model's own template) or "continuation".
        batch_tokens: tokens in one forward pass, pads counted; bounds memory.

    Returns:
        The fluency table, in the order of the generations: nll in nats, n_tokens of the judging model; both 0
        for an empty answer. Perplexities of models with unlike tokenizers are not comparable with each other.

    Raises:
        ValueError: a prompt that is not in its table or is empty, or prompt and answer longer than the model's
            context.

    Source: evaluation of Liu et al., DExperts, ACL 2021, where a larger, independent model judges; they average
    perplexities of single texts, see `perplexity`.
    """
    placed = _tokenised(frozen, prompts, generations, style)
    distinct = list(dict.fromkeys(placed))
    found: dict[_Answer, float] = {}
    with progress_bar(len(distinct), unit="answer", what=f"likelihood, {frozen.name}") as bar:
        for batch in _batches(distinct, batch_tokens):
            found.update(zip(batch, _summed_nll(frozen, batch), strict=True))
            bar.update(len(batch))
    rows = generations[["arm_id", "prompt_id", "seed"]].reset_index(drop=True)
    rows = rows.assign(
        scorer_model=frozen.name,
        nll=[found[answer] for answer in placed],
        n_tokens=[len(answer.answer) for answer in placed],
    )
    return rows[list(SCHEMA["fluency"].columns)]


def _tokenised(
    frozen: FrozenModel, prompts: pd.DataFrame, generations: pd.DataFrame, style: str
) -> list[_Answer]:
    rows = {row["prompt_id"]: row for row in prompts.to_dict("records")}
    rendered: dict[str, TokenIds] = {}
    placed = []
    for prompt, text in zip(generations["prompt_id"], generations["text"], strict=True):
        if prompt not in rows:
            raise ValueError(f"prompt {prompt!r} of the generations is not in the prompts")
        if prompt not in rendered:
            row = rows[prompt]
            history = read_history(row.get("history") or "")
            rendered[prompt] = prompt_ids(frozen, row["prompt"], style=style, history=history)
        answer = tuple(frozen.tokenizer(text, add_special_tokens=False).input_ids)
        check_length(frozen, rendered[prompt], len(answer), what=f"answer to prompt {prompt}")
        placed.append(_Answer(rendered[prompt], answer))
    return placed


def _batches(answers: Sequence[_Answer], batch_tokens: int) -> Iterator[list[_Answer]]:
    """Answers of like length together, the longest first, so that memory runs out at once or not at all."""
    waiting = sorted(answers, key=lambda answer: answer.length, reverse=True)
    while waiting:
        take = max(1, batch_tokens // waiting[0].length)
        batch, waiting = waiting[:take], waiting[take:]
        yield batch


@torch.inference_mode()
def _summed_nll(frozen: FrozenModel, batch: Sequence[_Answer]) -> list[float]:
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
