"""What the frozen model reads: prompts, conversations and given answers as token ids, and passes over them."""

import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from steerlib.models import FrozenModel, high_precision

Messages = Sequence[dict[str, str]]
TokenIds = tuple[int, ...]
CPU_TOKENS, GPU_TOKENS = 512, 4096
"""Tokens of a forward pass that reads texts, pads counted; with 4,096 a CPU takes 1.4 times as long."""
OPENING = "<think>"


def text_ids(frozen: FrozenModel, text: str) -> TokenIds:
    """Token ids of a plain text to be continued, with the tokenizer's own opening token where it has one."""
    ids = frozen.tokenizer(text).input_ids
    if not ids and frozen.tokenizer.bos_token_id is None:
        raise ValueError("an empty text has no tokens to continue")
    return tuple(ids or [frozen.tokenizer.bos_token_id])


def chat_ids(frozen: FrozenModel, messages: Messages) -> TokenIds:
    """Token ids of a conversation rendered once by the model's chat template, ready for its answer.

    A template without a system role, whether it raises an error or drops the system text silently, gets that text
    at the head of the first user turn. Some templates insert a system prompt of their own where none is given
    (SmolLM2's does), so a conversation without a system message is not context-free.

    The last of the turns is the user's. A ValueError says that the tokenizer has no chat template, or that the
    template drops a context or the last turn.
    """
    from jinja2 import TemplateError

    if not frozen.tokenizer.chat_template:
        raise ValueError(f"model {frozen.name!r} has no chat template; use style='continuation'")
    system, rendered = messages[0], ""
    try:
        rendered = _rendered(frozen, messages)
    except TemplateError:
        if system["role"] != "system":
            raise
    if system["role"] == "system" and not _holds(rendered, system["content"], messages):
        _, first, *rest = messages
        messages = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
        rendered = _rendered(frozen, messages)
    for turn in (messages[0], messages[-1]):
        if not _holds(rendered, turn["content"], messages):
            raise ValueError(
                f"the chat template of {frozen.name!r} drops the {turn['role']}'s text {turn['content'][:60]!r}"
            )
    return tuple(frozen.tokenizer(rendered, add_special_tokens=False).input_ids)


def _rendered(frozen: FrozenModel, messages: Messages) -> str:
    tokenizer: Any = frozen.tokenizer
    settings = {"tokenize": False, "add_generation_prompt": True, **frozen.template_arguments}
    return tokenizer.apply_chat_template(list(messages), **settings)


def _holds(rendered: str, text: str, messages: Messages) -> bool:
    """Whether a text of a conversation is in its rendering as often as in its turns; templates strip white space."""
    text = text.strip()
    return rendered.count(text) >= sum(turn["content"].count(text) for turn in messages)


def prompt_ids(
    frozen: FrozenModel, prompt: str, *, style: str, context: str = "", history: str = ""
) -> TokenIds:
    """Token ids of a prompt within a context: what one branch of the frozen model reads.

    In style "chat" the context is the system message and `history`, see `read_history`, are the turns between it and
    the prompt; in "continuation" context and earlier turns are paragraphs before the prompt. A ValueError says that the
    prompt is empty or the style unknown, or what `chat_ids` and `read_history` do.
    """
    turns = read_history(history)
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    if style == "continuation":
        paragraphs = [context, *(turn["content"] for turn in turns), prompt]
        return text_ids(frozen, "\n\n".join(text for text in paragraphs if text))
    if style != "chat":
        raise ValueError(f"style {style!r} is neither 'chat' nor 'continuation'")
    system = [{"role": "system", "content": context}] if context.strip() else []
    return chat_ids(frozen, [*system, *turns, {"role": "user", "content": prompt}])


def read_history(text: str) -> Messages:
    """Earlier turns of a conversation, from the JSON of the prompts table; a ValueError shows a text that is none."""
    if not text:
        return ()
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        turns = json.loads(text)
        fine = [turn["role"] in ("user", "assistant") and isinstance(turn["content"], str) for turn in turns]
        if isinstance(turns, list) and all(fine):
            return turns
    raise ValueError(f"history must be a JSON list of turns with role and content, not {text[:80]!r}")


def answer_ids(frozen: FrozenModel, answer: str, *, style: str) -> TokenIds:
    """Token ids of a given answer, to be set behind those of its prompt.

    Prompt and answer are tokenised apart, so that two answers share the prompt's ids. A continuation is joined by
    a space unless it opens with white space or punctuation.
    """
    joined = style == "continuation" and answer[:1].isalnum()
    return tuple(frozen.tokenizer(f" {answer}" if joined else answer, add_special_tokens=False).input_ids)


def after_thinking(text: str) -> str:
    """A reasoning model's answer without its thoughts: what follows the last `</think>`; empty if it never closes."""
    _, closed, answer = text.rpartition("</think>")
    if closed:
        return answer.lstrip()
    return "" if text.lstrip().startswith(OPENING) else text


def with_thoughts(frozen: FrozenModel, context: Sequence[int], ids: Sequence[int]) -> tuple[str, int]:
    """Text of an answer, and how many of its tokens are thoughts: up to the last `</think>`, all where none closes.

    Where the chat template opens the thought, `<think>` being its last word, the text has that word too.
    """
    tokenizer: Any = frozen.tokenizer
    decoded = partial(tokenizer.decode, skip_special_tokens=True)
    opened = decoded(context[-2 * len(OPENING) :]).rstrip().endswith(OPENING)
    text = f"{OPENING}{decoded(ids)}" if opened else decoded(ids)
    if after_thinking(text) == text:
        return text, 0
    closed = text.count("</think>")
    places = range(len(ids) + 1)
    of_thoughts = bisect_left(places, closed, key=lambda n: decoded(ids[:n]).count("</think>"))
    return text, of_thoughts if closed else len(ids)


def check_length(frozen: FrozenModel, ids: Sequence[int], max_new_tokens: int, *, what: str) -> None:
    """Refuse, with a ValueError that shows both lengths, a context that leaves no room for the answer."""
    needed = len(ids) + max_new_tokens
    if needed > frozen.max_length:
        raise ValueError(
            f"{what}: {len(ids)} context tokens and {max_new_tokens} new ones make {needed}, "
            f"more than the {frozen.max_length} of {frozen.name}"
        )


def left_padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of sequences padded on the left, both `(batch, seq)`; the mask is 0 on pads."""
    rows = [torch.tensor(ids, dtype=torch.long) for ids in sequences]
    pad = partial(pad_sequence, batch_first=True, padding_side="left")
    return pad(rows).to(device), pad([torch.ones_like(row) for row in rows]).to(device)


def position_ids(mask: Tensor) -> Tensor:
    """Position of each token within its own sequence, pads not counted, `(batch, seq)`."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def batch_tokens(device: torch.device) -> int:
    """How many tokens a forward pass that reads texts should have at most."""
    return CPU_TOKENS if device.type == "cpu" else GPU_TOKENS


def batches_by_length(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices of the sequences of each forward pass, the longest first: memory runs out at once or not at all.

    A pass has at most `most` tokens, pads counted. A longer sequence is a pass of its own, and one that
    would be half pads begins the next pass.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batch[0]] if batch else 0
        if batch and (longest * (len(batch) + 1) > most or 2 * lengths[i] < longest):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.inference_mode()
def last_logits(frozen: FrozenModel, contexts: Sequence[Sequence[int]]) -> Tensor:
    """Raw next-token logits after the token ids of each context, `(n, vocab)`, in float32 or the model's precision."""
    found: dict[int, Tensor] = {}
    for batch in batches_by_length([len(ids) for ids in contexts], batch_tokens(frozen.device)):
        ids, mask = left_padded([contexts[i] for i in batch], frozen.device)
        settings = {"position_ids": position_ids(mask), "logits_to_keep": 1}
        z = frozen.model(input_ids=ids, attention_mask=mask, **settings).logits[:, -1]
        found.update(zip(batch, z.to(torch.promote_types(z.dtype, torch.float32)), strict=True))
    return torch.stack([found[i] for i in range(len(contexts))])


@torch.inference_mode()
def answer_nll(frozen: FrozenModel, prompt: TokenIds, answer: TokenIds) -> float:
    """Negative log-likelihood of an answer given its prompt, in nats; 0 for an empty answer.

    nll = -sum_t ln p(y_t | prompt, y_<t)     over the answer's tokens
    """
    ids = torch.tensor([prompt + answer], device=frozen.device)
    z = frozen.model(input_ids=ids, logits_to_keep=len(answer) + 1).logits[0, :-1]
    right = high_precision(z).log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])
    return -float(right.sum())
