"""How large a push is beside what it pushes: the norm of alpha v_l relative to that of the residual.

Which tokens of a prompt with its answer are read into one residual.

The residual stream: reading it and adding to it.

Layer l is the l-th decoder block, counted from 0; its residual is the block's OUTPUT. That equals
`hidden_states[l + 1]` of an unsteered forward pass, except for the last block, where transformers reports
the value after the final norm.

Several steering vectors as hooks of one forward pass.

The residual of a prompt's last token: where the answer's first token is decided.

Conditional steering: a vector is added only for prompts whose own residual says so.

    open(p) = s(p) > threshold      s, the projection of prompt p on a direction, decided once a prompt

Source: after Lee et al., Programming Refusal with Conditional Activation Steering (arXiv 2409.05907), who compare
cosines with a subspace; ours is the projection on one direction.
"""

import hashlib
import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from steerlib.models import FrozenModel, decoder_blocks
from steerlib.reading import left_padded, position_ids, prompt_ids, read_history
from steerlib.rules import RULES
from steerlib.tables import check_table

POOLS = ("answer_mean", "last", "prompt_last", "answer_letter")
LETTER_ANSWER = re.compile(r"\s*\(?\s*[A-Z]\s*\)?\s*")


def pooled_spans(
    frozen: FrozenModel, contexts: Sequence[Sequence[int]], prompt_lengths: Sequence[int], pool: str
) -> list[range]:
    """Positions that are averaged, for each sequence.

    Args:
        frozen: the model whose tokenizer made the ids.
        contexts: token ids of prompt and answer, one sequence each.
        prompt_lengths: tokens of each prompt; what follows is the answer.
        pool: "answer_mean" (the answer's tokens), "last" (last token), "prompt_last" (last token of the prompt),
            "answer_letter" (the token that holds the letter of an answer such as "(A)").

    Returns:
        0-based positions within each sequence, without pads.

    Raises:
        ValueError: unknown pooling, a sequence without answer tokens, or "answer_letter" and an answer that is no
            letter; the sequence is named.

    Source: "answer_letter" is that of Panickssery et al. (arXiv 2312.06681, sec. 3), whose code takes the token before
    the last. We look for the letter instead, as tokenizers differ in whether a bracket is a token of its own.
    """
    if pool not in POOLS:
        raise ValueError(f"pool {pool!r} is none of {', '.join(POOLS)}")
    spans = []
    for row, (ids, length) in enumerate(zip(contexts, prompt_lengths, strict=True)):
        if not 0 < length <= len(ids) - (pool != "prompt_last"):
            raise ValueError(
                f"sequence {row} has {len(ids)} tokens, {length} of them prompt: no answer to read"
            )
        if pool == "answer_letter":
            letter = length + _letter_place(frozen, ids[length:], row)
            spans.append(range(letter, letter + 1))
        else:
            start = {"answer_mean": length, "last": len(ids) - 1, "prompt_last": length - 1}[pool]
            spans.append(range(start, length if pool == "prompt_last" else len(ids)))
    return spans


def _letter_place(frozen: FrozenModel, answer: Sequence[int], row: int) -> int:
    """Place of the last token with a capital letter, in an answer that is nothing but that letter."""
    text = str(frozen.tokenizer.decode(list(answer), skip_special_tokens=True))
    if not LETTER_ANSWER.fullmatch(text):
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise ValueError(
            f"sequence {row}: pool 'answer_letter' reads an answer such as '(A)', not {shown!r}; "
            "answers in free text are read by answer_mean or last"
        )
    tokens = [str(frozen.tokenizer.decode([token], skip_special_tokens=True)) for token in answer]
    return max(place for place, token in enumerate(tokens) if re.search("[A-Z]", token))


def pooling_weights(mask: Tensor, spans: Sequence[range]) -> Tensor:
    """Weight of each position of a left-padded batch, `(batch, seq)`; each row sums to 1 and pads weigh 0."""
    position = position_ids(mask)
    start, stop = (torch.tensor(ends, device=mask.device)[:, None] for ends in _ends(spans))
    chosen = ((position >= start) & (position < stop) & mask.bool()).double()
    return chosen / chosen.sum(-1, keepdim=True)


def _ends(spans: Sequence[range]) -> tuple[list[int], list[int]]:
    return [span.start for span in spans], [span.stop for span in spans]


Vectors = Mapping[int, Tensor]


@dataclass(frozen=True, eq=False)
class VectorFamily:
    """A steering vector for everybody, or one for each user.

    Attributes:
        name: of the family: "population", "random", "dislike_weighted", "coordinates" or one of your own.
        vectors: by user_id and layer, `(d_model,)` in activation units; under "" the one for everybody.
        vector_user: "" for everybody's, "own" for each user's, "shuffled" where each user has another user's.
        control: "" for a family under study, else "random_vector" or "shuffled_profile".
        unit: what an alpha of 1 adds: "vector", the vector itself; "residual" where it has the residual's norm.

    Raises:
        ValueError: vectors by user in a family for everybody, or the other way round.
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
                content.update(
                    f"{user}\x1f{layer}\x1e".encode() + vector.detach().cpu().float().numpy().tobytes()
                )
        return content.hexdigest()[:8]

    @property
    def layers(self) -> str:
        """The layers as text, for instance "15-21"."""
        layers = sorted(next(iter(self.vectors.values())))
        whole = layers == [*range(layers[0], layers[-1] + 1)] and len(layers) > 1
        return f"{layers[0]}-{layers[-1]}" if whole else ",".join(map(str, layers))

    def user(self, user_id: str) -> str:
        """The key of `vectors` that a user is steered by.

        Raises:
            ValueError: the family has no vector for this user.
        """
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
    """The family that an arm is steered by.

    Raises:
        ValueError: it is not among those given; both are named.
    """
    wanted = (arm["family"], arm["vector_user"], arm["vector"])
    for family in families:
        if (family.name, family.vector_user, family.digest) == wanted:
            return family
    given = ", ".join(" ".join((f.name, f.vector_user, f.digest)) for f in families) or "none"
    raise ValueError(f"arm {arm['arm_id']} needs the vectors {' '.join(wanted)!r}; given are {given}")


@dataclass(frozen=True)
class Factor:
    """What alpha is multiplied by, prompt by prompt: SDA's a = F(S), or the gate (0 or 1) of conditional steering.

    Attributes:
        name: what it is, for instance "sigmoid" or "gate".
        values: by prompt_id.
    """

    name: str
    values: Mapping[str, float]

    @cached_property
    def digest(self) -> str:
        """Hash of the values: answers under other factors are other arms."""
        text = "\n".join(f"{prompt}={float(value)!r}" for prompt, value in sorted(self.values.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:8]


class Strength(NamedTuple):
    """Alpha of the logits and alpha of the vector, each multiplied by the prompt's factor."""

    logits: float
    vector: float


def strength(arm: Mapping, prompt_id: str = "", factors: Sequence[Factor] = ()) -> Strength:
    """How strongly an arm steers a prompt.

        alpha F,    F = 1, a number, or the prompt's value of a factor

    Args:
        arm: a row of the arms table.
        prompt_id: the prompt.
        factors: those that arms name.

    Raises:
        ValueError: no such factor, or one that is not finite for this prompt.
    """
    name, alpha = arm["factor"], arm["alpha"]
    by_name = {factor.name: factor.values for factor in factors}
    if name in by_name:
        value = float(by_name[name].get(prompt_id, math.nan))
    else:
        try:
            value = float(name or 1)
        except ValueError:
            raise ValueError(
                f"arm {arm['arm_id']}: no factor is called {name!r}; there are {[*by_name]}"
            ) from None
    if not math.isfinite(value):
        raise ValueError(f"arm {arm['arm_id']}: factor {name!r} of prompt {prompt_id} is {value}")
    of_vector = alpha if RULES[arm["method"]].acts_on == "residual" else arm["vector_alpha"]
    return Strength(alpha * value, of_vector * value)


def check_layers(layers: Sequence[int], n_layers: int) -> None:
    """Refuse layers that the model does not have.

    Raises:
        IndexError: a layer is outside 0..n_layers-1; it is named.
    """
    for layer in layers:
        if not 0 <= layer < n_layers:
            raise IndexError(f"layer {layer} is not in 0..{n_layers - 1}")


def steered_positions(spec: str, position: Tensor, prompt_length: Tensor) -> Tensor:
    """Which positions are steered.

    The first generated token is predicted at the prompt's last position, so "generation" includes that
    position and "first_k:1" is that position alone.

    Args:
        spec: "all"; "prompt" (positions before the last of the prompt); "generation" (positions that predict an
            answer token); "first_k:K" (those that predict the first K); "from:P" (position P and later); several
            joined by "+".
        position: 0-based position of each token in its own sequence, `(batch, seq)`.
        prompt_length: tokens of each prompt, `(batch, 1)`.

    Returns:
        Boolean mask `(batch, seq)`.

    Raises:
        ValueError: the spec is not understood.
    """
    mask = torch.zeros_like(position, dtype=torch.bool)
    for part in spec.split("+"):
        name, _, number = part.partition(":")
        if name in ("first_k", "from") and not number.isdigit():
            raise ValueError(f"positions {part!r} needs a whole number, for instance {name}:8")
        answer = position - (prompt_length - 1)
        if part == "all":
            mask = mask | True
        elif part == "prompt":
            mask = mask | (answer < 0)
        elif part == "generation":
            mask = mask | (answer >= 0)
        elif name == "first_k":
            mask = mask | ((answer >= 0) & (answer < int(number)))
        elif name == "from":
            mask = mask | (position >= int(number))
        else:
            raise ValueError(f"positions {part!r} is none of all, prompt, generation, first_k:K, from:P")
    return mask


class ResidualDose:
    """What the hooks of `residual_hooks` add in the next forward pass.

    Attributes:
        coefficients: `(batch, seq, n_vectors)`, or None for nothing.
        first_layers: lowest layer of each vector, `(n_vectors,)`; nothing below it depends on the strength.
    """

    def __init__(self, directions: Mapping[int, Tensor] | None = None) -> None:
        self.coefficients: Tensor | None = None
        self.first_layers = _first_layers(directions or {})


def _first_layers(directions: Mapping[int, Tensor]) -> list[int]:
    """Of each vector the lowest layer where it is not zero; a vector of zeros has one above all layers."""
    if not directions:
        return []
    layers = sorted(directions)
    acts = torch.stack([(directions[layer] != 0).any(dim=-1).cpu() for layer in layers])
    return [
        next((n for n, a in zip(layers, column, strict=True) if a), layers[-1] + 1)
        for column in acts.T.tolist()
    ]


@contextmanager
def residual_hooks(model: nn.Module, directions: Mapping[int, Tensor]) -> Generator[ResidualDose, None, None]:
    """Hooks on decoder blocks that add a combination of directions to their outputs.

        h_l <- h_l + coefficients @ directions[l]

    Args:
        model: the causal language model.
        directions: by layer, `(n_vectors, d_model)`.

    Yields:
        The dose; set its `coefficients` before each forward pass. All hooks are gone afterwards, also after an
        exception.
    """
    blocks = decoder_blocks(model)
    check_layers(list(directions), len(blocks))
    dose = ResidualDose(directions)
    with ExitStack() as stack:
        for layer, matrix in directions.items():
            handle = blocks[layer].register_forward_hook(_adding(matrix, dose))
            stack.callback(handle.remove)
        yield dose


def _adding(matrix: Tensor, dose: ResidualDose) -> Callable:
    def hook(block: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple | None:  # noqa: ARG001
        if dose.coefficients is None:
            return None
        residual = output[0] if isinstance(output, tuple) else output
        added = dose.coefficients.to(residual) @ matrix.to(residual)
        return (residual + added, *output[1:]) if isinstance(output, tuple) else residual + added

    return hook


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

    Works for plain forward passes and under `model.generate`: positions are counted within each sequence, right
    under left padding and the KV cache.

    Args:
        model: the causal language model.
        vectors: steering vector of each layer, `(d_model,)`, in activation units.
        alpha: dimensionless strength, a number or one a row, `(batch,)`; 0 leaves the model as it is.
        positions: see `steered_positions`.
        prompt_lengths: tokens of each prompt, `(batch,)`; by default the first forward pass is taken to be the
            prompt.

    Raises:
        IndexError: the model has no such layer.
        ValueError: alpha is not finite, or its rows are not the batch's.

    Source: Panickssery et al. (arXiv 2312.06681, sec. 3), who add after the prompt and at one layer; "all" and
    several layers are those of the CAA-on-PRISM study.
    """
    strength = torch.as_tensor(alpha, dtype=torch.float32)
    if not strength.isfinite().all():
        raise ValueError(f"alpha must be finite, not {alpha}")
    state = {"prompt": prompt_lengths}

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:  # noqa: ARG001
        mask, position = _seen_so_far(kwargs, args)
        if state["prompt"] is None:
            state["prompt"] = mask.sum(-1)
        lengths = state["prompt"].to(position.device)
        if strength.ndim and len(strength) != len(position):
            raise ValueError(f"alpha has {len(strength)} rows, the batch {len(position)}")
        steered = steered_positions(positions, position, lengths[:, None])
        steered = steered & mask[:, -position.shape[1] :].bool()
        dose.coefficients = (steered * strength.to(position.device).reshape(-1, 1))[..., None]

    with residual_hooks(model, {layer: vector[None] for layer, vector in vectors.items()}) as dose:
        handle = model.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _seen_so_far(kwargs: dict, args: tuple) -> tuple[Tensor, Tensor]:
    """Attention mask over all tokens so far, and positions of the tokens of this forward pass."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    cache = kwargs.get("past_key_values")
    past = cache.get_seq_length() if cache is not None else 0
    mask = kwargs.get("attention_mask")
    if mask is None:
        mask = ids.new_ones(len(ids), past + ids.shape[1])
    return mask, position_ids(mask)[:, -ids.shape[1] :]


@torch.inference_mode()
def record_residual(
    frozen: FrozenModel,
    contexts: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    prompt_lengths: Sequence[int],
    pool: str = "answer_mean",
    batch_tokens: int = 4096,
) -> dict[int, Tensor]:
    """Pooled residuals of prompt-and-answer sequences, all layers in one batched pass.

    Args:
        frozen: the model.
        contexts: token ids of prompt and answer, one sequence each.
        layers: 0-based decoder blocks whose outputs are read.
        prompt_lengths: tokens of each prompt; what follows is the answer.
        pool: "answer_mean" (mean over the answer's tokens), "last" (last token), "prompt_last" (last token of the
            prompt), "answer_letter" (the letter of an answer such as "(A)"), see `pooled_spans`.
        batch_tokens: tokens in one forward pass, pads counted.

    Returns:
        By layer, `(n, d_model)` in float64, in activation units.

    Raises:
        IndexError: the model has no such layer.
        ValueError: unknown pooling, a sequence without answer tokens, or an answer that is no letter.
    """
    spans = pooled_spans(frozen, contexts, prompt_lengths, pool)
    check_layers(layers, frozen.n_layers)
    pooled = {layer: [torch.empty(0)] * len(contexts) for layer in layers}
    order = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
    while order:
        take = max(1, batch_tokens // len(contexts[order[-1]]))
        batch, order = order[-take:], order[:-take]
        residuals, mask = _forward_residuals(frozen, [contexts[i] for i in batch], layers)
        weights = pooling_weights(mask, [spans[i] for i in batch])
        for layer, residual in residuals.items():
            means = torch.einsum("bs,bsd->bd", weights.to(residual.device), residual.double())
            for i, mean in zip(batch, means.cpu(), strict=True):
                pooled[layer][i] = mean
    return {layer: torch.stack(rows) for layer, rows in pooled.items()}


def _forward_residuals(
    frozen: FrozenModel, contexts: Sequence[Sequence[int]], layers: Sequence[int]
) -> tuple[dict[int, Tensor], Tensor]:
    residuals: dict[int, Tensor] = {}
    ids, mask = left_padded(contexts, frozen.device)
    with ExitStack() as stack:
        for layer in layers:

            def hook(block: nn.Module, inputs: tuple, output: Tensor | tuple, layer: int = layer) -> None:  # noqa: ARG001
                residuals[layer] = output[0] if isinstance(output, tuple) else output

            stack.callback(frozen.blocks[layer].register_forward_hook(hook).remove)
        frozen.model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), logits_to_keep=1)
    return residuals, mask


@contextmanager
def steering_hooks(frozen: FrozenModel, vectors: Sequence[Vectors]) -> Generator[ResidualDose, None, None]:
    """Residual hooks for several vectors; one without a layer adds nothing there."""
    layers = sorted({layer for vector in vectors for layer in vector})
    nothing = torch.zeros(frozen.d_model)
    directions = {
        layer: torch.stack([v.get(layer, nothing) for v in vectors]).to(frozen.device) for layer in layers
    }
    with residual_hooks(frozen.model, directions) as dose:
        yield dose


def prompt_residuals(
    frozen: FrozenModel, prompts: pd.DataFrame, *, layers: list[int], style: str
) -> dict[int, Tensor]:
    """Residuals of the unsteered model at the last position of each prompt, without any context.

    Args:
        frozen: the model.
        prompts: the prompts table, or any frame with prompt_id, prompt and, where there are earlier turns, history.
        layers: 0-based decoder blocks.
        style: "chat" or "continuation", as for generation.

    Returns:
        By layer `(n_prompts, d_model)`, float64, rows as the prompts.

    Raises:
        IndexError: the model has no such layer.
        ValueError: an empty prompt or an unknown style.
    """
    ids = [
        prompt_ids(frozen, row["prompt"], style=style, history=read_history(row.get("history") or ""))
        for row in prompts.to_dict("records")
    ]
    return record_residual(
        frozen, ids, layers=layers, prompt_lengths=[len(one) for one in ids], pool="prompt_last"
    )


class Threshold(NamedTuple):
    """Where a gate opens, in activation units, and how well that separates the prompts it was chosen on (0 to 1)."""

    value: float
    balanced_accuracy: float


def prompt_projections(
    frozen: FrozenModel, prompts: pd.DataFrame, vector: Mapping[int, Tensor], *, layer: int, style: str
) -> pd.Series:
    """How far each prompt lies along a direction.

        s = h_l . v_l / ||v_l||     at the prompt's last position, of the unsteered model

    Args:
        frozen: the model.
        prompts: prompt_id, prompt and, where there are earlier turns, history.
        vector: the direction by layer, `(d_model,)`; it need not be the one that steers.
        layer: 0-based block that is read.
        style: "chat" or "continuation".

    Returns:
        Projections in activation units, by prompt_id.

    Raises:
        ValueError: the vector has no such layer, or is zero there.
    """
    unit = _unit(vector, layer)
    residual = prompt_residuals(frozen, prompts, layers=[layer], style=style)[layer]
    along = (residual @ unit.to(residual)).tolist()
    return pd.Series(along, index=pd.Index(prompts["prompt_id"], name="prompt_id"), name="projection")


def choose_threshold(projections: pd.Series, labels: pd.Series) -> Threshold:
    """Threshold that separates dev prompts to be steered from the others best.

        balanced accuracy = (share of the labelled above + share of the others not above) / 2

    Candidates are the midpoints between neighbouring projections, and -inf (every prompt is steered) and inf (none). Of
    several equally good ones the highest is taken, which steers the fewest prompts. Dev prompts only: on the prompts it
    was chosen on the accuracy is too good.

    Args:
        projections: by prompt_id, see `prompt_projections`.
        labels: True for prompts that shall be steered, by prompt_id.

    Raises:
        ValueError: a prompt without a label, a projection that is not finite, or only one kind of label.
    """
    missing = projections.index.difference(labels.index)
    if len(missing):
        raise ValueError(f"prompt {missing[0]} has a projection and no label")
    along = projections.to_numpy(dtype=float)
    wanted = labels.loc[projections.index].to_numpy(dtype=bool)
    if not np.isfinite(along).all():
        raise ValueError(
            f"the projection of prompt {projections.index[~np.isfinite(along)][0]} is not finite"
        )
    if wanted.all() or not wanted.any():
        raise ValueError(
            f"all {len(wanted)} prompts have the label {bool(wanted.all())}: nothing to separate"
        )
    places = np.unique(along)
    candidates = np.r_[-np.inf, (places[1:] + places[:-1]) / 2, np.inf]
    above = along > candidates[:, None]
    accuracy = (above[:, wanted].mean(axis=1) + (~above[:, ~wanted]).mean(axis=1)) / 2
    best = int(np.flatnonzero(accuracy >= accuracy.max() - 1e-12)[-1])
    return Threshold(float(candidates[best]), float(accuracy[best]))


def _unit(vector: Mapping[int, Tensor], layer: int) -> Tensor:
    if layer not in vector:
        raise ValueError(f"the gate's vector has layers {sorted(vector)}, not {layer}")
    direction = vector[layer].double()
    if not direction.norm() > 0:
        raise ValueError(f"the gate's vector is zero at layer {layer}")
    return direction / direction.norm()


def residual_norms(
    frozen: FrozenModel, prompts: pd.DataFrame, *, layers: list[int], style: str
) -> pd.DataFrame:
    """Norm of the unsteered residual at the last position of each prompt, by layer.

        ||h_l||     at the position that predicts the answer's first token

    Not the mean over positions: a sequence's first token is an attention sink whose residual is far longer than all
    others (a hundred times and more in the middle layers of SmolLM2-135M), so that a mean says how short the prompt is.

    Args:
        frozen, prompts, layers, style: see `prompt_residuals`.

    Returns:
        prompt_id, layer, norm (activation units).

    Source: attention sinks and their massive activations: Sun et al., arXiv 2402.17762.
    """
    recorded = prompt_residuals(frozen, prompts, layers=layers, style=style)
    rows = [
        {"prompt_id": prompt, "layer": layer, "norm": norm}
        for layer, residual in recorded.items()
        for prompt, norm in zip(prompts["prompt_id"], residual.norm(dim=-1).tolist(), strict=True)
    ]
    return pd.DataFrame(rows, columns=pd.Index(["prompt_id", "layer", "norm"]))


def doses(
    arms: pd.DataFrame,
    norms: pd.DataFrame,
    vectors: Sequence[VectorFamily],
    prompts: pd.DataFrame,
    *,
    factors: Sequence[Factor] = (),
) -> pd.DataFrame:
    """Relative size of what each arm adds to the residual, for each prompt and layer.

        dose = ||alpha v_l|| / ||h_l||

    Alphas of different vectors cannot be compared, doses can. It is the dose of one layer: an arm that adds at seven
    layers pushes at each of them, on top of what the layers before have changed.

    Args:
        arms: the arms table; arms without a vector have no dose and no rows.
        norms: see `residual_norms`, of every layer that a vector has.
        vectors: families, as given to `decode`.
        prompts: prompt_id and, for vectors of each user, user_id.
        factors: as given to `decode`: a gate that is 0 gives a dose of 0.

    Returns:
        The doses table: arm_id, prompt_id, layer, norm (of h_l), dose (dimensionless).

    Raises:
        ValueError: no such family, user or factor, or no norm of a prompt at a layer; prompt and layer are named.
    """
    known = norms.set_index(["prompt_id", "layer"])["norm"].to_dict()
    rows, lengths = [], {}
    for arm in arms[arms["family"] != ""].to_dict("records"):
        family = family_of(arm, vectors)
        for prompt in prompts.to_dict("records"):
            alpha = abs(strength(arm, prompt["prompt_id"], factors).vector)
            user = family.user(prompt.get("user_id", ""))
            if (family, user) not in lengths:
                lengths[family, user] = {n: float(v.double().norm()) for n, v in family.vectors[user].items()}
            for layer, length in lengths[family, user].items():
                norm = known.get((prompt["prompt_id"], layer))
                if norm is None:
                    raise ValueError(f"no norm of prompt {prompt['prompt_id']} at layer {layer}")
                rows.append((arm["arm_id"], prompt["prompt_id"], layer, norm, alpha * length / norm))
    columns = pd.Index(["arm_id", "prompt_id", "layer", "norm", "dose"])
    return check_table("doses", pd.DataFrame(rows, columns=columns))
