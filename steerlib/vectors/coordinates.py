"""How many axes and how much shrinkage users' coordinates need, and how stable they are.

A few orthonormal axes of the residual stream in which answers, users and steering directions have coordinates.

An answer's features are its pooled residuals of the steered layers, side by side, each layer divided by its typical
norm: the norm grows with depth, and the last layer would otherwise be the basis.

Where each user stands in a basis: Bradley-Terry and ideal-point coordinates, shrunk towards the population.

n pairs, r axes, U users. Utilities are in logits; coordinates x are whitened, so that one unit of theta is one logit
a standard deviation of real answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from steerlib.profiles.sources import hash_order
from steerlib.residual import Vectors
from steerlib.tables import progress_bar
from steerlib.vectors.directions import LayerVectors


@dataclass(frozen=True)
class Basis:
    """Orthonormal axes Q with the scales that lead from residuals to whitened coordinates and back.

        phi(y) = [h_l(y) / n_l for each layer],    x(y) = Q^T (phi(y) - centre) / spread

    Attributes:
        widths: d_model of each layer, in the order of the features.
        norms: n_l, mean norm of the training answers' residuals at layer l.
        axes: Q, `(n_features, rank)`, Q^T Q = I; the first axis carries the largest share.
        centre: `(n_features,)` mean features of the training answers, so that x = 0 is the mean answer.
        spread: `(rank,)` standard deviation of the training answers along each axis (divided by n).
        shares: `(rank,)` each axis' share of the sum of squares of the rows that the axes were made from.
    """

    widths: Mapping[int, int]
    norms: Mapping[int, float]
    axes: NDArray
    centre: NDArray
    spread: NDArray
    shares: NDArray

    @property
    def rank(self) -> int:
        """Number of axes."""
        return self.axes.shape[1]

    def coordinates(self, residuals: Mapping[int, Tensor]) -> NDArray:
        """Whitened coordinates x of answers.

        Args:
            residuals: pooled residuals by layer, `(n, d_model)` each, of every layer of the basis.

        Returns:
            `(n, rank)` float64; the training answers have mean 0 and standard deviation 1 on each axis.

        Raises:
            ValueError: a layer of the basis is missing, or a residual has another width.
        """
        return (_features(residuals, self.norms, self.widths) - self.centre) @ self.axes / self.spread

    def vectors(self, theta: ArrayLike) -> LayerVectors:
        """The displacement of the residual stream that moves an answer's coordinates by theta.

            v_l = n_l Q_l (spread * theta),    x(h + v) = x(h) + theta

        Args:
            theta: `(r,)` for the first r axes, r <= rank.

        Returns:
            By layer, `(d_model,)` in activation units, float32.

        Raises:
            ValueError: more coordinates than axes.

        Source: CAA on PRISM leaves the way back to activations open; this one is ours. For a utility theta . x it
        is the steepest ascent when steps are measured in standard deviations of real answers; the plain gradient
        in activations, Q (theta / spread), would push hardest along the axes on which answers hardly differ.
        """
        move = np.asarray(theta, dtype=np.float64)
        if move.ndim != 1 or len(move) > self.rank:
            raise ValueError(f"theta has shape {move.shape}, the basis {self.rank} axes")
        features = self.axes[:, : len(move)] @ (self.spread[: len(move)] * move)
        parts = np.split(features, np.cumsum(list(self.widths.values()))[:-1])
        return LayerVectors(
            (layer, torch.from_numpy(part * self.norms[layer]).float())
            for layer, part in zip(self.widths, parts, strict=True)
        )


def difference_basis(
    preferred: Mapping[int, Tensor], dispreferred: Mapping[int, Tensor], *, rank: int
) -> Basis:
    """SVD-orthogonalised basis of what sets preferred answers apart from dispreferred ones.

        d_k = phi(y+_k) - phi(y-_k),    D = U S W^T,    Q = first `rank` columns of W

    The singular vectors do not change when a pair is turned round, so the axes do not know which answer was
    preferred; only their signs do: each axis points the way the mean difference points.

    Args:
        preferred, dispreferred: pooled residuals of the two sides of the TRAIN pairs, by layer, `(n, d_model)`.
        rank: number of axes.

    Raises:
        ValueError: the sides do not match, or the pairs do not span so many axes.

    Source: CAA on PRISM names the "SVD-orthogonalised basis" without equations; rows of uncentred pair differences
    and the division by the layers' norms are ours.
    """
    layers, norms = _scales(preferred, dispreferred)
    rows = _features(preferred, norms, layers) - _features(dispreferred, norms, layers)
    return _basis(rows, preferred, dispreferred, rank)


def category_basis(
    categories: Mapping[str, Vectors],
    preferred: Mapping[int, Tensor],
    dispreferred: Mapping[int, Tensor],
    *,
    rank: int,
) -> Basis:
    """SVD-orthogonalised basis of the span of the categories' toxicity directions.

    The six directions are much alike; the first axis is what they share, the later ones what sets them apart. An axis
    mixes categories, and its sign is that of the mean preference difference, not that of toxicity.

    Args:
        categories: toxicity direction of each category, by layer, as `category_differences` returns.
        preferred, dispreferred: pooled residuals of the TRAIN pairs, which give centre, spread and signs.
        rank: number of axes, at most the number of categories.

    Raises:
        ValueError: as `difference_basis`, or a category lacks a layer.
    """
    layers, norms = _scales(preferred, dispreferred)
    stacked = {
        layer: torch.stack([_layer(category, vectors, layer) for category, vectors in categories.items()])
        for layer in layers
    }
    return _basis(_features(stacked, norms, layers), preferred, dispreferred, rank)


def _basis(
    rows: NDArray, preferred: Mapping[int, Tensor], dispreferred: Mapping[int, Tensor], rank: int
) -> Basis:
    widths, norms = _scales(preferred, dispreferred)
    _, singular, right = np.linalg.svd(rows, full_matrices=False)
    found = int((singular > singular[0] * max(rows.shape) * np.finfo(np.float64).eps).sum())
    if not 1 <= rank <= found:
        raise ValueError(f"rank {rank} is not in 1..{found}: the {len(rows)} rows span {found} axes")
    likes, dislikes = (_features(side, norms, widths) for side in (preferred, dispreferred))
    axes = right[:rank].T
    axes = axes * np.where((likes - dislikes).mean(0) @ axes < 0, -1.0, 1.0)
    answers = np.concatenate([likes, dislikes])
    spread = (answers @ axes).std(axis=0)
    if (spread == 0).any():
        raise ValueError(f"the training answers do not differ along axis {int(np.argmin(spread)) + 1}")
    shares = singular[:rank] ** 2 / (singular**2).sum()
    return Basis(widths, norms, axes, answers.mean(0), spread, shares)


def _scales(
    preferred: Mapping[int, Tensor], dispreferred: Mapping[int, Tensor]
) -> tuple[dict[int, int], dict[int, float]]:
    """Width and typical norm of each layer, once both sides are seen to match."""
    if not preferred or list(preferred) != list(dispreferred):
        raise ValueError(f"sides differ: layers {list(preferred)} and {list(dispreferred)}")
    norms = {}
    for layer, likes in preferred.items():
        if likes.shape != dispreferred[layer].shape:
            shapes = f"{tuple(likes.shape)} and {tuple(dispreferred[layer].shape)}"
            raise ValueError(f"layer {layer}: preferred and dispreferred have shapes {shapes}")
        norms[layer] = float(torch.cat([likes, dispreferred[layer]]).double().norm(dim=-1).mean())
        if not 0 < norms[layer] < float("inf"):
            raise ValueError(f"layer {layer}: the mean norm of the residuals is {norms[layer]}")
    return {layer: likes.shape[-1] for layer, likes in preferred.items()}, norms


def _features(
    residuals: Mapping[int, Tensor], norms: Mapping[int, float], widths: Mapping[int, int]
) -> NDArray:
    parts = []
    for layer, width in widths.items():
        if layer not in residuals or residuals[layer].shape[-1] != width:
            found = tuple(residuals[layer].shape) if layer in residuals else "no residuals"
            raise ValueError(f"layer {layer} of the basis is {width} wide; found {found}")
        parts.append(residuals[layer].double().cpu().numpy() / norms[layer])
    return np.concatenate(parts, axis=-1)


def _layer(category: str, vectors: Vectors, layer: int) -> Tensor:
    if layer not in vectors:
        raise ValueError(f"category {category!r} has no vector of layer {layer}, only {sorted(vectors)}")
    return vectors[layer].double()


@dataclass(frozen=True)
class UserCoordinates:
    """What `fit_coordinates` found.

    Attributes:
        population: mu, `(r,)`: the coordinates of a user of whom nothing is known.
        users: `(U, r)` theta_u of each user with pairs, by user_id.
        curvature: lambda; 0 for Bradley-Terry.
    """

    population: NDArray
    users: pd.DataFrame
    curvature: float

    def theta(self, users: Sequence[str]) -> NDArray:
        """theta_u of users, `(n, r)`; mu for those without pairs."""
        found = self.users.index.get_indexer(pd.Index(users))
        return np.where((found >= 0)[:, None], self.users.to_numpy()[found], self.population)

    def ideal_points(self) -> pd.DataFrame:
        """p_u = theta_u / lambda of each user with pairs, in coordinates x.

        Raises:
            ValueError: a Bradley-Terry fit, whose users want always more.
        """
        if self.curvature == 0:
            raise ValueError("Bradley-Terry coordinates have no ideal points: the curvature is 0")
        return self.users / self.curvature


@dataclass(frozen=True)
class Comparisons:
    """Pairs as the linear logit a_k . theta_{u(k)} + b_k that both models are.

    Attributes:
        differences: a_k = x+_k - x-_k, `(n, r)`.
        offset: b_k = -lambda/2 (|x+_k|^2 - |x-_k|^2), `(n,)`.
        codes: each pair's user, 0..U-1, `(n,)`.
        weights: `(n,)`.
    """

    differences: NDArray
    offset: NDArray
    codes: NDArray
    weights: NDArray


def fit_coordinates(
    preferred: ArrayLike,
    dispreferred: ArrayLike,
    users: Sequence[str],
    *,
    tau: float,
    ridge: float = 1.0,
    curvature: float = 0.0,
    rank: int | None = None,
    weights: ArrayLike | None = None,
) -> UserCoordinates:
    """Bradley-Terry (curvature 0) or ideal-point coordinates of every user, shrunk towards the population.

        P(i > j | u) = sigmoid(theta_u . (x_i - x_j))                                               Bradley-Terry
        utility_u(x) = -lambda/2 |x - p_u|^2,                                                       ideal point
        logit        = lambda p_u . (x_i - x_j) - lambda/2 (|x_i|^2 - |x_j|^2),    theta_u = lambda p_u
        theta_u      = mu + delta_u
        minimised: -sum_k w_k ln P(y+_k > y-_k) + |delta|^2 / (2 tau^2) + ridge/2 |mu|^2

    The ideal point is fitted as theta_u, in which it is linear with a fixed offset: both problems are convex with one
    minimum, and lambda -> 0 with theta held is Bradley-Terry (ideal points that lie far away). On p_u the shrinkage is
    tau / lambda.

    Args:
        preferred, dispreferred: coordinates x of the two sides of the pairs, `(n, at least r)`, of spread about 1.
        users: whose pair each is.
        tau: standard deviation of users about the population, in logits a unit; 0 gives everybody mu.
        ridge: inverse variance of mu about 0.
        curvature: lambda, the metric Lambda = lambda I in whitened coordinates; not negative.
        rank: how many of the first coordinates are used; all by default.
        weights: w_k of each pair, `(n,)`, for instance 0.5 for a tie; 1 by default. Pairs of weight 0 are dropped,
            and their users with them, if they have no others.

    Raises:
        ValueError: shapes that do not match, a coordinate that is not finite, no pairs, or a setting out of range.

    Source: Bradley and Terry (1952); ideal points after Coombs (1950), for language models Chen et al., PAL
    (arXiv 2406.08469), who use distances and a simplex of prototypes where we use squared distances and shrinkage.
    """
    if not 0 <= tau < np.inf or not 0 < ridge < np.inf:
        raise ValueError(f"tau {tau} must be 0 or more and ridge {ridge} above 0, both finite")
    likes, dislikes = check_sides(preferred, dispreferred, len(users), rank)
    w = check_weights(weights, len(users))
    kept = w > 0
    pairs, names = comparisons(likes[kept], dislikes[kept], np.asarray(users)[kept], w[kept], curvature)
    r, n_users = likes.shape[1], len(names)
    start = np.zeros(r * (1 + n_users))
    found = minimize(
        penalised_loss,
        start,
        args=(pairs, tau, ridge),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 10000, "ftol": 1e-14, "gtol": 1e-8},
    )
    mu, scaled = found.x[:r], found.x[r:].reshape(n_users, r)
    columns = pd.Index([f"axis_{one + 1}" for one in range(r)])
    theta = pd.DataFrame(mu + tau * scaled, index=pd.Index(names, name="user_id"), columns=columns)
    return UserCoordinates(mu, theta, curvature)


def penalised_loss(
    parameters: NDArray, pairs: Comparisons, tau: float, ridge: float
) -> tuple[float, NDArray]:
    """What `fit_coordinates` makes small, and its gradient.

    Args:
        parameters: mu and then delta_u / tau of each user, flat; in these a small tau is no stiffer than a large one.
        pairs: the comparisons.
        tau, ridge: see `fit_coordinates`.
    """
    r = pairs.differences.shape[1]
    mu, scaled = parameters[:r], parameters[r:].reshape(-1, r)
    theta = mu + tau * scaled
    logit = (pairs.differences * theta[pairs.codes]).sum(1) + pairs.offset
    loss = pairs.weights @ np.logaddexp(0, -logit) + ridge / 2 * mu @ mu + (scaled**2).sum() / 2
    slope = -pairs.weights * expit(-logit)
    by_user = np.zeros_like(scaled)
    np.add.at(by_user, pairs.codes, slope[:, None] * pairs.differences)
    gradient = np.concatenate([by_user.sum(0) + ridge * mu, (tau * by_user + scaled).ravel()])
    return float(loss), gradient


def comparisons(
    preferred: NDArray, dispreferred: NDArray, users: NDArray, weights: NDArray, curvature: float
) -> tuple[Comparisons, list[str]]:
    """Pairs as linear logits, and the users in the order of their codes.

    Raises:
        ValueError: a negative curvature, or no pairs.
    """
    if not 0 <= curvature < np.inf:
        raise ValueError(f"curvature {curvature} must be 0 (Bradley-Terry) or more (ideal point)")
    if not len(users):
        raise ValueError("no pairs to fit coordinates on (pairs of weight 0 do not count)")
    codes, names = pd.factorize(users, sort=True)
    offset = -curvature / 2 * ((preferred**2).sum(1) - (dispreferred**2).sum(1))
    return Comparisons(preferred - dispreferred, offset, codes, weights), [str(name) for name in names]


def preference_margins(
    fit: UserCoordinates,
    preferred: ArrayLike,
    dispreferred: ArrayLike,
    users: Sequence[str],
    *,
    population: bool = False,
) -> NDArray:
    """By how many logits each user is expected to prefer the preferred answer: utility difference, `(n,)`.

    Args:
        fit: what `fit_coordinates` found on other conversations.
        preferred, dispreferred: coordinates x, `(n, at least r)`.
        users: whose pair each is; users without coordinates count as the population.
        population: everybody counts as the population.

    Raises:
        ValueError: shapes that do not match, or a coordinate that is not finite.
    """
    likes, dislikes = check_sides(preferred, dispreferred, len(users), len(fit.population))
    theta = np.broadcast_to(fit.population, likes.shape) if population else fit.theta(users)
    further = (likes**2).sum(1) - (dislikes**2).sum(1)
    return ((likes - dislikes) * theta).sum(1) - fit.curvature / 2 * further


def coordinate_margins(
    fit: UserCoordinates,
    basis: Basis,
    preferred: Mapping[int, Tensor],
    dispreferred: Mapping[int, Tensor],
    users: Sequence[str],
    *,
    population: bool = False,
) -> NDArray:
    """`preference_margins` of answers given by their residuals: the margins of PPA by coordinates.

    Args:
        fit: what `fit_coordinates` found with coordinates of the same basis.
        basis: that basis.
        preferred, dispreferred: pooled residuals of held-out pairs, by layer, `(n, d_model)`.
        users, population: see `preference_margins`.
    """
    likes, dislikes = basis.coordinates(preferred), basis.coordinates(dispreferred)
    return preference_margins(fit, likes, dislikes, users, population=population)


def check_sides(
    preferred: ArrayLike, dispreferred: ArrayLike, n: int, rank: int | None
) -> tuple[NDArray, NDArray]:
    """Both sides as float64 `(n, rank)`.

    Raises:
        ValueError: shapes that do not match, a rank that there is not, or a coordinate that is not finite.
    """
    likes, dislikes = (np.asarray(side, dtype=np.float64) for side in (preferred, dispreferred))
    if likes.ndim != 2 or likes.shape != dislikes.shape or len(likes) != n:
        raise ValueError(
            f"preferred {likes.shape}, dispreferred {dislikes.shape} and {n} users do not match: need (n, r)"
        )
    if rank is not None and not 1 <= rank <= likes.shape[1]:
        raise ValueError(f"rank {rank} is not in 1..{likes.shape[1]}")
    for name, side in (("preferred", likes), ("dispreferred", dislikes)):
        if not np.isfinite(side).all():
            row, column = np.argwhere(~np.isfinite(side))[0]
            raise ValueError(f"{name}: coordinate {column + 1} of pair {row} is {side[row, column]}")
    return likes[:, :rank], dislikes[:, :rank]


def check_weights(weights: ArrayLike | None, n: int) -> NDArray:
    """Weights of n pairs, 1 where none are given.

    Raises:
        ValueError: another number of them, or a weight that is negative or not finite.
    """
    w = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (n,):
        raise ValueError(f"weights have shape {w.shape}, there are {n} pairs")
    if not (np.isfinite(w) & (w >= 0)).all():
        row = int(np.argmin(np.isfinite(w) & (w >= 0)))
        raise ValueError(f"weight of pair {row} is {w[row]}: it must be 0 or more")
    return w


class Setting(NamedTuple):
    """Settings of `fit_coordinates`, to be passed on as `**setting._asdict()`."""

    rank: int
    tau: float
    ridge: float
    curvature: float


def choose_rank_and_shrinkage(
    preferred: ArrayLike,
    dispreferred: ArrayLike,
    users: Sequence[str],
    conversations: Sequence[str],
    *,
    ranks: Sequence[int] = (1, 2, 4, 8),
    taus: Sequence[float] = (0.0, 0.1, 0.3, 1.0),
    ridges: Sequence[float] = (1.0, 10.0),
    curvatures: Sequence[float] = (0.0,),
    folds: int = 5,
    seed: int = 0,
    weights: ArrayLike | None = None,
) -> tuple[Setting, pd.DataFrame]:
    """The setting with the smallest log-loss on conversations that were left out, by k-fold cross-validation.

        loss = -sum_k w_k ln P(y+_k > y-_k) / sum_k w_k,    in nats a pair; guessing gives ln 2 = 0.693

    Only TRAIN conversations go in; whole conversations are left out in turn. A tau of 0 is the population for
    everybody: where it wins, these pairs give no reason to tell users apart. A chosen loss at or above ln 2 says
    that the basis does not predict preference at all. The loss of the chosen setting is the best of many and so a
    little too good: report PPA on other conversations.

    Args:
        preferred, dispreferred: coordinates x of the two sides, `(n, at least max(ranks))`.
        users, conversations: whose pair each is and where it comes from, `(n,)`.
        ranks, taus, ridges, curvatures: what is tried, all combinations; see `fit_coordinates`.
        folds: number of parts.
        seed: of the random parts; the order of the rows does not matter.
        weights: see `fit_coordinates`; they count in the held-out loss too.

    Returns:
        The best setting; of equal losses that of the lowest rank, then the smallest tau, the largest ridge and the
        smallest curvature. And a table with one row a setting: rank, tau, ridge, curvature, loss, standard_error
        (clustered by user), chosen.

    Raises:
        ValueError: nothing to try, fewer conversations than folds, or what `fit_coordinates` refuses.

    Source: cross-validation by groups; CAA on PRISM does not say how its coordinates were regularised.
    """
    likes, dislikes = check_sides(preferred, dispreferred, len(users), max(ranks, default=None))
    w = check_weights(weights, len(users))
    fold = conversation_folds(conversations, folds, seed)
    who = np.asarray(users)
    settings = [Setting(*one) for one in sorted(product(ranks, taus, [-r for r in ridges], curvatures))]
    settings = [one._replace(ridge=-one.ridge) for one in settings]
    if not settings:
        raise ValueError("no setting to try: ranks, taus, ridges and curvatures each need a value")
    rows = []
    with progress_bar(len(settings), what="rank and shrinkage", unit="setting") as bar:
        for setting in settings:
            losses = _held_out_losses(likes, dislikes, who, fold, w, setting)
            rows.append({**setting._asdict(), **_mean_and_error(losses, w, who)})
            bar.update()
    table = pd.DataFrame(rows)
    best = int(table["loss"].round(10).argmin())
    return settings[best], table.assign(chosen=table.index == best)


def conversation_folds(conversations: Sequence[str], folds: int, seed: int) -> NDArray:
    """Part 0..folds-1 of each row, whole conversations together, parts of equal size as near as can be.

    Raises:
        ValueError: fewer than two parts, or fewer conversations than parts.
    """
    order = hash_order(conversations, "folds", seed)
    if not 2 <= folds <= len(order):
        raise ValueError(f"{folds} folds of {len(order)} conversations: need two folds and one for each")
    place = {one: index % folds for index, one in enumerate(order)}
    return np.array([place[str(one)] for one in conversations])


def split_half_coordinates(
    preferred: ArrayLike,
    dispreferred: ArrayLike,
    users: Sequence[str],
    conversations: Sequence[str],
    *,
    setting: Setting,
    weights: ArrayLike | None = None,
    min_conversations: int = 4,
    splits: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """How alike a user's coordinates come out of two random halves of their conversations.

    Everybody's first halves make one fit, everybody's second halves another.

    Args:
        preferred, dispreferred, users, conversations: as `choose_rank_and_shrinkage`.
        setting: of both fits.
        weights: see `fit_coordinates`.
        min_conversations: users with fewer take part in the fits and get no row.
        splits: random splits whose cosines are averaged.
        seed: of the splits.

    Returns:
        One row a user: user_id, n_conversations, `cosine` (of theta_u; high where both halves are shrunk to the same
        population) and `own_cosine` (of theta_u - mu, what is the user's own; NaN where there is none, tau 0).

    Raises:
        ValueError: no user has so many conversations.
    """
    likes, dislikes = check_sides(preferred, dispreferred, len(users), setting.rank)
    w = check_weights(weights, len(users))
    who, where = np.asarray(users), np.asarray(conversations)
    counted = pd.Series(where).groupby(who).nunique()
    enough = counted[counted >= min_conversations]
    if enough.empty:
        raise ValueError(f"no user has {min_conversations} conversations, the most is {counted.max()}")
    cosines = []
    for split in range(splits):
        second = _second_half(who, where, seed, split)
        halves = [
            fit_coordinates(likes[half], dislikes[half], who[half], weights=w[half], **setting._asdict())
            for half in (~second, second)
        ]
        cosines.append(_cosines(halves, list(enough.index)))
    mean = np.mean(cosines, axis=0)
    rows = {"user_id": enough.index, "n_conversations": enough.to_numpy()}
    return pd.DataFrame({**rows, "cosine": mean[0], "own_cosine": mean[1]})


def _held_out_losses(
    likes: NDArray, dislikes: NDArray, users: NDArray, fold: NDArray, weights: NDArray, setting: Setting
) -> NDArray:
    losses = np.zeros(len(users))
    for part in np.unique(fold):
        out = fold == part
        fit = fit_coordinates(
            likes[~out], dislikes[~out], users[~out], weights=weights[~out], **setting._asdict()
        )
        margins = preference_margins(fit, likes[out], dislikes[out], users[out])
        losses[out] = np.logaddexp(0, -margins)
    return losses


def _mean_and_error(losses: NDArray, weights: NDArray, users: NDArray) -> dict[str, float]:
    total = weights.sum()
    mean = weights @ losses / total
    by_user = pd.Series(weights * (losses - mean)).groupby(users).sum().to_numpy()
    n = len(by_user)
    error = np.sqrt(n / (n - 1) * (by_user**2).sum()) / total if n > 1 else np.nan
    return {"loss": float(mean), "standard_error": float(error)}


def _second_half(users: NDArray, conversations: NDArray, seed: int, split: int) -> NDArray:
    """Every other conversation of each user, in a random order; which half gets the odd one is random too."""
    later: set[tuple[str, str]] = set()
    for user, own in pd.Series(conversations).groupby(users):
        order = hash_order(own, "halves", seed, split, user)
        first = int(hash_order(["0", "1"], "odd", seed, split, user)[0])
        later |= {(str(user), one) for one in order[first::2]}
    return np.array([(str(u), str(c)) in later for u, c in zip(users, conversations, strict=True)])


def _cosines(halves: list[UserCoordinates], users: list[str]) -> tuple[NDArray, NDArray]:
    whole = [half.theta(users) for half in halves]
    own = [theta - half.population for theta, half in zip(whole, halves, strict=True)]
    return _row_cosine(*whole), _row_cosine(*own)


def _row_cosine(a: NDArray, b: NDArray) -> NDArray:
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(1), length, out=np.full(len(a), np.nan), where=length > 0)
