"""Log-likelihood of given texts by teacher forcing: every branch reads a text once, whatever the alphas.

Texts are read as a tree: one sequence in which a shared opening stands once and a token attends to its own text only.
Readings that differ in a steering vector alone share all blocks up to the first steered one.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from steerlib.decoding import Contexts, branch_ids
from steerlib.decoding.requests import Inputs, Request, Stream, VectorKey, make_requests
from steerlib.models import FrozenModel
from steerlib.reading import (
    TokenIds,
    after_thinking,
    answer_ids,
    batches_by_length,
    check_length,
    prompt_ids,
)
from steerlib.residual import VectorFamily, Vectors, steered_range, steering_hooks, vectors_by_key
from steerlib.rules import RULES, js_divergence
from steerlib.tables import SCHEMA, check_table, progress_bar

Forced = tuple[Stream, TokenIds]
"""A branch's context, and the answer that is read after it."""
TREE, PASS = 256, 2048
"""Tokens of a tree (a longer one costs more in attention than it saves), and of all readings of a forward pass."""


class Text(NamedTuple):
    """Readings of one text that differ in steering alone, its answer, and its tokens as they are shared in a tree."""

    streams: list[Stream]
    answer: TokenIds
    tokens: tuple[tuple[int, bool], ...]

    @property
    def steering(self) -> list[tuple[VectorKey, float, str]]:
        return [(stream.vector, stream.alpha, stream.positions) for stream in self.streams]


def forced_logits(
    models: Mapping[str, FrozenModel], texts: Iterable[Forced], families: Sequence[VectorFamily] = ()
) -> Iterator[tuple[Forced, Tensor]]:
    """Yields each text, a branch and the answer's token ids, with its logits `(n_tokens, vocab)`; equal ones once.

        z[t] = logits after (context, y_1 .. y_{t-1}), float32 or the model's own precision where that is higher

    `models` has the frozen model under "" and trained branches by name, see `Stream.model`; no answer is empty.
    """
    vectors = vectors_by_key(families)
    readings: dict[tuple, list[Stream]] = defaultdict(list)
    for stream, answer in dict.fromkeys(texts):
        readings[stream.model, stream.ids, answer].append(stream)
    groups: dict[tuple[str, int], list[Text]] = defaultdict(list)
    for (model, ids, answer), streams in readings.items():
        # Tokens from the context's last one on are marked: steering of the answer begins there.
        tokens = tuple((token, i >= len(ids) - 1) for i, token in enumerate(ids + answer[:-1]))
        own = sorted(streams, key=lambda one: (one.vector, one.alpha, one.positions))
        groups[model, len(own)].append(Text(own, answer, tokens))
    for (model, rows), group in groups.items():
        frozen = models[model]
        # A sliding window counts places of the sequence, of which a tree has more than a text.
        window = getattr(frozen.model.config.get_text_config(), "sliding_window", None)
        alone = window and max(len(text.tokens) for text in group) > window
        for tree in _trees(group, 1 if alone else min(TREE, PASS // rows)):
            yield from _read(frozen, tree, vectors)


def _trees(texts: Sequence[Text], most: int) -> Iterator[list[tuple[Text, list[int]]]]:
    """Texts of each forward pass with the places of their tokens in it; `most` tokens, or a single text."""
    tree: list[tuple[Text, list[int]]] = []
    size = 0
    for text in sorted(texts, key=lambda one: (one.steering, one.tokens)):
        shared = 0
        if tree and tree[-1][0].steering == text.steering:
            differs = (a != b for a, b in zip(tree[-1][0].tokens, text.tokens, strict=False))
            shortest = min(len(tree[-1][1]), len(text.tokens))
            shared = next((i for i, one in enumerate(differs) if one), shortest)
        if tree and size + len(text.tokens) - shared > most:
            yield tree
            tree, size, shared = [], 0, 0
        opening = tree[-1][1][:shared] if shared else []
        tree.append((text, [*opening, *range(size, size + len(text.tokens) - shared)]))
        size += len(text.tokens) - shared
    yield tree


@torch.inference_mode()
def _read(
    frozen: FrozenModel, tree: Sequence[tuple[Text, list[int]]], vectors: Mapping[VectorKey, Vectors]
) -> Iterator[tuple[Forced, Tensor]]:
    """One forward pass over a tree; see `forced_logits`."""
    size, rows = 1 + max(max(places) for _, places in tree), len(tree[0][0].streams)
    names = sorted({stream.vector for text, _ in tree for stream in text.streams if stream.vector})
    ids, position = torch.zeros(2, 1, size, dtype=torch.long)
    seen = torch.zeros(size, size, dtype=torch.bool)
    added = torch.zeros(rows, size, len(names))
    for text, places in tree:
        at, order, n = torch.tensor(places), torch.arange(len(places)), len(text.streams[0].ids)
        ids[0, at] = torch.tensor([token for token, _ in text.tokens])
        position[0, at] = order
        seen[at[:, None], at] = order[:, None] >= order
        for row, stream in enumerate(text.streams):
            if stream.vector:
                start, stop = steered_range(stream.positions, n)
                steered = (order >= start) & (order < stop)
                added[row, at, names.index(stream.vector)] = stream.alpha * steered
    wanted = sorted({place for text, places in tree for place in places[-len(text.answer) :]})
    mask = torch.zeros(1, 1, size, size, dtype=frozen.dtype).masked_fill(~seen, torch.finfo(frozen.dtype).min)
    with ExitStack() as stack:
        if rows > 1:  # registered before the steering, so that the first steered block is run once
            first = frozen.blocks[min(layer for name in names for layer in vectors[name])]
            hook = first.register_forward_hook(lambda block, inputs, output: _repeated(output, rows))  # noqa: ARG005
            stack.callback(hook.remove)
        steering = stack.enter_context(steering_hooks(frozen.model, {name: vectors[name] for name in names}))
        steering.coefficients = added.to(frozen.device)
        z = frozen.model(
            input_ids=ids.to(frozen.device),
            attention_mask=mask.to(frozen.device) if len(tree) > 1 else None,
            position_ids=position.to(frozen.device),
            logits_to_keep=torch.tensor(wanted, device=frozen.device),
            use_cache=False,
        ).logits
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    column = {place: i for i, place in enumerate(wanted)}
    for text, places in tree:
        columns = [column[place] for place in places[-len(text.answer) :]]
        for row, stream in enumerate(text.streams):
            yield (stream, text.answer), z[row, columns]


def _repeated(output: Tensor | tuple, rows: int) -> Tensor | tuple:
    """A block's output, the same for each of so many rows."""
    if isinstance(output, tuple):
        return (output[0].expand(rows, -1, -1), *output[1:])
    return output.expand(rows, -1, -1)


def log_probability(z: Tensor, answer: TokenIds) -> list[float]:
    """Log-probability of each token of an answer in nats, of the logits that predict it."""
    return z.log_softmax(-1).gather(-1, torch.tensor(answer, device=z.device)[:, None])[:, 0].tolist()


def answer_likelihood(
    frozen: FrozenModel, prompts: pd.DataFrame, generations: pd.DataFrame, *, style: str
) -> pd.DataFrame:
    """The fluency table: negative log-likelihood of each answer, given its prompt, under any model.

        nll = -sum_t ln p(y_t | prompt, y_<t)     over the answer's tokens, in nats

    Answers are read as text, so a model with another tokenizer can judge them (perplexities of two tokenizers are not
    comparable); neither a stop token nor thoughts are part of an answer, and an empty one has nll and n_tokens 0.
    `style` is that of the generations: "chat" (the judging model's own template) or "continuation". A ValueError for
    a prompt that is not in its table or is empty, or a text longer than the model's context.

    Source: Liu et al., DExperts, ACL 2021: a larger, independent model judges; they average perplexities of texts.
    """
    known = {row["prompt_id"]: row for row in prompts.to_dict("records")}
    read: dict[str, Stream] = {}
    texts: list[Forced] = []
    for prompt, text in zip(generations["prompt_id"], generations["text"], strict=True):
        if prompt not in known:
            raise ValueError(f"prompt {prompt!r} of the generations is not in the prompts")
        if prompt not in read:
            history = known[prompt].get("history") or ""
            read[prompt] = Stream(prompt_ids(frozen, known[prompt]["prompt"], style=style, history=history))
        answer = tuple(frozen.tokenizer(after_thinking(text), add_special_tokens=False).input_ids)
        check_length(frozen, read[prompt].ids, len(answer), what=f"answer to prompt {prompt}")
        texts.append((read[prompt], answer))
    nll = {text: 0.0 for text in texts}
    asked = [text for text in nll if text[1]]
    with progress_bar(len(asked), unit="answer", what=f"likelihood, {frozen.name}") as bar:
        for text, z in forced_logits({"": frozen}, asked):
            nll[text] = -sum(log_probability(z, text[1]))
            bar.update()
    found = generations[["arm_id", "prompt_id", "seed"]].reset_index(drop=True)
    found = found.assign(scorer_model=frozen.name, nll=[nll[text] for text in texts])
    return found.assign(n_tokens=[len(answer) for _, answer in texts])[list(SCHEMA["fluency"].columns)]


def likelihood_margins(
    frozen: FrozenModel, pairs: pd.DataFrame, arms: pd.DataFrame, **inputs: Unpack[Inputs]
) -> pd.DataFrame:
    """Margin of every pair under every arm: is the preferred answer the more likely one?

        m = log p(y+ | x) / n+ - log p(y- | x) / n-,   log p(y | x) = sum_t log softmax(b[t] + alpha s[t])[y_t]

    b and s are intercept and slope of the rule over its branches; temperature, penalty and nucleus play no part. Sides
    are compared per token, or a longer answer would nearly always be the less likely one; see also `length_margins`.

    Args:
        pairs: pair_id, user_id, prompt, preferred, dispreferred; for arms of profile "own" or "shuffled" also category
            or shuffled_category, the user's, unless the arm's signal is a user's vector.
        arms: of one style; inputs: as of `decode`.

    Returns:
        The preference table, model being the arm_id, pair by pair; margin in nats per token.

    Raises:
        ValueError: arms of several styles, an answer without tokens or too long for the model's context, or what
            `make_requests` refuses.
    """
    styles = arms["style"].unique()
    if len(styles) != 1:
        raise ValueError(f"arms must be of one style, not {', '.join(styles)}")
    models, sides = {"": frozen, **(inputs.get("branch_models") or {})}, ("preferred", "dispreferred")
    asked, vectors = pairs.rename(columns={"pair_id": "prompt_id"}), inputs.get("vectors", ())
    shortest = arms.assign(max_new_tokens=1, temperature=0.0, min_temperature=0.0)
    requests = make_requests(frozen, asked, shortest, seeds=[0], **inputs)
    by_pair = [requests[i : i + len(arms)] for i in range(0, len(requests), len(arms))]
    answers = [[answer_ids(frozen, text, style=styles[0]) for text in pairs[side]] for side in sides]
    texts = [
        _texts(models, pair, own, both)
        for pair, own, *both in zip(pairs["pair_id"], by_pair, *answers, strict=True)
    ]
    margins = np.empty((len(pairs), len(arms)))
    with progress_bar(len(pairs), unit="pair", what="likelihood of pairs") as bar:
        for block in batches_by_length([sum(len(answer) for _, answer in own) for own in texts], PASS):
            z = dict(forced_logits(models, [text for i in block for text in texts[i]], vectors))
            for i in block:
                likes, dislikes = (_per_token(by_pair[i], side[i], z) for side in answers)
                margins[i] = likes - dislikes
            bar.update(len(block))
    found = pairs[["pair_id", "user_id"]].loc[pairs.index.repeat(len(arms))]
    found = found.assign(model=[*arms["arm_id"]] * len(pairs), margin=margins.ravel())
    return check_table("preference", found.reset_index(drop=True))


def read_streams(request: Request) -> dict[str, Stream]:
    """What the rule of a request reads, by branch; a vector beside a logit rule steers its base too."""
    streams = dict(request.branches)
    return streams | {"base": streams["steered"]} if "steered" in streams else streams


def _texts(
    models: Mapping[str, FrozenModel], pair: str, requests: Sequence[Request], answers: Sequence[TokenIds]
) -> list[Forced]:
    """Every branch with either answer, lengths checked."""
    streams = dict.fromkeys(one for request in requests for one in read_streams(request).values())
    if not all(answers):
        raise ValueError(f"pair {pair}: an answer has no tokens")
    for stream in streams:
        check_length(models[stream.model], stream.ids, max(map(len, answers)), what=f"pair {pair}")
    return [(stream, answer) for stream in streams for answer in answers]


def _per_token(requests: Sequence[Request], answer: TokenIds, z: Mapping[Forced, Tensor]) -> np.ndarray:
    """Mean log-probability of the answer's tokens under each request; a line serves all its alphas."""
    lines: dict[tuple, tuple[Tensor, Tensor]] = {}
    found = []
    for request in requests:
        streams = read_streams(request)
        key = (request.method, *streams.values())
        if key not in lines:
            lines[key] = RULES[request.method].line({name: z[one, answer] for name, one in streams.items()})
        intercept, slope = lines[key]
        found.append(sum(log_probability(intercept + request.alpha * slope, answer)) / len(answer))
    return np.array(found)


def token_divergence(
    frozen: FrozenModel, prompts: pd.DataFrame, answers: pd.Series, *, style: str, contexts: Contexts
) -> pd.DataFrame:
    """Jensen-Shannon divergence of SDA's two branches at every token of given answers: what its temperature reads.

        JS_t = KL(P1 || M)/2 + KL(P2 || M)/2,   P1 = P(. | Q, y_<t),  P2 = P(. | Q, I, y_<t),  M = (P1 + P2)/2

    `prompts` have prompt_id, prompt and category (key of the contexts), `answers` are texts by prompt_id. One row a
    token: prompt_id, js in nats (0 to ln 2). A ValueError for an answer to no prompt, contexts without
    instruction, or a text longer than the model's context.

    Source: SDA, eq. 6.
    """
    strange = answers.index.difference(prompts["prompt_id"])
    if len(strange):
        raise ValueError(f"answer to {strange[0]!r}: there is no such prompt")
    rows: list[tuple] = []
    for prompt in prompts[prompts["prompt_id"].isin(answers.index)].to_dict("records"):
        ids = answer_ids(frozen, answers[prompt["prompt_id"]], style=style)
        read = partial(branch_ids, category=prompt["category"], style=style, contexts=contexts)
        both = [Stream(read(frozen, prompt["prompt"], branch)) for branch in ("base", "instructed")]
        check_length(frozen, both[1].ids, len(ids), what=f"prompt {prompt['prompt_id']}")
        z = dict(forced_logits({"": frozen}, [(stream, ids) for stream in both] if ids else []))
        if z:
            js = js_divergence(*(z[stream, ids] for stream in both))
            rows += [(prompt["prompt_id"], at) for at in js.tolist()]
    return pd.DataFrame(rows, columns=["prompt_id", "js"])
