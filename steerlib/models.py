"""The frozen language model: loading, decoder blocks, next-token logits of given contexts.

Shape letters used throughout the library: batch, seq, vocab, d_model, n_layers.

Where a transformer keeps its decoder blocks.

Linear layers of a frozen float32 model on a CPU, packed for oneDNN.

torch computes float32 products by MKL, which does so at about half of oneDNN's speed on processors that are not Intel's
(seen: 1.6 times as fast a decoding step on an AMD EPYC). A frozen weight is reordered once.

PEFT adapters: trained changes of a base model, merged into its weights so that what runs is one plain model.
"""

import json
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from steerlib.embedded import embedded_model

BLOCK_PATHS = ("model.layers", "model.language_model.layers", "transformer.h", "gpt_neox.layers")


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Decoder blocks of a transformer (Llama, Qwen, Gemma, Mistral, GPT-2, GPT-NeoX and their like).

    Raises:
        ValueError: no list of blocks where these architectures keep it; the paths tried are named.
    """
    for path in BLOCK_PATHS:
        found: object = model
        for part in path.split("."):
            found = getattr(found, part, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    raise ValueError(f"no decoder blocks in {type(model).__name__}; looked for {', '.join(BLOCK_PATHS)}")


MOST_BYTES = 2**32
"""Weights larger than this together are left as they are: a packed copy stands beside the original."""
EXPECTED_ROWS = 64


class PackedLinear(nn.Module):
    """A frozen linear layer with its weight reordered for oneDNN: the same product, up to float32 rounding.

    Args:
        linear: the layer; float32, on a CPU, without gradient. Its weight stays an attribute, for whoever reads it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        # Private operators, the ones that torch's own compiler emits for frozen weights; hence `can_pack`.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), EXPECTED_ROWS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def can_pack(model: nn.Module) -> bool:
    """Whether the model is float32 on a CPU, small enough, and this build of torch has the operators."""
    layers = _linears(model)
    here = {(layer.weight.device.type, layer.weight.dtype) for _, layer in layers} == {("cpu", torch.float32)}
    size = sum(layer.weight.nbytes for _, layer in layers)
    operators = all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )
    return here and size <= MOST_BYTES and torch.backends.mkldnn.is_available() and operators


def pack_linears(model: nn.Module) -> None:
    """Replace the model's linear layers by packed ones, in place."""
    for name, layer in _linears(model):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, PackedLinear(layer))


def _linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, layer) for name, layer in model.named_modules() if type(layer) is nn.Linear]


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(name: str) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (Path(name) / CONFIG).is_file()


def adapter_base(folder: str, base: str | None = None) -> str:
    """Name of the model that an adapter is for: the one given, else the one its config names.

    Raises:
        ImportError: peft is not installed.
        FileNotFoundError: no weights in the safe format.
        ValueError: no base is named.
    """
    if find_spec("peft") is None:
        raise ImportError(f"{folder} is a PEFT adapter, which needs one more package: pip install peft")
    if not (Path(folder) / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}; weights in a pickle are not read")
    config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    named = base or config.get("base_model_name_or_path")
    if not named:
        raise ValueError(f"{folder}/{CONFIG} names no base model: give it as base")
    return named


def merged(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """The model with an adapter's change added to its weights.

        W <- W + scale B A     for LoRA (Hu et al. 2022, sec. 4.1); other kinds as peft merges them

    Args:
        model: the base, changed.
        folder: the adapter's.
    """
    peft = import_module("peft")
    # Named, or peft takes the first accelerator it sees even for a model on the CPU.
    return peft.PeftModel.from_pretrained(model, folder, torch_device=str(model.device)).merge_and_unload()


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
