"""Residuals of given continuations, each behind a prompt of its own.

Vectors of several layers as one thing that can be added, scaled and turned round.

From recorded residuals to steering vectors: mean differences, their controls, how alike they are.

Directions of single features of a sparse autoencoder whose decoder the user supplies.

Directions of the six toxicity categories, and a user's own mixture of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from safetensors import safe_open
from torch import Tensor

from steerlib.models import FrozenModel
from steerlib.reading import answer_ids, prompt_ids
from steerlib.residual import Vectors, record_residual
from steerlib.tables import ATTRIBUTE_COLUMNS


class LayerVectors(dict[int, Tensor]):
    """Steering vectors by layer, with `+`, `-`, `* number`, `/ number` and unary minus, layer by layer.

        (a + b)_l = a_l + b_l,   (c a)_l = c a_l

    Both sides of `+` and `-` must have the same layers: a layer that is missing on one side would be steered by half
    of what was asked for. Elsewhere it is a dict from layer to `(d_model,)`.
    """

    def __add__(self, other: Mapping[int, Tensor]) -> "LayerVectors":
        _check_alike(self, other)
        return LayerVectors({layer: vector + other[layer] for layer, vector in self.items()})

    def __sub__(self, other: Mapping[int, Tensor]) -> "LayerVectors":
        _check_alike(self, other)
        return LayerVectors({layer: vector - other[layer] for layer, vector in self.items()})

    def __mul__(self, factor: float) -> "LayerVectors":
        return LayerVectors({layer: vector * factor for layer, vector in self.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "LayerVectors":
        return LayerVectors({layer: vector / divisor for layer, vector in self.items()})

    def __neg__(self) -> "LayerVectors":
        return LayerVectors({layer: -vector for layer, vector in self.items()})


def _check_alike(left: Mapping[int, Tensor], right: Mapping[int, Tensor]) -> None:
    """Refuse vectors of other layers or widths.

    Raises:
        ValueError: both sides' layers, or both widths, are shown.
    """
    if set(left) != set(right):
        raise ValueError(f"layers differ: {sorted(left)} and {sorted(right)}")
    for layer, vector in left.items():
        if vector.shape != right[layer].shape:
            raise ValueError(f"layer {layer}: widths differ, {len(vector)} and {len(right[layer])}")


PAPER_LAYERS = (16, 22)
PAPER_DEPTH = 32


def default_layers(n_layers: int) -> list[int]:
    """The study's layers 16..22 of 32, at the same relative depth of another model.

    Args:
        n_layers: decoder blocks of the model.

    Returns:
        0-based layers, inclusive range; for 32 blocks exactly 16..22.

    Source: CAA on PRISM, sec. 3.
    """
    first, last = (round(layer * n_layers / PAPER_DEPTH) for layer in PAPER_LAYERS)
    return list(range(first, min(last, n_layers - 1) + 1))


def mean_difference(preferred: Tensor, dispreferred: Tensor, weights: ArrayLike | None = None) -> Tensor:
    """Steering vector of one layer: mean residual of preferred answers less that of dispreferred ones.

        v_l = E[h_l(p + y+)] - E[h_l(p + y-)]

    Args:
        preferred, dispreferred: pooled residuals, `(n, d_model)` each; the numbers of rows may differ.
        weights: how much each pair counts, `(n,)`, for instance 0.5 for a tie; None where all count the same.

    Returns:
        `(d_model,)` in activation units, float32; the means are accumulated in float64.

    Raises:
        ValueError: no rows, different widths, or weights that are not one a pair, negative or all 0.

    Source: Panickssery et al. (arXiv 2312.06681, eq. 1), where one answer letter differs; CAA on PRISM contrasts
    whole answers, so length and style differ too.
    """
    if not len(preferred) or not len(dispreferred):
        raise ValueError(f"need residuals on both sides, not {len(preferred)} and {len(dispreferred)}")
    if preferred.shape[-1] != dispreferred.shape[-1]:
        raise ValueError(f"widths differ: {preferred.shape[-1]} and {dispreferred.shape[-1]}")
    if weights is None:
        return (preferred.double().mean(0) - dispreferred.double().mean(0)).float()
    share = _shares(weights, len(preferred), len(dispreferred)).to(preferred.device)
    return (share @ (preferred.double() - dispreferred.double())).float()


def _shares(weights: ArrayLike, *rows: int) -> Tensor:
    """Weights of pairs that sum to 1, in float64."""
    share = torch.from_numpy(np.array(weights, dtype=np.float64))
    if rows != (len(share), len(share)):
        raise ValueError(f"{len(share)} weights for {rows[0]} preferred and {rows[1]} dispreferred answers")
    if not share.isfinite().all() or share.min() < 0 or share.sum() == 0:
        raise ValueError("weights must be 0 or more and not all 0")
    return share / share.sum()


def mean_differences(
    preferred: Mapping[int, Tensor], dispreferred: Mapping[int, Tensor], weights: ArrayLike | None = None
) -> LayerVectors:
    """`mean_difference` of every layer."""
    return LayerVectors(
        {layer: mean_difference(preferred[layer], dispreferred[layer], weights) for layer in preferred}
    )


def random_vectors(like: Mapping[int, Tensor], *, seed: int) -> LayerVectors:
    """Random directions with the norm of given vectors, layer by layer: the control of a steering vector.

    Args:
        like: vectors to match, `(d_model,)` each.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {layer: torch.randn(vector.shape, generator=generator) for layer, vector in like.items()}
    return LayerVectors({layer: draw * (like[layer].norm() / draw.norm()) for layer, draw in drawn.items()})


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
        preferred, dispreferred: pooled residuals of the two sides of the same pairs, by layer, `(n, d_model)`.
        weights: as in `mean_difference`.
        seed: of the random halves.

    Returns:
        One row a layer: `norm` (activation units), `relative_norm` (to the mean residual norm), `split_half_cosine`
        (between the vectors of two random halves of the pairs; 1 is perfectly stable).
    """
    rows = []
    for layer in preferred:
        n = len(preferred[layer])
        w = np.ones(n) if weights is None else np.asarray(weights)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        halves = [
            mean_difference(preferred[layer][half], dispreferred[layer][half], w[half])
            for half in (order[: n // 2], order[n // 2 :])
        ]
        vector = mean_difference(preferred[layer], dispreferred[layer], w)
        typical = preferred[layer].norm(dim=-1).mean()
        rows.append(
            {
                "layer": layer,
                "norm": float(vector.norm()),
                "relative_norm": float(vector.norm() / typical),
                "split_half_cosine": cosine(*halves),
            }
        )
    return pd.DataFrame(rows)


USUAL_NAMES = ("W_dec", "decoder.weight")


class _Decoder(NamedTuple):
    """A decoder's tensor: its name, number of features, and whether a feature is a row of it."""

    name: str
    n_features: int
    in_rows: bool


def sae_direction(
    path: str | Path, feature: int, *, layer: int, d_model: int, tensor: str | None = None
) -> LayerVectors:
    """Direction that one feature of a sparse autoencoder writes into the residual stream.

        v_l = W_dec[feature]

    The decoder must have been trained on the OUTPUT of block `layer`, counted from 0 ("resid_post" of that layer). The
    direction is taken as it stands: many decoders have rows of length 1, so alpha is then in activation units and
    tens of times larger than with mean differences. Only the feature's numbers are read from the file.

    Args:
        path: a `.safetensors` file with the decoder matrix, `(n_features, d_model)` or `(d_model, n_features)`.
        feature: number of the feature, from 0.
        layer: 0-based block whose output the autoencoder reads.
        d_model: width of the model, see `FrozenModel.d_model`.
        tensor: name of the decoder in the file; by default "W_dec" or "decoder.weight", or the only matrix there is.

    Returns:
        The direction at that one layer, float32.

    Raises:
        FileNotFoundError: no such file.
        KeyError: no tensor of that name, or several matrices and none of a usual name; the file's are listed.
        ValueError: no side of the matrix is d_model, or both are.
        IndexError: the autoencoder has no such feature.

    Source: Templeton et al., Scaling Monosemanticity, 2024 (steering along decoder directions); names as in SAELens and
    in EleutherAI's sparsify.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        decoder = _decoder(shapes, tensor, d_model, path.name)
        if not 0 <= feature < decoder.n_features:
            raise IndexError(f"feature {feature} is not in 0..{decoder.n_features - 1}")
        matrix = file.get_slice(decoder.name)
        row = matrix[feature] if decoder.in_rows else matrix[:, feature]
    return LayerVectors({layer: torch.as_tensor(row).reshape(d_model).float()})


def _decoder(shapes: dict[str, tuple[int, ...]], tensor: str | None, d_model: int, file: str) -> _Decoder:
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    named = [tensor] if tensor else [name for name in USUAL_NAMES if name in matrices] or matrices
    if len(named) != 1 or named[0] not in matrices:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise KeyError(
            f"{file}: name the decoder matrix; {tensor or 'a usual name'} is not it among {listed}"
        )
    shape = shapes[named[0]]
    if (shape[0] == d_model) == (shape[1] == d_model):
        sides = "both sides are" if shape[0] == d_model else "no side is"
        raise ValueError(f"{file}, {named[0]}: {sides} the model's width {d_model}, its shape is {shape}")
    in_rows = shape[1] == d_model
    return _Decoder(named[0], shape[0] if in_rows else shape[1], in_rows)


SIX = list(ATTRIBUTE_COLUMNS)


def category_differences(
    residuals: Mapping[int, Tensor], scores: pd.DataFrame, *, share: float = 0.25
) -> dict[str, LayerVectors]:
    """Toxicity direction of each category: mean residual of the most toxic answers less that of the least toxic.

        v_tox_{c,l} = E[h_l(y) : P_c(y) in the top share] - E[h_l(y) : P_c(y) in the bottom share]

    They point TOWARDS toxicity. Answers that tie with the last one of a side belong to it too, so the order of the rows
    does not matter and a side may be larger than the share.

    Args:
        residuals: pooled residuals of the same answers by layer, `(n, d_model)`.
        scores: `(n, six)` attributes in [0, 1], a row an answer in the same order.
        share: of the answers on each side, in (0, 0.5].

    Returns:
        By category, the vectors by layer, `(d_model,)` in activation units.

    Raises:
        ValueError: a share outside (0, 0.5] or below one answer, other numbers of rows, a missing score, or a category
            whose two sides would share answers (scores all equal, or mostly).

    Source: CAA on PRISM gives no equations for its dislike-weighted vector; this contrast is ours.
    """
    _check_scores(residuals, scores)
    side = int(share * len(scores))
    if not 0 < share <= 0.5 or side < 1:
        raise ValueError(f"share {share} of {len(scores)} answers: it must be in (0, 0.5] and give an answer")
    directions = {}
    for category in SIX:
        values = scores[category].to_numpy(dtype=np.float64)
        ordered = np.sort(values)
        low, high = ordered[side - 1], ordered[-side]
        if not low < high:
            raise ValueError(
                f"{category}: the lowest {side} and the highest {side} of {len(values)} scores meet at {high:g};"
                " a smaller share or more varied answers would part them"
            )
        top, bottom = torch.from_numpy(values >= high), torch.from_numpy(values <= low)
        directions[category] = LayerVectors(
            (layer, mean_difference(rows[top], rows[bottom])) for layer, rows in residuals.items()
        )
    return directions


def dislike_weights(sensitivities: pd.DataFrame, *, relative: bool = False) -> pd.DataFrame:
    """How much each category counts in a user's vector: their sensitivities, as shares.

        w_uc = max(s_uc, 0) / sum_c' max(s_uc', 0)
        s_uc <- (s_uc - mean_u s_uc) / sd_u s_uc                 (relative)

    As the poster words it, weights hardly differ between users: all dislike the frequent categories. The relative ones
    are of what a user dislikes more than others do.

    Only exposure-adjusted and relative ones are ever negative: there the user minds the category less than other
    answers, or other users, which is no reason to steer towards it, so it gets no weight. A user without any
    positive sensitivity gets the population's weights (of the mean sensitivities), and these are equal where no
    mean is positive.

    Args:
        sensitivities: `(users, six)` of any estimator.
        relative: standardise each category over users first; one in which users do not differ counts 0.

    Returns:
        `(users, six)`, not negative, rows sum to 1.

    Raises:
        ValueError: a category is missing, or a sensitivity is; user and category are named.
    """
    missing = [category for category in SIX if category not in sensitivities]
    if missing:
        raise ValueError(f"sensitivities lack the categories {missing}")
    s = sensitivities[SIX].astype(float)
    if s.isna().any(axis=None):
        user, category = s.isna().stack().idxmax()
        raise ValueError(f"user {user!r} has no sensitivity to {category}")
    if relative:
        spread = s.std(ddof=0)
        s = (s - s.mean()) / spread.where(spread > 0, 1.0)
    mean = s.mean().clip(lower=0)
    population = mean / mean.sum() if mean.sum() > 0 else pd.Series(1 / len(SIX), index=SIX)
    positive = s.clip(lower=0)
    total = positive.sum(axis=1)
    weights = positive.div(total.where(total > 0), axis=0)
    return weights.fillna(population)


def dislike_weighted(
    categories: Mapping[str, Vectors], sensitivities: pd.DataFrame, *, relative: bool = False
) -> dict[str, LayerVectors]:
    """Dislike-weighted aggregate: away from the categories, each by how much the user dislikes it.

        v_{u,l} = -sum_c w_uc v_tox_{c,l}

    The sign: `categories` point towards toxicity and the minus turns the sum round, so that a positive alpha moves away
    from what the user dislikes, as it does for a preferred-less-dispreferred vector.

    Args:
        categories: what `category_differences` returned.
        sensitivities, relative: see `dislike_weights`.

    Returns:
        By user, the vectors by layer, `(d_model,)` in activation units.

    Raises:
        ValueError: a category without vectors, or what `dislike_weights` refuses.

    Source: CAA on PRISM, "dislike-weighted aggregate", given there in words only.
    """
    return mixtures(categories, -dislike_weights(sensitivities, relative=relative))


def mixtures(categories: Mapping[str, Vectors], weights: pd.DataFrame) -> dict[str, LayerVectors]:
    """Weighted sums of directions, one a user: v_{u,l} = sum_c weight_uc v_{c,l}.

    With a user's fitted Bradley-Terry coordinates on the six scores as weights, this is the reading of the poster in
    which coordinates are toxicity scores.

    Args:
        categories: vectors by category and layer.
        weights: `(users, categories)`, of any sign.

    Returns:
        By user, the vectors by layer, float32; the sum is accumulated in float64.

    Raises:
        ValueError: a column of the weights has no vectors.
    """
    absent = [category for category in weights if category not in categories]
    if absent:
        raise ValueError(f"no vectors for {absent[0]!r}; there are {', '.join(categories)}")
    matrix = torch.tensor(weights.to_numpy(), dtype=torch.float64)
    first = categories[weights.columns[0]]
    stacked = {layer: torch.stack([categories[c][layer].double() for c in weights]) for layer in first}
    mixed = {layer: (matrix @ rows).float() for layer, rows in stacked.items()}
    return {
        str(user): LayerVectors((layer, rows[place]) for layer, rows in mixed.items())
        for place, user in enumerate(weights.index)
    }


def _check_scores(residuals: Mapping[int, Tensor], scores: pd.DataFrame) -> None:
    missing = [category for category in SIX if category not in scores]
    if missing:
        raise ValueError(f"scores lack the columns {missing}")
    for layer, rows in residuals.items():
        if len(rows) != len(scores):
            raise ValueError(f"layer {layer} has {len(rows)} answers, the scores {len(scores)}")
    gaps = scores[SIX].isna().to_numpy()
    if gaps.any():
        row, column = np.argwhere(gaps)[0]
        raise ValueError(f"scores: {SIX[column]} is missing in row {row}")


def continuation_residuals(
    frozen: FrozenModel,
    prompts: Iterable[str],
    continuations: Iterable[str],
    *,
    layers: Sequence[int],
    style: str = "continuation",
    pool: str = "answer_mean",
) -> dict[int, Tensor]:
    """Pooled residuals of continuations where, unlike in `pair_residuals`, no two share a prompt.

    Args:
        frozen: the model.
        prompts, continuations: n texts each.
        layers: 0-based decoder blocks.
        style: "chat" or "continuation", as for generation.
        pool: see `record_residual`; by default the mean over the continuation's tokens.

    Returns:
        By layer, `(n, d_model)` in float64, in activation units.

    Raises:
        ValueError: as `record_residual`, or the numbers of texts differ.
    """
    opened = [prompt_ids(frozen, prompt, style=style) for prompt in prompts]
    texts = [answer_ids(frozen, text, style=style) for text in continuations]
    contexts = [prompt + text for prompt, text in zip(opened, texts, strict=True)]
    lengths = [len(prompt) for prompt in opened]
    return record_residual(frozen, contexts, layers=layers, prompt_lengths=lengths, pool=pool)
