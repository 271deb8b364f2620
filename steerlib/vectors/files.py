"""Steering vectors on disk: families as safetensors with what they are in the header, control vectors as GGUF."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from steerlib.residual import VectorFamily, Vectors
from steerlib.tables import atomic_path

HEADER = ("name", "vector_user", "control", "unit")


def save_family(path: Path, family: VectorFamily, settings: Mapping[str, object]) -> Path:
    """Write a family of steering vectors, whole or not at all, with all that it is and `settings` in the header.

    A ValueError names a user whose layers are not those of the first.
    """
    first, layers = next((user, set(vectors)) for user, vectors in family.vectors.items())
    for user, vectors in family.vectors.items():
        if set(vectors) != layers or not layers:
            raise ValueError(
                f"user {user!r} has vectors of layers {sorted(vectors)}, user {first!r} of {sorted(layers)}"
            )
    users = list(family.vectors)
    tensors = {  # copies, for users who share the population's tensor share its memory
        f"{users.index(user)}.{layer}": vector.detach().cpu().clone()
        for user, vectors in family.vectors.items()
        for layer, vector in vectors.items()
    }
    header = {name: getattr(family, name) for name in HEADER} | {"settings": dict(settings), "users": users}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata={"steerlib": json.dumps(header, sort_keys=True, default=str)})
    return path


def load_family(path: Path) -> tuple[VectorFamily, dict[str, object]]:
    """A family of steering vectors, and the settings that it was saved with; a ValueError names any other file."""
    if not path.exists():
        raise FileNotFoundError(f"no steering vectors at {path}: run notebook 02 first")
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("steerlib")
        if text is None:
            raise ValueError(f"{path.name} was not written by save_family: write its vectors with it")
        header = json.loads(text)
        vectors: dict[str, dict] = {user: {} for user in header["users"]}
        keys = [tuple(map(int, key.split("."))) for key in file.keys()]  # noqa: SIM118
        for user, layer in sorted(keys):
            vectors[header["users"][user]][layer] = file.get_tensor(f"{user}.{layer}")
    return VectorFamily(vectors=vectors, **{name: header[name] for name in HEADER}), header["settings"]


def load_families(folder: Path) -> list[VectorFamily]:
    """All families in a folder: those for everybody first, controls behind what they are controls of."""
    families = [load_family(path)[0] for path in sorted(folder.glob("*.safetensors"))]
    return sorted(
        families, key=lambda one: (one.vector_user != "", one.name if one.vector_user else "", one.control)
    )


def vectors_to_gguf(path: Path, vectors: Vectors) -> Path:
    """Write steering vectors as a control vector of llama.cpp and repeng, whole or not at all.

        tensor direction.l = v_l,   l counted from 0 as here

    Both programs add `direction.l` to the OUTPUT of block l at every position, as `add_to_residual` does with positions
    "all". llama.cpp has no place for block 0 and refuses a file with `direction.0`; so do we, rather than move all
    layers by one. It demands float32, and takes alpha at the call (`--control-vector-scaled FILE:ALPHA`). repeng cannot
    read a file without a `model_hint`, which is but a note.

    A ValueError says that there are no vectors, or names a layer that is 0, not `(d_model,)` or not finite.

    Source: llama.cpp, `common_control_vector_load` and `llama_adapter_cvec`; repeng, `ControlVector.export_gguf`.
    """
    from gguf import GGUFWriter  # late: it is slow to import and seldom used

    if not vectors:
        raise ValueError("a control vector needs at least one layer")
    width = next(iter(vectors.values())).shape
    for layer, vector in vectors.items():
        if layer < 1:
            raise ValueError(
                f"layer {layer} is none of a control vector's: llama.cpp steers layers from 1 on"
            )
        if vector.ndim != 1 or vector.shape != width or not vector.isfinite().all():
            shapes = f"shape {tuple(vector.shape)}, that of the first is {tuple(width)}"
            raise ValueError(f"layer {layer} holds a value that is not finite, or does not fit: {shapes}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        writer = GGUFWriter(partial, "controlvector")
        writer.add_string("controlvector.model_hint", "llama")
        writer.add_uint32("controlvector.layer_count", len(vectors))
        for layer, vector in sorted(vectors.items()):
            writer.add_tensor(f"direction.{layer}", vector.detach().cpu().float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path
