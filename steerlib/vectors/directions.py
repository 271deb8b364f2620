"""Directions that are not a plain contrast of pairs: toxicity categories, SAE features; and what a vector is like."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from safetensors import safe_open
from torch import Tensor

from steerlib.tables import ATTRIBUTE_COLUMNS
from steerlib.vectors.steering_vector import SteeringVector, mean_difference

SIX = list(ATTRIBUTE_COLUMNS)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two vectors."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def describe_vectors(
    preferred: Mapping[int, Tensor],
    dispreferred: Mapping[int, Tensor],
    weights: ArrayLike | None = None,
    *,
    seed: int,
) -> pd.DataFrame:
    """Norm, relative norm and split-half stability of the mean-difference vector of each layer.

    Args:
        preferred, dispreferred, weights: see `mean_difference`, by layer.
        seed: of the random halves.

    Returns:
        One row per layer: `layer`, `norm` (activation units), `relative_norm` (norm of v_l over the mean norm of the
        preferred answers' residuals: that of an alpha of 1), `split_half_cosine` (between the vectors of two random
        halves of the pairs; 1 is perfectly stable).
    """
    rows = []
    for layer, likes in preferred.items():
        dislikes, n = dispreferred[layer], len(likes)
        w = np.ones(n) if weights is None else np.asarray(weights)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        halves = [mean_difference(likes[h], dislikes[h], w[h]) for h in (order[: n // 2], order[n // 2 :])]
        norm = float(mean_difference(likes, dislikes, w).norm())
        rows.append((layer, norm, norm / float(likes.norm(dim=-1).mean()), cosine(*halves)))
    return pd.DataFrame(rows, columns=pd.Index(["layer", "norm", "relative_norm", "split_half_cosine"]))


def category_differences(residuals: Mapping[int, Tensor], scores: pd.DataFrame) -> dict[str, SteeringVector]:
    """Toxicity direction of each category: mean residual of the most toxic answers minus that of the least toxic.

        v_tox_{c,l} = E[h_l(y) : P_c(y) in the top quarter] - E[h_l(y) : P_c(y) in the bottom quarter]

    They point TOWARDS toxicity. Answers that tie with the last one of a side belong to it too, so the order of the rows
    does not matter and a side may be larger than a quarter.

    Args:
        residuals: pooled residuals of the same answers by layer, `(n, d_model)`.
        scores: `(n, six)` attributes in [0, 1], one row per answer in the same order.

    Raises:
        ValueError: fewer than four answers, other numbers of rows, a missing score, or a category whose two sides would
            share answers (scores all equal, or mostly).

    Source: CAA on PRISM gives no equations for its dislike-weighted vector; this contrast is ours.
    """
    side = len(scores) // 4
    if not side:
        raise ValueError(f"{len(scores)} answers have no quarters")
    for layer, rows in residuals.items():
        if len(rows) != len(scores):
            raise ValueError(f"layer {layer} has {len(rows)} answers, the scores {len(scores)}")
    directions = {}
    for category in SIX:
        values = scores[category].to_numpy(dtype=np.float64)
        ordered = np.sort(values)
        low, high = ordered[side - 1], ordered[-side]
        if not low < high or np.isnan(values).any():
            raise ValueError(
                f"{category}: {int(np.isnan(values).sum())} scores are missing; the lowest {side} and the highest"
                f" {side} of {len(values)} meet at {high:g}: use more varied answers"
            )
        top, bottom = torch.from_numpy(values >= high), torch.from_numpy(values <= low)
        directions[category] = SteeringVector(
            (layer, mean_difference(rows[top], rows[bottom])) for layer, rows in residuals.items()
        )
    return directions


def sae_direction(path: str | Path, feature: int, *, layer: int, d_model: int) -> SteeringVector:
    """Direction that one feature of a sparse autoencoder writes into the residual stream.

        v_l = W_dec[feature]

    The decoder must have been trained on the OUTPUT of block `layer` ("resid_post" of that layer). The direction is
    taken as it stands: many decoders have rows of length 1, so alpha is then in activation units and tens of times
    larger than with mean differences. Only the feature's numbers are read from the file.

    Args:
        path: a `.safetensors` file whose decoder, `(n_features, d_model)` or its transpose, is called "W_dec" or
            "decoder.weight" or is the only matrix.
        feature: number of the feature, from 0.
        layer: 0-based block whose output the autoencoder reads.
        d_model: width of the model, see `FrozenModel.d_model`.

    Raises:
        KeyError: which matrix is the decoder is not plain; the file's tensors are listed.
        ValueError: no side of the matrix is d_model, or both are.
        IndexError: the autoencoder has no such feature.

    Source: Templeton et al., Scaling Monosemanticity, 2024 (steering along decoder directions); names as in SAELens and
    in EleutherAI's sparsify.
    """
    path = Path(path)
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        named = [name for name in ("W_dec", "decoder.weight") if name in matrices] or matrices
        if len(named) != 1:
            listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise KeyError(f"{path.name}: no decoder W_dec or decoder.weight among {listed}")
        shape = shapes[named[0]]
        if shape.count(d_model) != 1:
            raise ValueError(f"{path.name}, {named[0]}: d_model {d_model} is not one side of {shape}")
        in_rows = shape[1] == d_model
        n_features = shape[0] if in_rows else shape[1]
        if not 0 <= feature < n_features:
            raise IndexError(f"feature {feature} is not in 0..{n_features - 1}")
        matrix = file.get_slice(named[0])
        row = matrix[feature] if in_rows else matrix[:, feature]
    return SteeringVector({layer: torch.as_tensor(row).reshape(d_model).float()})
