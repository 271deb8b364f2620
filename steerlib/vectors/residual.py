"""The residual stream: reading it and adding to it.

Layer l is the l-th decoder block, counted from 0; its residual is the block's OUTPUT. That equals
`hidden_states[l + 1]` of an unsteered forward pass, except for the last block, where transformers reports
the value after the final norm.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from steerlib.blocks import decoder_blocks
from steerlib.models import FrozenModel, left_padded, position_ids
from steerlib.vectors.pooling import pooled_spans, pooling_weights

Vectors = Mapping[int, Tensor]


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
