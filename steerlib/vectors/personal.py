"""Personal steering vectors: made from coordinates, rescaled, compared with the population's, given to another user."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from steerlib.profiles.sources import hash_order
from steerlib.residual import Vectors
from steerlib.vectors.coordinates import Basis, UserCoordinates
from steerlib.vectors.directions import LayerVectors, cosine


def personal_vectors(fit: UserCoordinates, basis: Basis, users: Sequence[str]) -> dict[str, LayerVectors]:
    """Steering vectors of users: the way their utility rises fastest from the mean answer.

        v_u = displacement of theta_u    (Bradley-Terry),    of lambda (p_u - x_mean) = theta_u    (ideal point)

    The basis puts the mean training answer at x_mean = 0. An ideal point is not overshot by the model but by alpha: the
    direction is that at the mean answer, and stays the same wherever steering leads.

    Args:
        fit: coordinates in the basis.
        basis: the basis.
        users: who gets a vector; those without pairs get the population's.

    Returns:
        By user, vectors by layer, `(d_model,)` in activation units.
    """
    return {user: basis.vectors(theta) for user, theta in zip(users, fit.theta(users), strict=True)}


def rescaled(vectors: Vectors, like: Vectors) -> LayerVectors:
    """A composed vector with the population vector's norm, layer by layer, so that one alpha means one dose for both.

        v_l <- v_l ||like_l|| / ||v_l||

    A raw composed vector has a length of its own, shorter or longer than the population's: hence, it seems, the
    poster's alphas of 7.5-17.5 for them beside 0.3-0.6 for the population.

    Args:
        vectors: by layer, `(d_model,)`.
        like: the population vector, with at least those layers.

    Raises:
        ValueError: a layer that `like` lacks, or a vector of norm 0.
    """
    for layer, vector in vectors.items():
        if layer not in like:
            raise ValueError(f"layer {layer} has no vector to take the norm from, only {sorted(like)} have")
        if vector.norm() == 0:
            raise ValueError(f"layer {layer}: the vector is 0 and has no direction to rescale")
    return LayerVectors(
        (layer, vector * (like[layer].norm() / vector.norm())) for layer, vector in vectors.items()
    )


def describe_composed(
    personal: Mapping[str, Vectors], population: Vectors, *, stability: pd.DataFrame | None = None
) -> pd.DataFrame:
    """How long personal vectors are and how far they turn from the population's.

    Args:
        personal: vectors of each user, raw or rescaled.
        population: the population's vectors, of the same layers.
        stability: what `split_half_coordinates` returned, where vectors come from coordinates.

    Returns:
        One row a user: user_id, `norm` (mean over layers, activation units), `relative_norm` (mean over layers of the
        norm over the population's), `cosine_with_population` (mean over layers; NaN for a vector of 0),
        `cosine_with_others` (mean over layers and other users; near 1 everybody is steered alike, and another user's
        vector is no placebo), and the columns of `stability`, NaN for users with too few conversations.

    Raises:
        ValueError: a user's layers are not the population's.
    """
    rows = []
    for user, vectors in personal.items():
        if set(vectors) != set(population):
            raise ValueError(
                f"user {user!r} has vectors of layers {sorted(vectors)}, the population of {sorted(population)}"
            )
        norms = {layer: float(vector.double().norm()) for layer, vector in vectors.items()}
        relative = [norm / float(population[layer].double().norm()) for layer, norm in norms.items()]
        turned = [cosine(vectors[layer], population[layer]) if norms[layer] else np.nan for layer in norms]
        rows.append((user, np.mean(list(norms.values())), np.mean(relative), np.mean(turned)))
    columns = ["user_id", "norm", "relative_norm", "cosine_with_population"]
    table = pd.DataFrame(rows, columns=pd.Index(columns)).assign(cosine_with_others=_alikeness(personal))
    return table if stability is None else table.merge(stability, on="user_id", how="left")


def shuffled_users(primaries: pd.Series, *, seed: int) -> pd.Series:
    """For each user another user with ANOTHER primary category, drawn at random: whose vector is the placebo.

    Args:
        primaries: primary category by user.
        seed: of the draw; the order of the users does not matter. With the seed of `profiles.shuffled_categories` the
            other user's category is the one that it draws.

    Returns:
        The other user, by user, named "shuffled_user".

    Raises:
        ValueError: no users, a user without a category, or all users have one category.
    """
    own = {str(user): category for user, category in primaries.items()}
    if primaries.isna().any():
        raise ValueError(f"user {primaries.index[int(primaries.isna().argmax())]!r} has no primary category")
    if len(set(own.values())) < 2:
        found = next(iter(own.values()), "absent: there are no users")
        raise ValueError(f"every user's primary category is {found}: nobody's vector can be the placebo")
    order = hash_order(own, "shuffled", seed)
    other = {}
    for place, user in enumerate(order):
        following = order[place + 1 :] + order[:place]
        other[user] = next(one for one in following if own[one] != own[user])
    return pd.Series([other[user] for user in own], index=primaries.index, name="shuffled_user")


def _alikeness(personal: Mapping[str, Vectors]) -> NDArray:
    """Mean cosine of each user's vectors with the other users', averaged over layers; NaN for one user."""
    if len(personal) < 2:
        return np.full(len(personal), np.nan)
    by_layer = []
    for layer in next(iter(personal.values())):
        rows = torch.stack([vectors[layer].double() for vectors in personal.values()])
        unit = torch.nn.functional.normalize(rows, dim=-1)
        # The sum over others is the sum over all less the user's own square.
        by_layer.append((unit @ unit.sum(0) - (unit**2).sum(-1)).numpy() / (len(personal) - 1))
    return np.mean(by_layer, axis=0)
