"""Users' coordinates: Bradley-Terry, ideal point, shrinkage; every simulation here is synthetic."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.optimize import check_grad
from scipy.special import expit

from steerlib.vectors import (
    Setting,
    choose_rank_and_shrinkage,
    coordinate_margins,
    difference_basis,
    fit_coordinates,
    preference_margins,
    split_half_coordinates,
)
from steerlib.vectors.coordinates import comparisons, conversation_folds, penalised_loss

FREE = {"tau": 0.0, "ridge": 1e-9}


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


def test_three_wins_to_one_are_the_logarithm_of_three():
    fit = fit_coordinates([[1.0], [1.0], [1.0], [0.0]], [[0.0], [0.0], [0.0], [1.0]], ["u"] * 4, **FREE)
    assert_allclose(fit.population, [np.log(3)], rtol=1e-6)


def test_a_tie_of_half_weight_counts_half_and_one_of_no_weight_not_at_all():
    pairs = [[1.0], [1.0], [0.0]], [[0.0], [0.0], [1.0]], ["u"] * 3
    fit = fit_coordinates(*pairs, weights=[1.0, 1.0, 0.5], **FREE)
    assert_allclose(fit.population, [np.log(4)], rtol=1e-6)  # 2 wins to a half
    assert_allclose(
        fit_coordinates(*pairs, tau=1.0, weights=[1, 1, 0]).population,
        fit_coordinates(*(side[:2] for side in pairs), tau=1.0).population,
    )


def test_an_ideal_point_between_two_answers_by_hand():
    # 0 beats 2 three times to one: p (0 - 2) - (0 - 4) / 2 = ln 3, so p = 1 - ln 3 / 2.
    pairs = [[0.0], [0.0], [0.0], [2.0]], [[2.0], [2.0], [2.0], [0.0]], ["u"] * 4
    fit = fit_coordinates(*pairs, curvature=1.0, **FREE)
    assert_allclose(fit.ideal_points().loc["u"], [1 - np.log(3) / 2], rtol=1e-6)
    # The same choices with a metric of 2 say that the point lies nearer the middle.
    stronger = fit_coordinates(*pairs, curvature=2.0, **FREE)
    assert_allclose(stronger.ideal_points().loc["u"], [1 - np.log(3) / 4], rtol=1e-6)


def test_two_users_who_disagree_leave_the_population_at_zero_by_hand():
    # d of one user minimises ln(1 + exp(-d)) + d^2 / (2 tau^2): d = tau^2 sigmoid(-d).
    fit = fit_coordinates([[1.0], [0.0]], [[0.0], [1.0]], ["a", "b"], tau=2.0)
    d = fit.users.loc["a", "axis_1"]
    assert_allclose(fit.population, [0.0], atol=1e-7)
    assert_allclose(fit.users["axis_1"], [d, -d], atol=1e-6)
    assert_allclose(d, 4 * expit(-d), rtol=1e-6)


@pytest.mark.parametrize("curvature", [0.0, 0.7])
def test_the_gradient_is_that_of_finite_differences(curvature):
    a, b, users, _, _ = synthetic(users=5, pairs=4, spread=1.0)
    weights = np.linspace(0.5, 1.0, 20)
    pairs, names = comparisons(a, b, np.array(users), weights, curvature)
    point = np.random.default_rng(1).normal(size=3 * (1 + len(names)))
    value, gradient = (lambda p, i=i: penalised_loss(p, pairs, 0.8, 2.0)[i] for i in (0, 1))
    assert check_grad(value, gradient, point) < 1e-5


def test_the_fit_is_a_stationary_point():
    a, b, users, _, _ = synthetic(spread=1.0)
    fit = fit_coordinates(a, b, users, tau=0.5, ridge=2.0)
    slope = expit(-preference_margins(fit, a, b, users))[:, None] * (a - b)
    by_user = pd.DataFrame(slope).groupby(users).sum().to_numpy()
    own = fit.users.to_numpy() - fit.population
    assert_allclose(by_user, own / 0.5**2, atol=1e-4)
    assert_allclose(by_user.sum(0), 2.0 * fit.population, atol=1e-4)


def test_huge_shrinkage_gives_everybody_the_population():
    a, b, users, _, _ = synthetic(spread=1.0)
    together = fit_coordinates(a, b, ["all"] * len(a), tau=0.0)
    for tau in (0.0, 1e-6):
        fit = fit_coordinates(a, b, users, tau=tau)
        assert_allclose(fit.users.to_numpy(), np.tile(together.population, (40, 1)), atol=1e-5)


def test_an_ideal_point_far_away_is_bradley_terry():
    a, b, users, _, _ = synthetic(spread=1.0)
    straight = fit_coordinates(a, b, users, tau=0.5)
    distant = [
        np.abs(fit_coordinates(a, b, users, tau=0.5, curvature=c).users - straight.users).to_numpy().max()
        for c in (1e-1, 1e-3, 1e-6)
    ]
    assert distant[0] > distant[1] > distant[2] and distant[2] < 1e-5
    far = fit_coordinates(a, b, users, tau=0.5, curvature=1e-6).ideal_points()
    assert np.linalg.norm(far, axis=1).min() > 1e4


def test_an_ideal_point_utility_is_the_negative_squared_distance():
    a, b, users, _, _ = synthetic(spread=1.0)
    fit = fit_coordinates(a, b, users, tau=0.5, curvature=0.8)
    p = fit.ideal_points().loc[users].to_numpy()
    expected = -0.4 * ((a - p) ** 2).sum(1) + 0.4 * ((b - p) ** 2).sum(1)
    assert_allclose(preference_margins(fit, a, b, users), expected, atol=1e-10)


@pytest.mark.parametrize("curvature", [0.0, 1.0])
def test_planted_coordinates_are_recovered_from_many_synthetic_pairs(curvature):
    a, b, users, _, theta = synthetic(users=20, pairs=200, spread=1.0, curvature=curvature)
    found = fit_coordinates(a, b, users, tau=1.0, curvature=curvature).users.to_numpy()
    assert np.corrcoef(found.ravel(), theta.ravel())[0, 1] > 0.95
    assert_allclose(found, theta, atol=1.0)


def test_the_order_of_the_rows_does_not_matter():
    a, b, users, _, _ = synthetic(spread=1.0)
    order = np.random.default_rng(2).permutation(len(a))
    one = fit_coordinates(a, b, users, tau=0.5)
    other = fit_coordinates(a[order], b[order], np.array(users)[order], tau=0.5)
    assert_allclose(one.users, other.users, atol=1e-6)
    assert list(one.users.index) == list(other.users.index) == sorted(set(users))


def test_a_user_without_pairs_counts_as_the_population():
    a, b, users, _, _ = synthetic(spread=1.0)
    fit = fit_coordinates(a, b, users, tau=0.5)
    assert_allclose(fit.theta(["nobody", "u03"]), [fit.population, fit.users.loc["u03"]])
    margins = preference_margins(fit, a[:2], b[:2], ["nobody", "u03"])
    assert_allclose(margins, [(a[0] - b[0]) @ fit.population, (a[1] - b[1]) @ fit.users.loc["u03"]])
    alike = preference_margins(fit, a, b, users, population=True)
    assert_allclose(alike, (a - b) @ fit.population)


def test_margins_of_residuals_are_those_of_their_coordinates():
    generator = torch.Generator().manual_seed(0)
    likes, dislikes = ({3: torch.randn(20, 4, generator=generator)} for _ in range(2))
    basis = difference_basis(likes, dislikes, rank=3)
    x, y = basis.coordinates(likes), basis.coordinates(dislikes)
    users = [f"u{i % 4}" for i in range(20)]
    fit = fit_coordinates(x, y, users, tau=1.0, rank=2, curvature=0.3)
    expected = preference_margins(fit, x, y, users)
    assert_allclose(coordinate_margins(fit, basis, likes, dislikes, users), expected)
    assert len(fit.population) == 2


def test_bradley_terry_has_no_ideal_points():
    with pytest.raises(ValueError, match="the curvature is 0"):
        fit_coordinates([[1.0]], [[0.0]], ["u"], tau=1.0).ideal_points()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tau": -1.0}, "tau -1.0 must be 0 or more"),
        ({"ridge": 0.0}, "ridge 0.0 above 0"),
        ({"curvature": -0.1}, "curvature -0.1"),
        ({"rank": 2}, r"rank 2 is not in 1\.\.1"),
        ({"weights": [1.0]}, r"weights have shape \(1,\), there are 2 pairs"),
        ({"weights": [1.0, -1.0]}, "weight of pair 1 is -1.0"),
        ({"weights": [0.0, 0.0]}, "no pairs"),
        ({"users": ["u"]}, r"\(2, 1\) and 1 users do not match"),
        ({"preferred": [[1.0], [np.nan]]}, "preferred: coordinate 1 of pair 1 is nan"),
    ],
)
def test_what_cannot_be_fitted_is_refused_by_name(change, words):
    pairs = {"preferred": [[1.0], [1.0]], "dispreferred": [[0.0], [0.0]], "users": ["u", "v"], "tau": 1.0}
    with pytest.raises(ValueError, match=words):
        fit_coordinates(**(pairs | change))


def test_synthetic_users_alike_are_given_the_population_and_unlike_ones_their_own():
    for spread, own in ((0.0, False), (1.5, True)):
        *pairs, _ = synthetic(spread=spread)
        setting, table = choose_rank_and_shrinkage(
            *pairs, ranks=(1, 3), taus=(0.0, 1.0), ridges=(1.0,), folds=3
        )
        assert (setting.tau > 0) == own
        assert len(table) == 4 and table["chosen"].sum() == 1
        chosen = table[table["chosen"]].iloc[0]
        assert chosen["loss"] == table["loss"].min() < np.log(2)
        assert setting == Setting(int(chosen["rank"]), chosen["tau"], chosen["ridge"], chosen["curvature"])


def test_a_synthetic_curvature_is_found_where_there_is_one():
    for curvature in (0.0, 1.0):
        *pairs, _ = synthetic(spread=0.0, curvature=curvature)
        grid = {"ranks": (3,), "taus": (0.0,), "ridges": (1.0,), "curvatures": (0.0, 1.0)}
        assert choose_rank_and_shrinkage(*pairs, **grid)[0].curvature == curvature


def test_a_held_out_conversation_has_no_part_in_its_own_loss():
    # One axis, two folds of one conversation each: each is judged by what the other says, and they disagree.
    setting, table = choose_rank_and_shrinkage(
        [[1.0], [0.0]],
        [[0.0], [1.0]],
        ["u", "u"],
        ["c", "d"],
        ranks=(1,),
        taus=(0.0,),
        ridges=(1.0,),
        folds=2,
    )
    theta = fit_coordinates([[1.0]], [[0.0]], ["u"], tau=0.0).population[0]
    assert_allclose(table["loss"], [np.log1p(np.exp(theta))])
    assert setting == Setting(1, 0.0, 1.0, 0.0)


def test_of_equal_losses_the_simplest_setting_is_chosen():
    zeros = np.zeros((6, 2))
    setting, table = choose_rank_and_shrinkage(
        zeros, zeros, ["u", "v"] * 3, list("abcdef"), ranks=(2, 1), folds=2
    )
    assert setting == Setting(1, 0.0, 10.0, 0.0)
    assert_allclose(table["loss"], np.log(2))


def test_conversations_stay_whole_in_folds_of_equal_size():
    where = [f"c{i // 3}" for i in range(30)]
    fold = conversation_folds(where, 5, seed=0)
    assert (pd.Series(fold).groupby(where).nunique() == 1).all()
    assert (np.bincount(fold) == 6).all()
    with pytest.raises(ValueError, match="11 folds of 10 conversations"):
        conversation_folds(where, 11, seed=0)


def test_split_halves_agree_on_planted_synthetic_tastes_and_not_on_absent_ones():
    agreement = {}
    for spread in (0.0, 2.0):
        *pairs, _ = synthetic(pairs=40, spread=spread)
        table = split_half_coordinates(*pairs, setting=Setting(3, 1.0, 1.0, 0.0), splits=3)
        assert list(table["n_conversations"]) == [40] * 40
        agreement[spread] = table[["cosine", "own_cosine"]].mean()
    assert agreement[2.0]["own_cosine"] > 0.7
    assert abs(agreement[0.0]["own_cosine"]) < 0.2 < agreement[0.0]["cosine"]


def test_users_with_few_conversations_get_no_split_half():
    a, b, users, conversations, _ = synthetic(users=2, pairs=6, spread=1.0)
    kept = slice(0, 9)  # u00 has six, u01 three
    pairs = a[kept], b[kept], users[kept], conversations[kept]
    table = split_half_coordinates(*pairs, setting=Setting(2, 0.0, 1.0, 0.0))
    assert list(table["user_id"]) == ["u00"] and table["own_cosine"].isna().all()
    with pytest.raises(ValueError, match="no user has 7 conversations, the most is 6"):
        split_half_coordinates(*pairs, setting=Setting(2, 0.0, 1.0, 0.0), min_conversations=7)
