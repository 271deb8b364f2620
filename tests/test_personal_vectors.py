"""Category directions, dislike-weighted and other personal vectors and the shuffled user."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from steerlib.tables import ATTRIBUTE_COLUMNS
from steerlib.vectors import (
    category_differences,
    describe_composed,
    dislike_weighted,
    personal_vectors,
    rescaled,
    shuffled_users,
)
from steerlib.vectors.coordinates import Basis, UserCoordinates

SIX = list(ATTRIBUTE_COLUMNS)
RESIDUALS = {4: torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [10.0, 3.0]])}
UNIT = {category: {4: torch.eye(6)[row]} for row, category in enumerate(SIX)}


def dislike_weights(sensitivities, **settings):
    """The weights, read off from vectors of categories that are axes."""
    return pd.DataFrame(
        {u: -v[4].numpy() for u, v in dislike_weighted(UNIT, sensitivities, **settings).items()}
    ).T


def scored(values):
    return pd.DataFrame({category: values for category in SIX}, dtype=float)


def sensitive(*rows):
    return pd.DataFrame(rows, index=[f"u{i}" for i in range(len(rows))], columns=SIX, dtype=float)


def test_the_direction_of_a_category_by_hand_points_towards_toxicity():
    scores = scored([0.1, 0.2, 0.3, 0.4]).assign(threat=[0.4, 0.3, 0.2, 0.1])
    quarter = category_differences(RESIDUALS, scores)
    assert_close(quarter["insult"][4], torch.tensor([10.0, 2.0]))
    assert_close(quarter["threat"][4], torch.tensor([-10.0, -2.0]))
    assert list(quarter) == SIX
    # Answers that tie with the last one of a side belong to it.
    tied = category_differences(RESIDUALS, scored([0.1, 0.1, 0.2, 0.4]))["insult"]
    assert_close(tied[4], torch.tensor([10.0 - 0.5, 3.0 - 1.0]))


@pytest.mark.parametrize("values", [[0.2] * 4, [0.1, 0.2, 0.3], [0.1, np.nan, 0.3, 0.4]])
def test_scores_without_two_sides_are_refused(values):
    with pytest.raises(ValueError, match="toxicity: "):
        category_differences(RESIDUALS, scored(values))


def test_dislike_weights_by_hand_and_the_populations_for_who_dislikes_nothing():
    rows = [0.1, 0.1, 0.2, 0, 0, 0], [0.3, -0.5, 0.1, -0.1, 0, 0], [-0.1, -0.1, 0, 0, 0, 0]
    weights = dislike_weights(sensitive(*rows))
    assert_allclose(weights.loc["u0"], [0.25, 0.25, 0.5, 0, 0, 0])
    assert_allclose(weights.loc["u1"], [0.75, 0, 0.25, 0, 0, 0])  # the negative ones count nothing
    assert_allclose(weights.loc["u2"], [0.5, 0, 0.5, 0, 0, 0])  # the population's, of 0.1, -1/6, 0.1, ...
    nobody = dislike_weights(sensitive([-0.1] * 6, [0.0] * 6))
    assert_allclose(nobody, np.full((2, 6), 1 / 6))


def test_relative_weights_by_hand_are_of_what_a_user_dislikes_more_than_others():
    s = sensitive([0.9, 0.1, 0.2, 0, 0, 0], [0.7, 0.3, 0.4, 0, 0, 0])
    weights = dislike_weights(s, relative=True)  # standardised: +1 and -1 wherever the two differ
    assert_allclose(weights, [[1, 0, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0, 0]], atol=1e-12)


def test_personal_vectors_are_displacements_of_theta_and_the_populations_for_strangers():
    basis = Basis({4: 10.0}, np.eye(2), np.zeros(2), np.array([1.0, 0.5]))
    theta = pd.DataFrame([[1.0, 2.0]], index=["u"])
    vectors = personal_vectors(UserCoordinates(np.array([0.0, -2.0]), theta, 0.0), basis, ["u", "stranger"])
    assert_close(vectors["u"][4], torch.tensor([10.0, 10.0]))
    assert_close(vectors["stranger"][4], torch.tensor([0.0, -10.0]))


def test_a_rescaled_vector_has_the_populations_norm_and_its_own_direction():
    like = {1: torch.tensor([3.0, 4.0]), 2: torch.tensor([0.0, 1.0])}
    vectors = rescaled({1: torch.tensor([0.0, 0.1]), 2: torch.tensor([-7.0, 0.0])}, like)
    assert_close(vectors[1], torch.tensor([0.0, 5.0]))
    assert_close(vectors[2], torch.tensor([-1.0, 0.0]))
    with pytest.raises(ValueError, match="layer 1"):
        rescaled({1: torch.zeros(2)}, like)


def test_composed_vectors_are_described_by_hand():
    population = {1: torch.tensor([2.0, 0.0]), 2: torch.tensor([0.0, 4.0])}
    personal = {
        "same": population,
        "turned": {1: torch.tensor([0.0, 1.0]), 2: torch.tensor([0.0, -4.0])},
        "none": {1: torch.zeros(2), 2: torch.zeros(2)},
    }
    table = describe_composed(personal, population).set_index("user_id")
    assert_allclose(table["norm_over_population"], [1.0, 0.75, 0.0])
    assert_allclose(table["cosine_with_population"], [1.0, -0.5, np.nan])
    # At layers 1 and 2 "same" and "turned" have cosines 0 and -1; a vector of 0 adds nothing to either.
    assert_allclose(table["cosine_with_others"], [-0.25, -0.25, 0.0])
    assert describe_composed({"one": population}, population)["cosine_with_others"].isna().all()


def test_the_shuffled_user_has_another_primary_category():
    primaries = pd.Series({f"u{i}": SIX[i % 3] for i in range(12)})
    for seed in range(5):
        other = shuffled_users(primaries, seed=seed)
        assert (primaries[other].to_numpy() != primaries.to_numpy()).all()
        assert other.equals(shuffled_users(primaries.sample(frac=1, random_state=1), seed=seed)[other.index])
    assert not shuffled_users(primaries, seed=0).equals(shuffled_users(primaries, seed=1))
    with pytest.raises(ValueError, match="insult"):
        shuffled_users(pd.Series({"a": "insult", "b": "insult"}))
