"""A steering vector as one thing: made from contrast pairs, added to a model, combined, scaled and saved."""

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from steerlib.decoding.steer import steer
from steerlib.models import FrozenModel
from steerlib.residual import VectorFamily, add_to_residual, in_unit
from steerlib.tables import atomic_path
from steerlib.vectors.pairs import continuation_residuals

STUDY_LAYERS, STUDY_DEPTH = (16, 22), 32
HEADER = ("name", "vector_user", "control", "unit")


def default_layers(n_layers: int) -> list[int]:
    """The study's layers 16..22 of 32 (CAA on PRISM, sec. 3), at the same relative depth of `n_layers` blocks."""
    first, last = (round(layer * n_layers / STUDY_DEPTH) for layer in STUDY_LAYERS)
    return list(range(first, min(last, n_layers - 1) + 1))


def mean_difference(preferred: Tensor, dispreferred: Tensor) -> Tensor:
    """Steering vector of one layer: mean residual of preferred answers minus that of dispreferred ones.

        v_l = E[h_l(p + y+)] - E[h_l(p + y-)]

    Residuals are pooled, `(n, d_model)` each; their n may differ. The vector is `(d_model,)` in activation units,
    float32; the means are accumulated in float64. A ValueError says that a side has no rows.

    Source: Panickssery et al. (arXiv 2312.06681, eq. 1), where one answer letter differs; CAA on PRISM contrasts
    whole answers, so length and style differ too.
    """
    if not len(preferred) or not len(dispreferred):
        raise ValueError(f"{len(preferred)} and {len(dispreferred)} residuals have no mean difference")
    return (preferred.double().mean(0) - dispreferred.double().mean(0)).float()


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two vectors."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def describe_vectors(
    preferred: Mapping[int, Tensor], dispreferred: Mapping[int, Tensor], *, seed: int
) -> pd.DataFrame:
    """Norm, relative norm and split-half stability of the mean-difference vector of each layer.

    One row per layer: `layer`, `norm` (activation units), `relative_norm` (over the mean norm of the preferred answers'
    residuals), `split_half_cosine` (between the vectors of two random halves of the pairs; 1 is perfectly stable).
    """
    rows = []
    for layer, likes in preferred.items():
        dislikes, n = dispreferred[layer], len(likes)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        halves = [mean_difference(likes[h], dislikes[h]) for h in (order[: n // 2], order[n // 2 :])]
        norm = float(mean_difference(likes, dislikes).norm())
        rows.append((layer, norm, norm / float(likes.norm(dim=-1).mean()), cosine(*halves)))
    return pd.DataFrame(rows, columns=pd.Index(["layer", "norm", "relative_norm", "split_half_cosine"]))


class SteeringVector(dict[int, Tensor]):
    """Directions of the residual stream by layer, `{layer: (d_model,)}`, in activation units.

        (a + b)_l = a_l + b_l,   (c a)_l = c a_l        also -a, a - b, a / c

    Layers are decoder blocks counted from 0; the vector is added to a block's output. Both sides of `+` and `-` must
    have the same layers: one that is missing on one side would be steered by half of what was asked for.

    `model` and `settings` (as text) say what it was made from; without a model where that is a file or numbers.
    """

    def __init__(
        self,
        vectors: Mapping[int, Tensor] | Iterable[tuple[int, Tensor]] = (),
        *,
        model: FrozenModel | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(vectors)
        self.model = model
        self.settings = {key: str(value) for key, value in (settings or {}).items()}

    @classmethod
    def from_residuals(
        cls, preferred: Mapping[int, Tensor], dispreferred: Mapping[int, Tensor]
    ) -> "SteeringVector":
        """`mean_difference` of every layer of pooled residuals, `(n, d_model)` each."""
        return cls((layer, mean_difference(rows, dispreferred[layer])) for layer, rows in preferred.items())

    @classmethod
    def from_pairs(
        cls,
        model: FrozenModel,
        preferred: Sequence[str],
        dispreferred: Sequence[str],
        *,
        prompts: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        style: str = "continuation",
        pool: str = "answer_mean",
    ) -> "SteeringVector":
        """Mean difference between texts to move towards and texts to move away from.

        Args:
            prompts: what both texts of a pair follow; None: each text stands alone, and then the numbers may differ.
            layers: 0-based decoder blocks; None: see `default_layers`.
            style: "continuation", or "chat": prompt and answer in the model's chat template, which needs prompts.
            pool: what is read of a text; this and errors as in `continuation_residuals`.
        """
        chosen = layers or default_layers(model.n_layers)
        read: dict[str, Any] = {"layers": chosen, "style": style, "pool": pool}
        likes, dislikes = (
            continuation_residuals(model, [""] * len(side) if prompts is None else prompts, side, **read)
            for side in (preferred, dispreferred)
        )
        settings = {"model": model.name, "style": style, "pool": pool, "pairs": len(preferred)}
        return cls(cls.from_residuals(likes, dislikes), model=model, settings=settings)

    @contextmanager
    def apply(
        self,
        model: FrozenModel | nn.Module | None = None,
        *,
        alpha: float | Tensor = 1.0,
        unit: str = "vector",
        positions: str = "all",
    ) -> Generator[None, None, None]:
        """Under `with`, alpha times the vector is added to the residual stream, whatever transformers code runs.

            h_l <- h_l + alpha v_l                          unit "vector"
            h_l <- h_l + alpha n_l v_l / ||v_l||            unit "residual", n_l as in `typical_norms`

        `model` is a frozen model, or any transformers model (unit "vector" only); None: the one it was made from.
        Other arguments and errors as in `add_to_residual`.
        """
        frozen = self._model() if model is None else model
        if isinstance(frozen, FrozenModel):
            vectors, plain = in_unit(frozen, self, unit), frozen.model
        elif unit == "vector":
            vectors, plain = self, frozen
        else:
            raise ValueError(
                f"unit {unit!r} is measured on a FrozenModel (see load_model), not {type(frozen)}"
            )
        with add_to_residual(plain, vectors, alpha=alpha, positions=positions):
            yield

    def steer(
        self, prompt: str | Sequence[str], alpha: float | Sequence[float] = 1.0, **settings: Any
    ) -> pd.DataFrame:
        """Answers at each alpha: `steerlib.steer` with this vector, on its model and by default in its style."""
        model = settings.pop("model", None) or self._model()
        settings = {"style": self.settings.get("style", "continuation"), **settings}
        return steer(model, prompt, vector=self, alpha=alpha, **settings)

    def _model(self) -> FrozenModel:
        if self.model is None:
            raise ValueError("model is None: this vector comes from a file or from numbers; name the model")
        return self.model

    def save(self, path: str | Path) -> Path:
        """Write the vector and its settings as safetensors, see `save_family`."""
        return save_family(Path(path), VectorFamily(Path(path).stem, {"": self}), self.settings)

    @classmethod
    def load(cls, path: str | Path, model: FrozenModel | None = None) -> "SteeringVector":
        """Read what `save` wrote; `model` is what `steer` and `apply` then use."""
        family, settings = load_family(Path(path))
        return cls(family.of(""), model=model, settings=settings)

    def to_gguf(self, path: str | Path) -> Path:
        """Write the vector as a control vector of llama.cpp and repeng, whole or not at all.

            tensor direction.l = v_l,   l counted from 0 as here

        Both programs add `direction.l` to the OUTPUT of block l at every position, as `add_to_residual` does with
        positions "all". llama.cpp has no place for block 0 and refuses a file with `direction.0`; so do we, rather than
        move all layers by one. It demands float32, and takes alpha at the call (`--control-vector-scaled FILE:ALPHA`).
        repeng cannot read a file without a `model_hint`, which is but a note.

        A ValueError names layer 0, or a layer whose vector is not finite.

        Source: llama.cpp, `common_control_vector_load` and `llama_adapter_cvec`; repeng, `ControlVector.export_gguf`.
        """
        from gguf import GGUFWriter  # late: it is slow to import and seldom used

        for layer, vector in self.items():
            if layer < 1 or not vector.isfinite().all():
                raise ValueError(f"layer {layer} is 0, which llama.cpp cannot steer, or not finite")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            writer = GGUFWriter(partial, "controlvector")
            writer.add_string("controlvector.model_hint", "llama")
            writer.add_uint32("controlvector.layer_count", len(self))
            for layer, vector in sorted(self.items()):
                writer.add_tensor(f"direction.{layer}", vector.detach().cpu().float().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        return path

    def _like(self, vectors: Mapping[int, Tensor]) -> "SteeringVector":
        return SteeringVector(vectors, model=self.model, settings=self.settings)

    def __add__(self, other: Mapping[int, Tensor]) -> "SteeringVector":
        if set(self) != set(other):
            raise ValueError(f"layers differ: {sorted(self)} and {sorted(other)}")
        return self._like({layer: vector + other[layer] for layer, vector in self.items()})

    def __mul__(self, factor: float) -> "SteeringVector":
        return self._like({layer: vector * factor for layer, vector in self.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "SteeringVector":
        return self * (1 / divisor)

    def __neg__(self) -> "SteeringVector":
        return self * -1

    def __sub__(self, other: Mapping[int, Tensor]) -> "SteeringVector":
        return self + -SteeringVector(other)


def random_vectors(like: Mapping[int, Tensor], *, seed: int) -> SteeringVector:
    """Random directions with the norm of the given vectors, layer by layer: the control of a steering vector."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {layer: torch.randn(vector.shape, generator=generator) for layer, vector in like.items()}
    return SteeringVector({layer: draw * (like[layer].norm() / draw.norm()) for layer, draw in drawn.items()})


def save_family(path: Path, family: VectorFamily, settings: Mapping[str, object]) -> Path:
    """Write a family and its `settings`, whole or not at all; ValueError for a user with layers of their own."""
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
