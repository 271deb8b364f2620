"""PEFT adapters: trained changes of a base model, merged into its weights so that what runs is one plain model."""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedModel

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
