"""How likely given answers are: what a model says of tokens that it may not have chosen.

What the frozen model reads: prompts, conversations and given answers as token ids.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import BatchEncoding

from steerlib.models import FrozenModel

Messages = Sequence[dict[str, str]]
TokenIds = tuple[int, ...]


def text_ids(frozen: FrozenModel, text: str) -> TokenIds:
    """Token ids of a plain text to be continued, with the tokenizer's own opening token where it has one."""
    ids = frozen.tokenizer(text).input_ids
    return tuple(ids) if ids else _opening(frozen)


def _opening(frozen: FrozenModel) -> TokenIds:
    token = frozen.tokenizer.bos_token_id
    if token is None:
        raise ValueError("an empty text has no tokens to continue")
    return (token,)


def chat_ids(frozen: FrozenModel, messages: Messages) -> TokenIds:
    """Token ids of a conversation rendered once by the model's chat template, ready for its answer.

    A template that knows no system role gets the system text at the head of the first user turn. Some
    templates insert a system prompt of their own where none is given (SmolLM2's does), so that a
    conversation without a system message is not context-free.

    Args:
        frozen: the model.
        messages: turns with "role" and "content"; the last is the user's.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if not frozen.tokenizer.chat_template:
        raise ValueError(f"model {frozen.name!r} has no chat template; use style='continuation'")
    try:
        return _rendered(frozen, messages)
    except TemplateError:
        if messages[0]["role"] != "system":
            raise
        system, first, *rest = messages
        folded = {"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}
        return _rendered(frozen, [folded, *rest])


def _rendered(frozen: FrozenModel, messages: Messages) -> TokenIds:
    rendered = frozen.tokenizer.apply_chat_template(
        list(messages), tokenize=True, add_generation_prompt=True, return_dict=True
    )
    return tuple(cast(BatchEncoding, rendered)["input_ids"])


def prompt_ids(
    frozen: FrozenModel, prompt: str, *, style: str, context: str = "", history: Messages = ()
) -> TokenIds:
    """Token ids of a prompt within a context: what one branch of the frozen model reads.

    Args:
        frozen: the model.
        prompt: the user's words, or the opening of a text to continue.
        style: "chat" (the chat template; the context is the system message) or "continuation" (plain text;
            the context is a paragraph before the prompt).
        context: instruction of the branch; empty for the base branch.
        history: earlier turns of the conversation, the user's and the model's by turns; in a continuation each is a
            paragraph between context and prompt.

    Raises:
        ValueError: an unknown style, an empty prompt, or a model without a chat template.
    """
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    if style == "continuation":
        paragraphs = [context, *(turn["content"] for turn in history), prompt]
        return text_ids(frozen, "\n\n".join(text for text in paragraphs if text))
    if style != "chat":
        raise ValueError(f"style {style!r} is neither 'chat' nor 'continuation'")
    system = [{"role": "system", "content": context}] if context else []
    return chat_ids(frozen, [*system, *history, {"role": "user", "content": prompt}])


def read_history(text: str) -> Messages:
    """Earlier turns of a conversation as the prompts table keeps them: JSON, empty for none.

    Raises:
        ValueError: not a list of turns with role "user" or "assistant" and content; the text is shown.
    """
    if not text:
        return ()
    try:
        turns = json.loads(text)
        fine = isinstance(turns, list) and all(
            turn["role"] in ("user", "assistant") and isinstance(turn["content"], str) for turn in turns
        )
    except (ValueError, TypeError, KeyError):
        fine = False
    if not fine:
        raise ValueError(f"history must be a JSON list of turns with role and content, not {text[:80]!r}")
    return turns


def answer_ids(frozen: FrozenModel, answer: str, *, style: str) -> TokenIds:
    """Token ids of a given answer, to be set behind those of its prompt.

    Prompt and answer are tokenised apart, so that two answers share the prompt's ids. A continuation is joined by
    a space unless it opens with white space or punctuation.
    """
    joined = style == "continuation" and answer[:1].isalnum()
    return tuple(frozen.tokenizer(f" {answer}" if joined else answer, add_special_tokens=False).input_ids)


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
    distinct = list(dict.fromkeys(answers))
    for rows in batches_by_length([answer.length for answer in distinct], batch_tokens):
        batch = [distinct[i] for i in rows]
        found.update(zip(batch, _read(frozen, batch), strict=True))
        if progress:
            progress(len(batch))
    return [found[answer] for answer in answers]


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


def check_length(frozen: FrozenModel, ids: Sequence[int], max_new_tokens: int, *, what: str) -> None:
    """Refuse a context that leaves no room for the answer.

    Raises:
        ValueError: context and answer together are longer than the model's context; both lengths are shown.
    """
    needed = len(ids) + max_new_tokens
    if needed > frozen.max_length:
        raise ValueError(
            f"{what}: {len(ids)} context tokens and {max_new_tokens} new ones make {needed}, "
            f"more than the {frozen.max_length} of {frozen.name}"
        )


def left_padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sequences of token ids padded on the left to one length.

    Returns:
        ids and attention mask, both `(batch, seq)`; the mask is 0 on pads.
    """
    longest = max(len(ids) for ids in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence)
        mask[row, longest - len(sequence) :] = 1
    return ids.to(device), mask.to(device)


def position_ids(mask: Tensor) -> Tensor:
    """Position of each token within its own sequence, pads not counted, `(batch, seq)`."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of the sequences of each forward pass, the longest first: memory runs out at once or not at all.

    Args:
        lengths: tokens of each sequence.
        batch_tokens: tokens of a pass, pads counted; a longer sequence is a pass of its own.
    """
    waiting = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while waiting:
        take = max(1, batch_tokens // max(1, lengths[waiting[0]]))
        yield waiting[:take]
        waiting = waiting[take:]


@torch.inference_mode()
def last_logits(
    frozen: FrozenModel, contexts: Sequence[Sequence[int]], *, batch_tokens: int = 4096
) -> Tensor:
    """Raw next-token logits after each context.

    Args:
        frozen: the model.
        contexts: token ids, one sequence a context.
        batch_tokens: tokens in one forward pass, pads counted; bounds memory.

    Returns:
        Logits `(len(contexts), vocab)`, float32 or the model's own precision where that is higher.
    """
    found: dict[int, Tensor] = {}
    for batch in batches_by_length([len(ids) for ids in contexts], batch_tokens):
        ids, mask = left_padded([contexts[i] for i in batch], frozen.device)
        z = frozen.model(
            input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), logits_to_keep=1
        ).logits[:, -1]
        found.update(zip(batch, z.to(torch.promote_types(z.dtype, torch.float32)), strict=True))
    return torch.stack([found[i] for i in range(len(contexts))])
