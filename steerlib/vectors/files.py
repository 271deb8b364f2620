"""Steering vectors as control-vector files of llama.cpp and repeng (GGUF), out and in.

Steering vectors on disk: safetensors with their settings as metadata.

A family of personal steering vectors on disk: one safetensors file for all its users.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, GGUFWriter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from steerlib.residual import Vectors
from steerlib.tables import atomic_path
from steerlib.vectors.directions import LayerVectors


def save_vectors(path: Path, vectors: Mapping[int, Tensor], *, settings: Mapping[str, object]) -> Path:
    """Write steering vectors, whole or not at all.

    Args:
        path: a `.safetensors` file; its folder is made.
        vectors: by layer, `(d_model,)`.
        settings: what they were made from (model, pairs, pooling); kept as text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"layer.{layer}": vector.contiguous() for layer, vector in vectors.items()}
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata={key: str(value) for key, value in settings.items()})
    return path


def load_named_vectors(folder: Path, names: Sequence[str]) -> dict[str, LayerVectors]:
    """Several steering vectors of a run, named by file and content.

    Returns:
        By `<name>@<hash>`, so that an arm steered by a vector that was made anew is another arm.

    Raises:
        FileNotFoundError: one of them is absent.
    """
    loaded = {}
    for name in names:
        vectors, _ = load_vectors(folder / f"{name}.safetensors")
        loaded[f"{name}@{vectors_digest(vectors)}"] = vectors
    return loaded


def vectors_digest(vectors: Mapping[int, Tensor]) -> str:
    """Hash of the numbers: the file's bytes differ from writing to writing, its metadata has no order."""
    parts = [
        bytes(str(layer), "ascii") + vector.float().numpy().tobytes() for layer, vector in vectors.items()
    ]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:8]


def load_vectors(path: Path) -> tuple[LayerVectors, dict[str, str]]:
    """Read steering vectors and their settings.

    Returns:
        Vectors by layer, and the settings as text.

    Raises:
        FileNotFoundError: no such file.
    """
    if not path.exists():
        raise FileNotFoundError(f"no steering vectors at {path}: run notebook 02 first")
    with safe_open(path, framework="pt") as file:
        vectors = {int(name.removeprefix("layer.")): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return LayerVectors(sorted(vectors.items())), dict(file.metadata() or {})


LAYER = "/layer."


def save_personal_vectors(
    path: Path, personal: Mapping[str, Vectors], *, settings: Mapping[str, object]
) -> Path:
    """Write the vectors of all users of a family, whole or not at all.

    Args:
        path: `<family>.safetensors`; its folder is made.
        personal: vectors by user and layer, `(d_model,)`.
        settings: what they were made from (model, basis, rank, shrinkage); kept as text.

    Raises:
        ValueError: no users, or a user whose layers are not those of the first.
    """
    if not personal:
        raise ValueError(f"no users' vectors to write to {path.name}")
    first, layers = next((user, set(vectors)) for user, vectors in personal.items())
    for user, vectors in personal.items():
        if set(vectors) != layers or not layers:
            raise ValueError(
                f"user {user!r} has vectors of layers {sorted(vectors)}, user {first!r} of {sorted(layers)}"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{user}{LAYER}{layer}": vector.clone()  # users who share the population's tensor share its memory
        for user, vectors in personal.items()
        for layer, vector in vectors.items()
    }
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata={key: str(value) for key, value in settings.items()})
    return path


def load_personal_vectors(folder: Path, names: Sequence[str]) -> dict[str, LayerVectors]:
    """Personal vectors of several families, named by family, content and user.

    Args:
        folder: where `<name>.safetensors` lie.
        names: of the families.

    Returns:
        By `<name>@<hash>/<user_id>`; the hash is of all users' numbers, so that arms steered by a family that was made
        anew are other arms.

    Raises:
        FileNotFoundError: a family is absent.
        ValueError: a file that holds vectors, but not users'.
    """
    loaded = {}
    for name in names:
        personal = _read(folder / f"{name}.safetensors")
        parts = [f"{user}\x1f{vectors_digest(vectors)}\x1e" for user, vectors in personal.items()]
        digest = hashlib.sha256("".join(parts).encode()).hexdigest()[:8]
        loaded |= {f"{name}@{digest}/{user}": vectors for user, vectors in personal.items()}
    return loaded


def _read(path: Path) -> dict[str, LayerVectors]:
    """Vectors by user and layer, both in order."""
    if not path.exists():
        raise FileNotFoundError(f"no personal vectors at {path}: run notebook 02 first")
    personal: dict[str, LayerVectors] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            user, mark, layer = key.rpartition(LAYER)
            if not mark:
                raise ValueError(f"{path.name} holds {key!r}, which is no user's vector")
            personal.setdefault(user, LayerVectors())[int(layer)] = file.get_tensor(key)
    return {user: LayerVectors(sorted(vectors.items())) for user, vectors in sorted(personal.items())}


ARCHITECTURE = "controlvector"
HINT, COUNT = f"{ARCHITECTURE}.model_hint", f"{ARCHITECTURE}.layer_count"
DIRECTION = "direction."


def vectors_to_gguf(path: str | Path, vectors: Mapping[int, Tensor], *, model_hint: str) -> Path:
    """Write steering vectors as a control vector, whole or not at all.

        tensor direction.l = v_l,   l counted from 0 as here

    Both programs count blocks from 0 and add `direction.l` to the OUTPUT of block l at every position, as
    `add_to_residual` does with positions "all", so numbers of layers are kept. llama.cpp has no place for block 0 and
    refuses a file with `direction.0`; so do we, rather than move all layers by one.

    Args:
        path: a `.gguf` file; its folder is made.
        vectors: by layer, `(d_model,)`; written in float32, as llama.cpp demands. The strength is given to llama.cpp at
            the call (`--control-vector-scaled FILE:ALPHA`), so write raw vectors and keep alpha.
        model_hint: the model's architecture in llama.cpp's words, for instance "llama" or "qwen2"; a note there, while
            repeng cannot read a file without it.

    Returns:
        The path.

    Raises:
        ValueError: no vectors, layer 0 or a negative one, a vector that is not `(d_model,)` or of another width than
            the others, or a value that is not finite; the layer is named.

    Source: llama.cpp, `common_control_vector_load` and `llama_adapter_cvec`; repeng, `ControlVector.export_gguf`.
    """
    path = Path(path)
    _check_expressible(vectors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        writer = GGUFWriter(partial, ARCHITECTURE)
        writer.add_string(HINT, model_hint)
        writer.add_uint32(COUNT, len(vectors))
        for layer, vector in sorted(vectors.items()):
            writer.add_tensor(f"{DIRECTION}{layer}", vector.detach().cpu().float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def _check_expressible(vectors: Mapping[int, Tensor]) -> None:
    if not vectors:
        raise ValueError("a control vector needs at least one layer")
    width = next(iter(vectors.values())).shape
    for layer, vector in vectors.items():
        if layer < 1:
            raise ValueError(
                f"layer {layer} cannot be written as a control vector: llama.cpp steers layers from 1 on"
            )
        if vector.ndim != 1 or vector.shape != width:
            raise ValueError(
                f"layer {layer}: shape {tuple(vector.shape)}, that of the first is {tuple(width)}"
            )
        if not vector.isfinite().all():
            raise ValueError(f"layer {layer} holds a value that is not finite")


def vectors_from_gguf(path: str | Path) -> tuple[LayerVectors, str]:
    """Read a control vector of llama.cpp or repeng.

    Returns:
        Vectors by layer (0-based block outputs), float32, and the model hint, "" where the file has none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no GGUF or no control vector, or a tensor is not called `direction.<layer>`, is not 1-D
            or not float32; the tensor is named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError) as failure:
        raise ValueError(f"{path.name} is no GGUF file: {failure}") from None
    kind = _text(reader, "general.architecture")
    if kind != ARCHITECTURE:
        raise ValueError(f"{path.name} holds a {kind or 'nameless'!r}, not a {ARCHITECTURE!r}")
    vectors = {}
    for tensor in reader.tensors:
        number = tensor.name.removeprefix(DIRECTION)
        values = np.asarray(tensor.data)
        if number == tensor.name or not number.isdigit() or values.ndim != 1 or values.dtype != np.float32:
            raise ValueError(
                f"{path.name}, tensor {tensor.name}: must be {DIRECTION}<layer>, 1-D and float32, "
                f"not {values.ndim}-D {values.dtype}"
            )
        vectors[int(number)] = torch.from_numpy(values.copy())
    return LayerVectors(sorted(vectors.items())), _text(reader, HINT)


def _text(reader: GGUFReader, key: str) -> str:
    field = reader.get_field(key)
    return str(field.contents()) if field is not None else ""
