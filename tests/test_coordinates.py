"""The orthogonal basis and users' coordinates in it; every simulation here is synthetic."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import expit
from torch.testing import assert_close

from steerlib.residual import add_to_residual, record_residual
from steerlib.vectors.coordinates import Setting, choose_rank_and_shrinkage, difference_basis, fit_coordinates

# One layer of width 2. The differences are (3, 0) and (0, 1); the four answers have mean norm (3 + 1 + 0 + 0) / 4 = 1.
BY_HAND = {5: torch.tensor([[3.0, 0.0], [0.0, 1.0]])}, {5: torch.zeros(2, 2)}


def random_pairs():
    generator = torch.Generator().manual_seed(0)
    sides = torch.randn(2, 2, 30, 4, generator=generator, dtype=torch.float64)
    sides[0] += 0.5
    return [dict(enumerate(side, start=1)) for side in sides]


def test_two_pairs_by_hand_give_axes_centre_and_spread():
    basis = difference_basis(*BY_HAND, rank=2)
    assert_close(basis.axes, np.eye(2))
    assert basis.norms == {5: 1.0}
    assert_close(basis.centre, np.array([0.75, 0.25]))
    # Along axis 1 the answers are 3, 0, 0, 0: variance 9/4 - 9/16 = 27/16; along axis 2 a ninth of that.
    assert_close(basis.spread, np.sqrt([27 / 16, 3 / 16]))
    root = np.sqrt(3)  # (3 - 3/4) / sqrt(27/16) and (0 - 3/4) / sqrt(27/16)
    assert_close(basis.coordinates(BY_HAND[0]), np.array([[root, -1 / root], [-1 / root, root]]))
    assert_close(basis.coordinates(BY_HAND[1]), np.full((2, 2), -1 / root))


def test_adding_the_vectors_of_theta_moves_the_coordinates_by_theta(tiny):
    contexts = [[5, 9, 20, 31, 7 + i, 40 - i] for i in range(6)]
    layout = {"layers": [2], "prompt_lengths": [3] * 6}
    h = record_residual(tiny, contexts, **layout)[2]
    basis = difference_basis({2: h[:3]}, {2: h[3:]}, rank=2)
    with add_to_residual(tiny.model, basis.vectors([1.0, -0.5]), alpha=2.0):
        steered = record_residual(tiny, contexts, **layout)
    moved = basis.coordinates(steered) - basis.coordinates({2: h})
    assert_close(moved, np.tile([2.0, -1.0], (6, 1)), atol=1e-4, rtol=0)


def test_every_axis_points_the_way_of_the_mean_preference_and_swapped_pairs_change_only_signs():
    preferred, dispreferred = random_pairs()
    for sides in ((preferred, dispreferred), (dispreferred, preferred)):
        basis = difference_basis(*sides, rank=4)
        likes, dislikes = (basis.coordinates(side).mean(0) for side in sides)
        assert (likes >= dislikes).all()
    swap = (torch.arange(30) % 3 == 0)[:, None]
    mixed = [
        {layer: torch.where(swap, b[layer], a[layer]) for layer in a}
        for a, b in ((preferred, dispreferred), (dispreferred, preferred))
    ]
    one, other = difference_basis(preferred, dispreferred, rank=3), difference_basis(*mixed, rank=3)
    assert_close(np.abs(one.axes.T @ other.axes), np.eye(3), atol=1e-9, rtol=0)


def test_a_layer_with_larger_residuals_weighs_no_more():
    sides = random_pairs()
    larger = [{1: side[1], 2: 100 * side[2]} for side in sides]
    one, other = difference_basis(*sides, rank=2), difference_basis(*larger, rank=2)
    assert_close(one.coordinates(sides[0]), other.coordinates(larger[0]))
    assert_close(100 * one.vectors([1.0, 1.0])[2], other.vectors([1.0, 1.0])[2])
    assert_close(one.vectors([1.0, 1.0])[1], other.vectors([1.0, 1.0])[1])


def test_a_basis_of_more_axes_than_the_pairs_span_is_refused():
    for sides, rank in ((BY_HAND, 3), ((BY_HAND[0], BY_HAND[0]), 1)):
        with pytest.raises(ValueError, match=f"rank {rank}"):
            difference_basis(*sides, rank=rank)


def synthetic(users=40, pairs=12, *, spread, curvature=0.0, rank=3, seed=0):
    """Pairs of users with planted coordinates: theta_u = mu + spread * noise."""
    rng = np.random.default_rng(seed)
    theta = np.array([1.0, -0.5, 0.0])[:rank] + spread * rng.normal(size=(users, rank))
    a, b = rng.normal(size=(2, users * pairs, rank))
    u = np.repeat(np.arange(users), pairs)
    logit = ((a - b) * theta[u]).sum(1) - curvature / 2 * ((a**2).sum(1) - (b**2).sum(1))
    won = (rng.random(len(u)) < expit(logit))[:, None]
    names = [f"u{one:02d}" for one in u]
    return np.where(won, a, b), np.where(won, b, a), names, [f"c{i}" for i in range(len(u))], theta


def test_an_ideal_point_between_two_answers_by_hand():
    # 0 beats 2 three times to one: lambda (p (0 - 2) - (0 - 4) / 2) = ln 3, so p = 1 - ln 3 / (2 lambda).
    pairs = [[0.0], [0.0], [0.0], [2.0]], [[2.0], [2.0], [2.0], [0.0]], ["u"] * 4
    fit = fit_coordinates(*pairs, curvature=2.0, tau=0.0, ridge=1e-9)
    assert_allclose(fit.users.loc["u"] / 2.0, [1 - np.log(3) / 4], rtol=1e-6)


@pytest.mark.parametrize("curvature", [0.0, 0.7])
def test_the_fit_is_a_stationary_point_whatever_the_order_of_rows(curvature):
    a, b, users, _, _ = synthetic(spread=1.0)
    fit = fit_coordinates(a, b, users, tau=0.5, ridge=2.0, curvature=curvature)
    slope = expit(-fit.margins(a, b, users))[:, None] * (a - b)
    by_user = pd.DataFrame(slope).groupby(users).sum().to_numpy()
    assert_allclose(by_user, (fit.users.to_numpy() - fit.population) / 0.5**2, atol=1e-4)
    assert_allclose(by_user.sum(0), 2.0 * fit.population, atol=1e-4)
    order = np.random.default_rng(2).permutation(len(a))
    mixed = a[order], b[order], np.array(users)[order]
    other = fit_coordinates(*mixed, tau=0.5, ridge=2.0, curvature=curvature)
    pd.testing.assert_frame_equal(fit.users, other.users, atol=1e-6)


@pytest.mark.parametrize(
    ("spread", "curvature", "grid"),
    [
        (0.0, 0.0, {"ranks": (1, 3), "taus": (0.0, 1.0)}),
        (1.5, 0.0, {"ranks": (1, 3), "taus": (0.0, 1.0)}),
        (0.0, 1.0, {"ranks": (3,), "taus": (0.0,), "curvatures": (0.0, 1.0)}),
    ],
)
def test_a_spread_or_a_curvature_of_synthetic_users_is_found_where_there_is_one(spread, curvature, grid):
    *pairs, _ = synthetic(spread=spread, curvature=curvature)
    setting, table = choose_rank_and_shrinkage(*pairs, **grid)
    assert (setting.tau > 0, setting.curvature) == (spread > 0, curvature)
    assert len(table) == 2 * np.prod([len(values) for values in grid.values()])
    chosen = table[table["chosen"]].iloc[0]
    assert table["chosen"].sum() == 1 and chosen["loss"] == table["loss"].min() < np.log(2)
    assert setting == Setting(int(chosen["rank"]), chosen["tau"], chosen["ridge"], chosen["curvature"])


def test_a_left_out_conversation_has_as_a_whole_no_part_in_its_own_loss():
    # Two conversations that disagree, each of one pair twice: each is judged by what the other says.
    sides = [[1.0], [1.0], [0.0], [0.0]], [[0.0], [0.0], [1.0], [1.0]]
    setting, table = choose_rank_and_shrinkage(*sides, ["u"] * 4, list("ccdd"), ranks=(1,), taus=(0.0,))
    twice = [[1.0]] * 2, [[0.0]] * 2, ["u"] * 2
    theta = [fit_coordinates(*twice, tau=0.0, ridge=ridge).population[0] for ridge in (10.0, 1.0)]
    assert_allclose(table["loss"], np.log1p(np.exp(theta)))
    assert setting == Setting(1, 0.0, 10.0, 0.0)
    with pytest.raises(ValueError, match="two conversations"):
        choose_rank_and_shrinkage(*sides, ["u"] * 4, ["c"] * 4, ranks=(1,))


def test_of_equal_losses_the_simplest_setting_is_chosen():
    zeros = np.zeros((6, 2))
    setting, table = choose_rank_and_shrinkage(zeros, zeros, ["u", "v"] * 3, list("abcdef"), ranks=(2, 1))
    assert setting == Setting(1, 0.0, 10.0, 0.0)
    assert_allclose(table["loss"], np.log(2))
