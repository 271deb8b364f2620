"""Where each user stands: an orthonormal basis of the residual stream and utilities in its coordinates.

n pairs, r axes, U users. Utilities are in logits; coordinates x are whitened, so that one unit of theta is one logit
per standard deviation of real answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from steerlib.profiles.sources import hash_order
from steerlib.tables import progress_bar
from steerlib.vectors.steering_vector import SteeringVector

RIDGES = (10.0, 1.0)
FOLDS = 5


@dataclass(frozen=True)
class Basis:
    """Orthonormal axes Q with the scales that lead from residuals to whitened coordinates and back.

        phi(y) = [h_l(y) / n_l for each layer],    x(y) = Q^T (phi(y) - centre) / spread

    Residual norms grow with depth, so each layer is divided by its own; the last one would otherwise be the basis.

    Attributes:
        norms: n_l, the mean norm of the training answers' residuals, by layer.
        axes: Q, `(n_features, rank)`, Q^T Q = I; the first axis carries most of the pair differences.
        centre, spread: mean `(n_features,)` of the training answers' features, and standard deviation `(rank,)` along
            each axis (divided by n).
    """

    norms: Mapping[int, float]
    axes: NDArray
    centre: NDArray
    spread: NDArray

    @property
    def rank(self) -> int:
        return len(self.spread)

    def coordinates(self, residuals: Mapping[int, Tensor]) -> NDArray:
        """Whitened coordinates x, `(n, rank)`, of residuals by layer, `(n, d_model)`."""
        return (_features(residuals, self.norms) - self.centre) @ self.axes / self.spread

    def vectors(self, theta: ArrayLike) -> SteeringVector:
        """The displacement of the residual stream that moves an answer's first r coordinates by theta, `(r,)`.

            v_l = n_l Q_l (spread * theta),    x(h + v) = x(h) + theta

        Source: CAA on PRISM gives no way back to activations; this one is ours. For a utility theta . x it is the
        steepest ascent when steps are measured in standard deviations of real answers; the plain gradient in
        activations, Q (theta / spread), would push hardest along the axes on which answers hardly differ.
        """
        move = np.asarray(theta, dtype=np.float64)
        features = self.axes[:, : len(move)] @ (self.spread[: len(move)] * move)
        parts = np.split(features, len(self.norms))
        return SteeringVector(
            (layer, torch.from_numpy(part * norm).float())
            for (layer, norm), part in zip(self.norms.items(), parts, strict=True)
        )


def difference_basis(
    preferred: Mapping[int, Tensor], dispreferred: Mapping[int, Tensor], *, rank: int
) -> Basis:
    """SVD-orthogonalised basis of the differences between preferred and dispreferred answers.

        d_k = phi(y+_k) - phi(y-_k),    D = U S W^T,    Q = first `rank` columns of W

    Swapping the two answers of a pair changes only the signs of the axes; each points the way of the mean difference.

    Residuals are those of the TRAIN pairs, by layer, `(n, d_model)`. A ValueError says that the pairs span fewer axes
    than `rank`.

    Source: CAA on PRISM names the "SVD-orthogonalised basis" without equations; uncentred pair differences and the
    division by the layers' norms are ours.
    """
    both = {layer: torch.cat([likes, dispreferred[layer]]) for layer, likes in preferred.items()}
    norms = {layer: float(answers.double().norm(dim=-1).mean()) for layer, answers in both.items()}
    likes, dislikes = (_features(side, norms) for side in (preferred, dispreferred))
    differences = likes - dislikes
    _, singular, right = np.linalg.svd(differences, full_matrices=False)
    found = int((singular > singular[0] * max(differences.shape) * np.finfo(np.float64).eps).sum())
    if not 1 <= rank <= found:
        raise ValueError(f"rank {rank} is not in 1..{found}: the {len(differences)} pairs span {found} axes")
    axes = right[:rank].T
    axes = axes * np.where(differences.mean(0) @ axes < 0, -1.0, 1.0)
    answers = np.concatenate([likes, dislikes])
    return Basis(norms, axes, answers.mean(0), (answers @ axes).std(axis=0))


def _features(residuals: Mapping[int, Tensor], norms: Mapping[int, float]) -> NDArray:
    parts = [residuals[layer].double().cpu().numpy() / norm for layer, norm in norms.items()]
    return np.concatenate(parts, axis=-1)


@dataclass(frozen=True)
class UserCoordinates:
    """What `fit_coordinates` found.

    Attributes:
        population: mu, `(r,)`, of a user of whom nothing is known.
        users: `(U, r)` theta_u of each user with pairs, by user_id. The ideal point of a user is theta_u / lambda.
        curvature: lambda; 0 for Bradley-Terry.
    """

    population: NDArray
    users: pd.DataFrame
    curvature: float

    def theta(self, users: Sequence[str]) -> NDArray:
        """theta_u of users, `(n, r)`; mu for those without pairs."""
        found = self.users.index.get_indexer(pd.Index(users))
        return np.where((found >= 0)[:, None], self.users.to_numpy()[found], self.population)

    def margins(
        self, preferred: ArrayLike, dispreferred: ArrayLike, users: Sequence[str] | None = None
    ) -> NDArray:
        """Utility of preferred minus dispreferred answers, in logits, `(n,)`; that of the population without users."""
        likes, dislikes = (_first(side, len(self.population)) for side in (preferred, dispreferred))
        theta = self.population if users is None else self.theta(users)
        further = (likes**2).sum(1) - (dislikes**2).sum(1)  # how much further from 0
        return ((likes - dislikes) * theta).sum(1) - self.curvature / 2 * further


def fit_coordinates(
    preferred: ArrayLike,
    dispreferred: ArrayLike,
    users: Sequence[str],
    *,
    tau: float,
    ridge: float = 1.0,
    curvature: float = 0.0,
    rank: int | None = None,
) -> UserCoordinates:
    """Bradley-Terry (curvature 0) or ideal-point coordinates of every user, shrunk towards the population.

        P(i > j | u) = sigmoid(theta_u . (x_i - x_j))                                               Bradley-Terry
        utility_u(x) = -lambda/2 |x - p_u|^2,                                                       ideal point
        logit        = lambda p_u . (x_i - x_j) - lambda/2 (|x_i|^2 - |x_j|^2),    theta_u = lambda p_u
        theta_u      = mu + delta_u
        minimised: -sum_k ln P(y+_k > y-_k) + |delta|^2 / (2 tau^2) + ridge/2 |mu|^2

    The ideal point is fitted as theta_u, in which the logit is linear with a fixed offset: both problems are convex
    with one minimum, and lambda -> 0 with theta fixed is Bradley-Terry.

    Args:
        preferred, dispreferred: coordinates x of the two sides of the pairs, `(n, at least r)`, of spread about 1.
        tau: standard deviation of users about the population, logits per unit of x; 0 gives everybody mu.
        ridge, curvature: inverse variance of mu about 0; lambda, not negative.
        rank: how many of the first coordinates are used; None: all.

    Source: Bradley and Terry (1952); ideal points after Coombs (1950), for language models Chen et al., PAL
    (arXiv 2406.08469), who use distances and a simplex of prototypes where we use squared distances and shrinkage.
    """
    from scipy.optimize import minimize  # late: it is slow to import

    likes, dislikes = (_first(side, rank) for side in (preferred, dispreferred))
    codes, names = pd.factorize(np.asarray(users), sort=True)
    differences, r = likes - dislikes, likes.shape[1]
    offset = -curvature / 2 * ((likes**2).sum(1) - (dislikes**2).sum(1))

    def loss(parameters: NDArray) -> tuple[float, NDArray]:
        # mu, then delta_u / tau of each user: in these a small tau is no stiffer than a large one.
        mu, scaled = parameters[:r], parameters[r:].reshape(-1, r)
        logit = (differences * (mu + tau * scaled)[codes]).sum(1) + offset
        value = np.logaddexp(0, -logit).sum() + ridge / 2 * mu @ mu + (scaled**2).sum() / 2
        slope = -np.exp(-np.logaddexp(0, logit))
        by_user = np.zeros_like(scaled)
        np.add.at(by_user, codes, slope[:, None] * differences)
        return float(value), np.concatenate([by_user.sum(0) + ridge * mu, (tau * by_user + scaled).ravel()])

    settings = {"maxiter": 5000, "maxfun": 10000, "ftol": 1e-14, "gtol": 1e-8}
    found = minimize(loss, np.zeros(r * (1 + len(names))), jac=True, method="L-BFGS-B", options=settings)
    mu, scaled = found.x[:r], found.x[r:].reshape(-1, r)
    columns = pd.Index([f"axis_{axis + 1}" for axis in range(r)])
    index = pd.Index([str(name) for name in names], name="user_id")
    return UserCoordinates(mu, pd.DataFrame(mu + tau * scaled, index=index, columns=columns), curvature)


def _first(side: ArrayLike, rank: int | None) -> NDArray:
    """The first coordinates of each answer, `(n, rank)`, float64."""
    return np.asarray(side, dtype=np.float64)[:, :rank]


class Setting(NamedTuple):
    """Settings of `fit_coordinates`."""

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
    curvatures: Sequence[float] = (0.0,),
    seed: int = 0,
) -> tuple[Setting, pd.DataFrame]:
    """The setting with the smallest log-loss on conversations left out, by cross-validation in at most five folds.

        loss = -mean_k ln P(y+_k > y-_k),    in nats per pair; guessing gives ln 2 = 0.693

    Whole TRAIN conversations are left out in turn; all combinations are tried, each with a ridge of 1 and of 10. A
    chosen tau of 0 is the population for everybody: these pairs give no reason to tell users apart. A chosen loss at or
    above ln 2: the basis does not predict preference at all. It is the best of many and so a little too good.

    Returns the best setting (of equal losses that of the lowest rank, then the smallest tau, the largest ridge and the
    smallest curvature) and a table with one row per setting, standard_error clustered by user. A ValueError says that
    there are fewer than two conversations.

    Source: cross-validation by groups; CAA on PRISM does not say how its coordinates were regularised.
    """
    settings = [Setting(*one) for one in product(sorted(ranks), sorted(taus), RIDGES, sorted(curvatures))]
    likes, dislikes, who = np.asarray(preferred), np.asarray(dispreferred), np.asarray(users)
    order = hash_order(conversations, "folds", seed)
    if len(order) < 2:
        raise ValueError(f"cross-validation needs two conversations, not {len(order)}")
    place = {conversation: index % FOLDS for index, conversation in enumerate(order)}
    fold = np.array([place[str(one)] for one in conversations])
    rows = []
    with progress_bar(len(settings), what="rank and shrinkage", unit="setting") as bar:
        for setting in settings:
            losses = np.zeros(len(who))
            for out in (fold == part for part in np.unique(fold)):
                fit = fit_coordinates(likes[~out], dislikes[~out], who[~out], **setting._asdict())
                losses[out] = np.logaddexp(0, -fit.margins(likes[out], dislikes[out], who[out]))
            by_user = pd.Series(losses - losses.mean()).groupby(who).sum().to_numpy()
            n = len(by_user)
            error = np.sqrt(n / (n - 1) * (by_user**2).sum()) / len(who) if n > 1 else np.nan
            rows.append({**setting._asdict(), "loss": losses.mean(), "standard_error": error})
            bar.update()
    table = pd.DataFrame(rows)
    best = int(table["loss"].round(10).argmin())
    return settings[best], table.assign(chosen=table.index == best)
