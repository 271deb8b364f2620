"""The frozen language model: loading, decoder blocks, next-token logits of given contexts.

Shape letters used throughout the library: batch, seq, vocab, d_model, n_layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from steerlib.adapters import adapter_base, is_adapter, merged
from steerlib.blocks import decoder_blocks
from steerlib.dequantised import embedded_model
from steerlib.packed import can_pack, pack_linears

EMBEDDED_NAME = "SmolLM2-135M-Instruct (Q4_1, dequantised)"


@dataclass(frozen=True)
class FrozenModel:
    """A causal language model whose weights never change, with its tokenizer.

    Attributes:
        model: in evaluation mode, no parameter requires a gradient.
        tokenizer: the model's own.
        name: what was asked for; the embedded model is named for what runs, a dequantised Q4_1.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def blocks(self) -> nn.ModuleList:
        """Decoder blocks in order; block l's output is the residual of layer l."""
        return decoder_blocks(self.model)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        return next(self.model.get_input_embeddings().parameters()).shape[1]

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: those of the generation config and of the tokenizer."""
        config = self.model.generation_config
        stops = config.eos_token_id if config is not None else None
        stops = stops if isinstance(stops, list) else [stops]
        return frozenset(i for i in [*stops, self.tokenizer.eos_token_id] if i is not None)

    @property
    def max_length(self) -> int:
        """Longest sequence the model was made for, in tokens."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 2**31)

    @property
    def hardware(self) -> str:
        """What runs the model and in which precision, as a row of a table states it."""
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{kind}, {str(self.dtype).removeprefix('torch.')}"


def load_model(
    name: str = "embedded",
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    base: str | None = None,
) -> FrozenModel:
    """Load a causal language model and freeze it.

    Args:
        name: "embedded", a folder with a saved model or a PEFT adapter, or a hub id of a model.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" to spread a large model over all GPUs; by default
            cuda, then mps, then cpu, whichever is there first.
        dtype: weights' precision, for instance "float32"; by default bfloat16 on cuda and float32 elsewhere.
        base: the model that an adapter is merged into ("embedded", a folder or a hub id), with its tokenizer; by
            default the one that the adapter's config names.

    Returns:
        The frozen model.

    Raises:
        FileNotFoundError: no such folder and the hub cannot be reached, or the embedded wheel was not fetched.
        ImportError: an adapter without peft installed.
        ValueError: unknown precision, an architecture whose decoder blocks are not found, or a base for what is no
            adapter.
    """
    device = device or default_device()
    precision = _precision(dtype or ("bfloat16" if device.startswith(("cuda", "auto")) else "float32"))
    adapter = is_adapter(name)
    if base and not adapter:
        raise ValueError(f"base {base!r} goes with an adapter folder; {name!r} has no adapter_config.json")
    model, tokenizer = _read(adapter_base(name, base) if adapter else name, device, precision)
    if adapter:
        model = merged(model, name)
    model.eval().requires_grad_(False)
    decoder_blocks(model)
    if can_pack(model):
        pack_linears(model)
    return FrozenModel(model, tokenizer, EMBEDDED_NAME if name == "embedded" else str(name))


def _read(name: str, device: str, precision: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer, on their device."""
    source = embedded_model() if name == "embedded" else name
    placement = {"device_map": "auto"} if device == "auto" else {}
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=precision, **placement)
    except OSError as failure:
        reason = str(failure).strip().splitlines()[0]
        raise FileNotFoundError(
            f"model {name!r} is neither a folder here nor to be had from the hub: {reason}"
        ) from failure
    if tokenizer is None:
        raise FileNotFoundError(f"model {name!r} has no tokenizer")
    return model if placement else model.to(device), tokenizer


def default_device() -> str:
    """The accelerator at hand, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _precision(dtype: str | torch.dtype) -> torch.dtype:
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype {dtype!r} is not a floating-point precision such as float32 or bfloat16")
    return found


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
    order = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
    found: dict[int, Tensor] = {}
    while order:
        take = max(1, batch_tokens // len(contexts[order[-1]]))
        batch, order = order[-take:], order[:-take]
        ids, mask = left_padded([contexts[i] for i in batch], frozen.device)
        z = frozen.model(
            input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), logits_to_keep=1
        ).logits[:, -1]
        found.update(zip(batch, z.to(torch.promote_types(z.dtype, torch.float32)), strict=True))
    return torch.stack([found[i] for i in range(len(contexts))])
