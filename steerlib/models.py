"""The frozen language model: loading, adapters, decoder blocks, faster linear layers on a CPU.

Shape letters used throughout the library: batch, seq, vocab, d_model, n_layers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor, nn

from steerlib.embedded import cache_folder, embedded_model

if TYPE_CHECKING:  # two seconds of import, of use only where a model is loaded
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED_NAME = "SmolLM2-135M-Instruct (Q4_1, dequantised)"
LARGE = 2**30  # models whose weights are smaller than that are loaded without a word
ADAPTER = "adapter_config.json"
BLOCK_PATHS = ("model.layers", "model.language_model.layers", "transformer.h", "gpt_neox.layers")
MOST_BYTES = 2**32  # larger weights are left as they are: a packed copy stands beside the original
EXPECTED_ROWS = 64


@dataclass(frozen=True)
class FrozenModel:
    """A causal language model in evaluation mode whose weights never change, with its tokenizer.

    Attributes:
        name: what was asked for; the embedded model is named for what runs, a dequantised Q4_1.
        template_arguments: passed to the chat template; by default a model that can think first does not.
        loaded: arguments of `load_model` that give this model again; empty where something else made it.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    template_arguments: Mapping[str, Any] = field(default_factory=lambda: {"enable_thinking": False})
    loaded: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self) -> tuple:
        """Another process loads the model for itself; only one that `load_model` did not make is sent whole."""
        if not self.loaded:
            return FrozenModel, (self.model, self.tokenizer, self.name, self.template_arguments)
        return partial(load_model, template_arguments=self.template_arguments, **self.loaded), ()

    @property
    def device(self) -> torch.device:
        """Where inputs go; weights that accelerate keeps on disk are on no device."""
        if self.model.device.type != "meta":
            return self.model.device
        hooks = (getattr(module, "_hf_hook", None) for module in self.model.modules())
        places = (getattr(hook, "execution_device", None) for hook in hooks)
        return torch.device(next(place for place in places if place is not None))

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
    template_arguments: Mapping[str, Any] | None = None,
) -> FrozenModel:
    """Load a causal language model and freeze it.

    Args:
        name: "embedded", a folder with a saved model or a PEFT adapter, or a hub id of a model. An adapter is merged
            into the base model that its config names.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" to spread a large model over all GPUs and, where they do not
            hold it, the memory and the disk of the machine; by default the accelerator at hand, else the CPU.
        dtype: weights' precision, for instance "float32"; by default bfloat16 on cuda and float32 elsewhere. "4bit"
            and "8bit" quantise the linear layers (bitsandbytes: NF4, LLM.int8) and compute in bfloat16, on a GPU.
        template_arguments: of the chat template, for instance {"enable_thinking": True}.

    Raises FileNotFoundError where there is no such folder, hub or embedded wheel, or no safetensors (a pickle is not
    read); ValueError for an unknown precision, or as `check_architecture`; ImportError for an adapter without peft.
    """
    loaded = {"name": name, "device": device and device.partition(":")[0], "dtype": dtype}
    device = device or default_device()
    quantised = _quantised(dtype, device)
    on_gpu = quantised or device.startswith(("cuda", "auto"))
    precision = _precision((not quantised and dtype) or ("bfloat16" if on_gpu else "float32"))
    adapter = name if (Path(name) / ADAPTER).is_file() else ""
    base = _adapter_base(adapter) if adapter else name
    source = embedded_model() if base == "embedded" else base
    config = pretrained("AutoConfig", source, what="model")
    check_architecture(config, str(name))
    if not (base == "embedded" or quantised):
        announce(needs(config, precision), str(name))
    tokenizer = pretrained("AutoTokenizer", source, what="model")
    spread = {"device_map": "auto", "offload_folder": str(cache_folder() / "offload")}
    placement = spread if device == "auto" else {"device_map": device} if quantised else {}
    settings = {"dtype": precision, "use_safetensors": True} | placement | quantised
    model = pretrained("AutoModelForCausalLM", source, what="model", **settings)
    model = model if placement else model.to(device)
    if adapter:
        # The device is named, or peft takes the first accelerator it sees even for a model on the CPU.
        peft = import_module("peft")
        model = peft.PeftModel.from_pretrained(model, adapter, torch_device=str(model.device))
        model = model.merge_and_unload()
    model.eval().requires_grad_(False)
    decoder_blocks(model)
    if can_pack(model):
        pack_linears(model)
    named = EMBEDDED_NAME if name == "embedded" else str(name)
    frozen = FrozenModel(model, tokenizer, named, loaded=loaded)
    return replace(frozen, template_arguments=template_arguments) if template_arguments else frozen


@dataclass(frozen=True)
class Needs:
    """A model's number of parameters, the bytes of its weights, and those of a row of a batch (`row_size`)."""

    parameters: int
    weights: int
    row: int

    def rows(self, memory: float) -> int:
        """Rows that half of what the weights leave of so many bytes holds; 0 where the weights do not fit."""
        return max(0, int((memory - self.weights) / 2 // self.row))


def row_size(config: Any, dtype: torch.dtype, tokens: int) -> int:
    """Bytes of a row whose context and answer are so many tokens: keys and values, and copies of its logits."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width * tokens * dtype.itemsize + 6 * 4 * text.vocab_size


def needs(config: Any, dtype: torch.dtype, tokens: int = 1024) -> Needs:
    """What a model needs in rows of so many tokens; its parameters are counted on a skeleton without weights."""
    with torch.device("meta"):
        skeleton = import_module("transformers").AutoModelForCausalLM.from_config(config, dtype=dtype)
    parameters = sum(weight.numel() for weight in skeleton.parameters())
    return Needs(parameters, parameters * dtype.itemsize, row_size(config, dtype, tokens))


def announce(need: Needs, name: str) -> None:
    """Print, before a large model is loaded, what it needs and what this machine has free."""
    if need.weights < LARGE:
        return
    gpus = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
    free, where = (sum(gpus), f"{len(gpus)} GPUs") if gpus else (psutil.virtual_memory().available, "memory")
    print(
        f"{name}: {need.parameters / 1e9:.1f}B parameters, weights {need.weights / 1e9:.1f} GB, "
        f"a row of 1,024 tokens {need.row / 1e6:.0f} MB; {where} {free / 1e9:.1f} GB free, {need.rows(free)} rows fit"
    )


def _quantised(dtype: str | torch.dtype | None, device: str) -> dict[str, Any]:
    """Settings of `from_pretrained` for 4 or 8 bits a weight; empty for plain precisions."""
    if dtype not in ("4bit", "8bit"):
        return {}
    if not device.startswith(("cuda", "auto")) or not torch.cuda.is_available():
        raise ValueError(
            f"dtype {dtype!r} needs a CUDA GPU, and there is none: choose float32 or a smaller model"
        )
    if find_spec("bitsandbytes") is None:
        raise ImportError(f"dtype {dtype!r} needs one more package: pip install 'steerlib[quantised]'")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    settings: dict[str, Any] = four if dtype == "4bit" else {"load_in_8bit": True}
    return {"quantization_config": import_module("transformers").BitsAndBytesConfig(**settings)}


def pretrained(kind: str, name: str | Path, *, what: str, **settings: Any) -> Any:
    """`transformers.<kind>.from_pretrained(name)`: from a folder, the hub's cache or the hub, which is tried once.

    FileNotFoundError where it cannot be had, ValueError where it cannot be loaded, in one line that names `what` it is.
    """
    transformers: Any = import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    here = Path(name).is_dir() or not hub_answers()
    try:
        return getattr(transformers, kind).from_pretrained(name, local_files_only=here, **settings)
    except (OSError, ValueError) as failure:
        reason = str(failure).strip().splitlines()[0]
        if "gated repo" in str(failure):
            raise FileNotFoundError(
                f"{what} {str(name)!r} is gated: accept its licence on https://huggingface.co/{name} and put a token"
                " of that account into the environment variable HF_TOKEN"
            ) from failure
        if isinstance(failure, ValueError):
            raise ValueError(f"{what} {str(name)!r} cannot be loaded: {reason}") from failure
        raise FileNotFoundError(
            f"{what} {str(name)!r} is neither a folder in {Path.cwd()} nor to be had from the hub: {reason}"
        ) from failure


@cache
def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached, asked once a process: its own client would try for half a minute."""
    hub = import_module("huggingface_hub")
    try:
        hub.get_session().head(hub.constants.ENDPOINT, timeout=5)
    except Exception:  # the client's HTTP library, and so its errors, differ between versions
        return False
    return True


def _adapter_base(folder: str) -> str:
    if find_spec("peft") is None:
        raise ImportError(f"{folder} is a PEFT adapter, which needs one more package: pip install peft")
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} has no adapter_model.safetensors; weights in a pickle are not read"
        )
    base = json.loads((Path(folder) / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{folder}/{ADAPTER} names no base_model_name_or_path: write the model it is for there"
        )
    return base


def default_device() -> str:
    """The accelerator at hand, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def high_precision(x: Tensor) -> Tensor:
    """The tensor in float64, or in float32 where the device has no float64 (mps)."""
    return x.float() if x.device.type == "mps" else x.double()


def _precision(dtype: str | torch.dtype) -> torch.dtype:
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype {dtype!r} is not a floating-point precision such as float32 or bfloat16")
    return found


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Decoder blocks of a transformer (Llama, GPT-2, GPT-NeoX and their like); ValueError names the paths tried."""
    for path in BLOCK_PATHS:
        found: object = model
        for part in path.split("."):
            found = getattr(found, part, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    raise ValueError(f"no decoder blocks in {type(model).__name__}; looked for {', '.join(BLOCK_PATHS)}")


def check_architecture(config: Any, name: str) -> None:
    """ValueError, before any weight is read, for a model whose cache is not one key and value per layer and token."""
    text = config.get_text_config()
    others = {*(getattr(text, "layer_types", None) or [])} - {"full_attention", "sliding_attention"}
    kind = import_module("transformers").AutoModelForCausalLM._model_mapping.get(type(config), None)
    reasons = {
        f"layers of the kind {', '.join(sorted(others))}": others,
        "layers with a state instead of keys and values": getattr(kind, "_is_stateful", False),
        "attention in chunks": getattr(text, "attention_chunk_size", None),
        "layers that share their keys and values": getattr(text, "num_kv_shared_layers", None),
        "an encoder": config.is_encoder_decoder,
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise ValueError(
            f"model {name!r} ({config.model_type}) has {' and '.join(found)}; steering works on decoders with full"
            " or sliding attention in every layer, such as Llama, Qwen2, Qwen3, Gemma 2, Mistral, GPT-2 and GPT-NeoX"
        )


class PackedLinear(nn.Module):
    """A frozen float32 layer on a CPU, its weight reordered once for oneDNN: the same product, up to rounding.

    torch computes float32 products by MKL, at about half of oneDNN's speed on processors that are not Intel's
    (a decoding step 1.6 times as fast on an AMD EPYC). The weight stays an attribute.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
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
    operators = ("_reorder_linear_weight", "_linear_pointwise")
    known = all(hasattr(torch.ops.mkldnn, name) for name in operators)
    return here and size <= MOST_BYTES and torch.backends.mkldnn.is_available() and known


def pack_linears(model: nn.Module) -> None:
    """Replace the model's linear layers by packed ones, in place."""
    for name, layer in _linears(model):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, PackedLinear(layer))


def _linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, layer) for name, layer in model.named_modules() if type(layer) is nn.Linear]
