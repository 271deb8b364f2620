"""The residual stream: reading it and adding to it.

Layer l is the l-th decoder block, counted from 0; its residual is the block's OUTPUT. That equals
`hidden_states[l + 1]` of an unsteered forward pass, except for the last block, where transformers reports the value
after the final norm.
"""

import hashlib
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn

from steerlib.models import FrozenModel, decoder_blocks, high_precision
from steerlib.reading import (
    batch_tokens,
    batches_by_length,
    left_padded,
    position_ids,
    prompt_ids,
    text_ids,
)

POOLS = ("answer_mean", "last", "prompt_last")
PLAIN_TEXTS = (
    "The museum opens at nine and closes at five every day except Monday.",
    "She put the letter on the table and went to make some tea.",
    "Prices rose by two percent last year, mostly because of energy.",
    "If you want to learn a language, practise a little every day.",
)

Vectors = Mapping[int, Tensor]
"""Steering vectors by layer, `(d_model,)` in activation units."""
Output = Tensor | tuple
"""What a block returns: the residual stream, or a tuple that begins with it."""


def changed(output: Output, change: Callable[[Tensor], Tensor]) -> Output:
    """A block's output with another residual stream, in the form that the block returns it in."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


@dataclass(frozen=True, eq=False)
class VectorFamily:
    """A steering vector for everybody, or one for each user.

    Attributes:
        name: of the family: "population", "random", "dislike_weighted", "coordinates" or one of your own.
        vectors: by user_id and layer, `(d_model,)` in activation units; under "" the one for everybody.
        vector_user: "" for everybody's, "own" for each user's, "shuffled" where each user has another user's.
        control: "" for a family under study, else "random_vector" or "shuffled_profile".
        unit: what an alpha of 1 adds: "vector", the vector itself; "residual" where it has the residual's norm.
    """

    name: str
    vectors: Mapping[str, Vectors]
    vector_user: str = ""
    control: str = ""
    unit: str = "vector"

    def __post_init__(self) -> None:
        if not self.vectors or (set(self.vectors) == {""}) != (self.vector_user == ""):
            raise ValueError(
                f"family {self.name!r} has vector_user {self.vector_user!r} and vectors of {[*self.vectors][:3]}"
            )

    @cached_property
    def digest(self) -> str:
        """Hash of the numbers, the same however the file was written: other vectors are other arms."""
        content = hashlib.sha256()
        for user, vectors in sorted(self.vectors.items()):
            for layer, vector in sorted(vectors.items()):
                content.update(f"{user}\x1f{layer}\x1e".encode())
                content.update(vector.detach().cpu().float().numpy().tobytes())
        return content.hexdigest()[:8]

    @property
    def layers(self) -> str:
        """The layers as text, for instance "15-21"."""
        layers = sorted(next(iter(self.vectors.values())))
        whole = layers == [*range(layers[0], layers[-1] + 1)] and len(layers) > 1
        return f"{layers[0]}-{layers[-1]}" if whole else ",".join(map(str, layers))

    def user(self, user_id: str) -> str:
        """The key of `vectors` that a user is steered by; a ValueError names a user without one."""
        key = user_id if self.vector_user else ""
        if key not in self.vectors:
            raise ValueError(f"family {self.name!r} has no vector for user {user_id!r}")
        return key

    def of(self, user_id: str) -> Vectors:
        """Vectors by layer that a user is steered by, see `user`."""
        return self.vectors[self.user(user_id)]


VectorKey = tuple[str, ...]
"""Digest of a family and user_id of its vector; empty for no vector."""


def vectors_by_key(families: Sequence[VectorFamily]) -> dict[VectorKey, Vectors]:
    """All vectors of some families."""
    return {(one.digest, user): vectors for one in families for user, vectors in one.vectors.items()}


def family_of(arm: Mapping, families: Sequence[VectorFamily]) -> VectorFamily:
    """The family that an arm is steered by; a ValueError names it and those given where it is not among them."""
    wanted = (arm["family"], arm["vector_user"], arm["vector"])
    for family in families:
        if (family.name, family.vector_user, family.digest) == wanted:
            return family
    given = ", ".join(" ".join((f.name, f.vector_user, f.digest)) for f in families) or "none"
    raise ValueError(f"arm {arm['arm_id']} needs the vectors {' '.join(wanted)!r}; given are {given}")


@torch.inference_mode()
def record_residual(
    frozen: FrozenModel,
    contexts: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    prompt_lengths: Sequence[int],
    pool: str = "answer_mean",
) -> dict[int, Tensor]:
    """Pooled residuals of sequences of prompt and answer, all layers in one pass.

    `contexts` are token ids of prompt and answer, of which `prompt_lengths` are the prompt's. `pool` is "answer_mean"
    (mean over the answer's tokens), "last" (last token) or "prompt_last" (the prompt's last).

    By layer, `(n, d_model)` in float64, in activation units. An IndexError names a layer that the model lacks, a
    ValueError an unknown pool or a sequence without answer tokens.
    """
    if pool not in POOLS:
        raise ValueError(f"pool {pool!r} is none of {', '.join(POOLS)}")
    check_layers(layers, frozen.n_layers)
    spans = []
    for row, (ids, length) in enumerate(zip(contexts, prompt_lengths, strict=True)):
        if not 0 < length <= len(ids) - (pool != "prompt_last"):
            raise ValueError(f"sequence {row}: {len(ids)} tokens, {length} of them prompt, have no {pool}")
        first = {"answer_mean": length, "last": len(ids) - 1, "prompt_last": length - 1}[pool]
        spans.append((first, length if pool == "prompt_last" else len(ids)))
    pooled = {layer: torch.empty(len(contexts), frozen.d_model, dtype=torch.float64) for layer in layers}
    for rows in batches_by_length([len(ids) for ids in contexts], batch_tokens(frozen.device)):
        ids, mask = left_padded([contexts[i] for i in rows], frozen.device)
        position = position_ids(mask)
        start, stop = torch.tensor([spans[i] for i in rows], device=mask.device)[..., None].unbind(1)
        chosen = high_precision((position >= start) & (position < stop) & mask.bool())
        weights = chosen / chosen.sum(-1, keepdim=True)
        with ExitStack() as stack:
            for layer in layers:
                hook = partial(_pool_into, pooled[layer], rows, weights, layer == max(layers))
                stack.enter_context(frozen.blocks[layer].register_forward_hook(hook))
            stack.enter_context(suppress(_Recorded))
            frozen.model(input_ids=ids, attention_mask=mask, position_ids=position, logits_to_keep=1)
    return pooled


class _Recorded(Exception):
    """Nothing above the last layer is needed: a quarter of the work for layers in the middle."""


def _pool_into(pooled: Tensor, rows: list[int], weights: Tensor, last: bool, *block: Any) -> None:
    """Hook, called with the block, its inputs and its output."""
    output: Output = block[-1]
    residual = output[0] if isinstance(output, tuple) else output
    means = torch.einsum("bs,bsd->bd", weights.to(residual.device), high_precision(residual))
    pooled[rows] = means.cpu().double()
    if last:
        raise _Recorded


def prompt_residuals(
    frozen: FrozenModel, prompts: pd.DataFrame, *, layers: Sequence[int], style: str
) -> dict[int, Tensor]:
    """`record_residual` at the last position of each prompt, which predicts the first answer token.

    `prompts` is the prompts table, or any frame with prompt and, where there are earlier turns, history.
    """
    ids = [
        prompt_ids(frozen, row["prompt"], style=style, history=row.get("history") or "")
        for row in prompts.to_dict("records")
    ]
    return record_residual(frozen, ids, layers=layers, prompt_lengths=list(map(len, ids)), pool="prompt_last")


def typical_norms(frozen: FrozenModel, layers: Sequence[int]) -> dict[int, float]:
    """n_l, the norm of the unsteered residual at each layer: the mean over the tokens of a few ordinary sentences.

    First tokens are left out: they are attention sinks, whose residual is a hundred times longer in middle layers.

    Source: Sun et al., Massive Activations in Large Language Models (arXiv 2402.17762).
    """
    texts = [text_ids(frozen, text) for text in PLAIN_TEXTS]
    starts = [ids[:n] for ids in texts for n in range(2, len(ids) + 1)]
    recorded = record_residual(frozen, starts, layers=layers, prompt_lengths=[1] * len(starts), pool="last")
    return {layer: float(rows.norm(dim=-1).mean()) for layer, rows in recorded.items()}


def in_unit(frozen: FrozenModel, vectors: Vectors, unit: str) -> Vectors:
    """What an alpha of 1 adds; a vector of 0 has no direction and is refused in unit "residual".

    v_l                     unit "vector"
    n_l v_l / ||v_l||       unit "residual": alpha is `relative_norm`, the share of the residual's norm
    """
    if unit not in ("vector", "residual"):
        raise ValueError(f"unit {unit!r} is neither 'vector' nor 'residual'")
    if unit == "vector":
        return vectors
    for layer, vector in vectors.items():
        if not vector.norm() > 0:
            raise ValueError(f"unit 'residual': the vector is 0 at layer {layer}")
    norms = typical_norms(frozen, list(vectors))
    return {layer: vector * (norms[layer] / vector.norm()) for layer, vector in vectors.items()}


def check_layers(layers: Sequence[int], n_layers: int) -> None:
    """Refuse a layer outside 0..n_layers-1 with an IndexError that names it."""
    for layer in layers:
        if not 0 <= layer < n_layers:
            raise IndexError(f"layer {layer} is not in 0..{n_layers - 1}")


def steered_range(positions: str, prompt_length: Any) -> tuple[Any, Any]:
    """The first steered position of a sequence, counted from 0, and the first one behind the steered ones.

    "all"; "prompt" (positions before the last of the prompt); "generation" (those that predict an answer token);
    "first_k:K" (those that predict the first K). The prompt's last position predicts the first answer token, so
    "generation" includes it and "first_k:1" is it alone. `prompt_length` is a number or a tensor.
    """
    last = prompt_length - 1
    name, _, number = positions.partition(":")
    if name == "first_k" and number.isdigit():
        return last, last + int(number)
    known = {"all": (0, sys.maxsize), "prompt": (0, last), "generation": (last, sys.maxsize)}
    if positions not in known:
        raise ValueError(f"positions {positions!r} is none of {', '.join(known)}, first_k:8")
    return known[positions]


class ResidualDose:
    """What the hooks of `steering_hooks` add: `coefficients` `(batch, seq, n_vectors)`, or None for nothing.

    `first_layers` are the lowest layer at which each vector is not zero, by its key and in the order of the
    coefficients; one above all layers for a zero vector.
    """

    def __init__(self, vectors: Mapping[VectorKey, Vectors] | None = None) -> None:
        self.coefficients: Tensor | None = None
        vectors = vectors or {}
        none = 1 + max((layer for vector in vectors.values() for layer in vector), default=-1)
        self.first_layers = {
            key: min((layer for layer, direction in vector.items() if direction.any()), default=none)
            for key, vector in vectors.items()
        }


@contextmanager
def steering_hooks(
    model: nn.Module, vectors: Mapping[VectorKey, Vectors]
) -> Generator[ResidualDose, None, None]:
    """Hooks on decoder blocks that add a combination of steering vectors to their outputs, under `with`.

        h_l <- h_l + sum_i c_i v_il     a vector without a layer adds nothing there

    Yields what is added; set its `coefficients` before each forward pass. An IndexError names a layer that the model
    lacks, a ValueError one at which the vector has another width.
    """
    blocks, config = decoder_blocks(model), cast(Any, model.config)
    layers = sorted({layer for vector in vectors.values() for layer in vector})
    check_layers(layers, len(blocks))
    nothing = torch.zeros(config.get_text_config().hidden_size)
    for layer, direction in (pair for vector in vectors.values() for pair in vector.items()):
        if direction.shape != nothing.shape:
            raise ValueError(f"layer {layer}: the vector is {len(direction)} wide, the model {len(nothing)}")
    dose, on = ResidualDose(vectors), {weight.device for weight in model.parameters()}
    device = next((place for place in on if place.type != "meta"), "cpu")  # accelerate keeps weights on none

    def hook(directions: Tensor, *block: Any) -> Output | None:
        amount = dose.coefficients
        return None if amount is None else changed(block[-1], lambda h: h + amount.to(h) @ directions.to(h))

    with ExitStack() as stack:
        for layer in layers:
            directions = torch.stack([one.get(layer, nothing).to(device) for one in vectors.values()])
            stack.enter_context(blocks[layer].register_forward_hook(partial(hook, directions)))
        yield dose


@contextmanager
def add_to_residual(
    model: nn.Module,
    vectors: Vectors,
    *,
    alpha: float | Tensor = 1.0,
    positions: str = "all",
    prompt_lengths: Tensor | None = None,
) -> Generator[None, None, None]:
    """Add alpha times a steering vector to the residual stream of some layers, under `with`.

        h_l <- h_l + alpha v_l     at the steered positions, pads excluded

    Works for plain forward passes and under `model.generate`: positions (see `steered_range`) are counted within
    each sequence, right under left padding, batches, beams and the KV cache.

    Alpha is dimensionless, a number or one per row, `(batch,)`. `prompt_lengths` are the tokens of each prompt,
    `(batch,)`; None: whatever a forward pass reads that continues no earlier one is a prompt.

    Raises as `steering_hooks`, and ValueError for an alpha that is not finite or whose rows are not the batch's, or an
    attention mask that is not `(batch, seq)`.

    Source: Panickssery et al. (arXiv 2312.06681, sec. 3), who add after the prompt and at one layer; "all" and several
    layers are those of the CAA-on-PRISM study.
    """
    strength = torch.as_tensor(alpha, dtype=torch.float32)
    if not strength.isfinite().all():
        raise ValueError(f"alpha must be finite, not {alpha}")
    lengths, prompt = prompt_lengths, None

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:  # noqa: ARG001
        nonlocal lengths, prompt
        ids = args[0] if args else kwargs.get("input_ids")
        ids = kwargs["inputs_embeds"] if ids is None else ids
        cache = kwargs.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        mask = kwargs.get("attention_mask")
        mask = torch.ones(len(ids), past + ids.shape[1], device=ids.device) if mask is None else mask
        if mask.ndim != 2:
            raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; steering needs (batch, seq)")
        if strength.ndim and len(strength) != len(ids):
            raise ValueError(f"alpha has {len(strength)} rows, the batch {len(ids)}")
        if prompt_lengths is None and not past:
            # Without a cache each step reads everything anew: the prompt and what has been generated.
            longer = prompt is not None and ids.shape[0] == prompt.shape[0] and ids.shape[1] > prompt.shape[1]
            if not (longer and torch.equal(ids[:, : prompt.shape[1]], prompt)):
                lengths, prompt = mask.sum(-1), ids
        position, mask = (one[:, -ids.shape[1] :] for one in (position_ids(mask), mask))
        known = cast(Tensor, lengths).to(mask.device)[:, None]
        start, stop = steered_range(positions, known)
        steered = (position >= start) & (position < stop) & mask.bool()
        dose.coefficients = (steered * strength.to(mask.device).reshape(-1, 1))[..., None]

    with (
        steering_hooks(model, {(): vectors}) as dose,
        model.register_forward_pre_hook(before, with_kwargs=True),
    ):
        yield
