"""Vectors of single users: mixed from categories or coordinates, rescaled, described, and given to another user."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from steerlib.residual import Vectors
from steerlib.tables import ATTRIBUTE_COLUMNS
from steerlib.vectors.coordinates import Basis, UserCoordinates
from steerlib.vectors.steering_vector import SteeringVector, mean_difference

SIX = list(ATTRIBUTE_COLUMNS)


def category_differences(residuals: Mapping[int, Tensor], scores: pd.DataFrame) -> dict[str, SteeringVector]:
    """Toxicity direction of each category: mean residual of the most toxic answers minus that of the least toxic.

        v_tox_{c,l} = E[h_l(y) : P_c(y) in the top quarter] - E[h_l(y) : P_c(y) in the bottom quarter]

    They point TOWARDS toxicity. Answers that tie with the last one of a side belong to it too, so the order of the rows
    does not matter and a side may be larger than a quarter.

    Residuals are pooled, by layer `(n, d_model)`; scores `(n, six)` in [0, 1] are of the same answers in that order.
    A ValueError names a category whose two sides would share answers, as they do among fewer than four.

    Source: CAA on PRISM gives no equations for its dislike-weighted vector; this contrast is ours.
    """
    side, directions = len(scores) // 4, {}
    for category in SIX:
        values = scores[category].to_numpy(dtype=np.float64)
        ordered = np.sort(values)
        low, high = ordered[side - 1], ordered[-side]
        if not low < high:
            raise ValueError(
                f"{category}: the scores of the lowest {side} and the highest {side} of {len(values)} answers meet at"
                f" {high:g}: use more, or more varied, answers"
            )
        top, bottom = torch.from_numpy(values >= high), torch.from_numpy(values <= low)
        directions[category] = SteeringVector(
            (layer, mean_difference(rows[top], rows[bottom])) for layer, rows in residuals.items()
        )
    return directions


def dislike_weighted(
    categories: Mapping[str, Vectors], sensitivities: pd.DataFrame, *, relative: bool = False
) -> dict[str, SteeringVector]:
    """Dislike-weighted vectors by user: away from the categories, each by how much the user dislikes it.

        v_{u,l} = -sum_c w_uc v_tox_{c,l},    w_uc = max(s_uc, 0) / sum_c' max(s_uc', 0)
        s_uc <- (s_uc - mean_u s_uc) / sd_u s_uc                 (relative)

    `categories` point towards toxicity, hence the minus. As the poster words it, weights hardly differ between users:
    all dislike the frequent categories. Relative weights are of what a user dislikes more than others do. A user
    without any positive sensitivity has the population's weights (of the mean sensitivities), and these are equal where
    no mean is positive.

    Sensitivities are `(users, six)` of any estimator; a category in which users do not differ has a relative one of 0.

    Source: CAA on PRISM, "dislike-weighted aggregate", given there in words only.
    """
    s = sensitivities[SIX].astype(float)
    if relative:
        spread = s.std(ddof=0)
        s = (s - s.mean()) / spread.where(spread > 0, 1.0)
    mean, positive = s.mean().clip(lower=0), s.clip(lower=0)
    population = mean / mean.sum() if mean.sum() > 0 else pd.Series(1 / len(SIX), index=SIX)
    total = positive.sum(axis=1)
    weights = positive.div(total.where(total > 0), axis=0).fillna(population)
    away = torch.from_numpy(-weights.to_numpy())
    mixed = {
        layer: (away @ torch.stack([categories[category][layer].double() for category in SIX])).float()
        for layer in categories[SIX[0]]
    }
    return {
        str(user): SteeringVector((layer, rows[row]) for layer, rows in mixed.items())
        for row, user in enumerate(weights.index)
    }


def personal_vectors(fit: UserCoordinates, basis: Basis, users: Sequence[str]) -> dict[str, SteeringVector]:
    """Vectors by user: the way the user's utility rises fastest from the mean answer.

        v_u = displacement of theta_u    (Bradley-Terry),    of lambda (p_u - x_mean) = theta_u    (ideal point)

    The direction is that at the mean answer, x_mean = 0, however far alpha leads, so an ideal point can be overshot.
    Users without pairs get the population's.
    """
    return {user: basis.vectors(theta) for user, theta in zip(users, fit.theta(users), strict=True)}


def rescaled(vectors: Vectors, like: Vectors) -> SteeringVector:
    """A composed vector with the population vector's norm, so that one alpha adds the same norm for both.

        v_l <- v_l ||like_l|| / ||v_l||

    The norm of a raw one depends on how it was composed: hence, it seems, the poster's alphas of 7.5-17.5 for them
    beside 0.3-0.6 for the population. A ValueError names a layer where the vector is 0.
    """
    for layer, vector in vectors.items():
        if not vector.any():
            raise ValueError(f"layer {layer}: a vector of 0 has no direction to rescale")
    return SteeringVector((la, vector * (like[la].norm() / vector.norm())) for la, vector in vectors.items())


def describe_composed(personal: Mapping[str, Vectors], population: Vectors) -> pd.DataFrame:
    """How long composed vectors are and how far they turn from the population's.

    One row per user (or category), each column a mean over layers: `user_id`, `norm_over_population`,
    `cosine_with_population` (NaN for a vector of 0), `cosine_with_others` (over the other users; near 1 everybody is
    steered alike, and a shuffled profile changes little).
    """
    by_layer, others = [], len(personal) - 1
    for layer, like in population.items():
        own, towards = torch.stack([v[layer] for v in personal.values()]).double(), like.double()
        norm, unit = own.norm(dim=-1), torch.nn.functional.normalize(own, dim=-1)
        turned = torch.where(norm > 0, unit @ (towards / towards.norm()), torch.nan)
        # The sum over the others is the sum over all minus the user's own square.
        with_others = (unit @ unit.sum(0) - (unit**2).sum(-1)) / (others or torch.nan)
        by_layer.append(torch.stack([norm / towards.norm(), turned, with_others], dim=1))
    columns = pd.Index(["norm_over_population", "cosine_with_population", "cosine_with_others"])
    means = torch.stack(by_layer).mean(0).numpy()
    return pd.DataFrame(means, columns=columns, index=pd.Index(personal, name="user_id")).reset_index()
