"""Profiles: sensitivities, percentiles, the primary category, and its split-half agreement."""

import numpy as np
import pandas as pd
import pytest

from steerlib.profiles.sensitivities import (
    ESTIMATORS,
    SIX,
    percentiles,
    primary_category,
    sensitivities,
    split_half_agreement,
)


def rated(rows: list[tuple[str, float, float, float]]) -> pd.DataFrame:
    """Ratings with two attributes that differ, toxicity and threat; the other four are 0."""
    table = pd.DataFrame(rows, columns=pd.Index(["user_id", "rating", "toxicity", "threat"]))
    return table.assign(**dict.fromkeys(set(SIX) - {"toxicity", "threat"}, 0.0))


# Ann: d = 0.8, 0.2; Bob: one rating.
BY_HAND = rated([("ann", 20, 0.5, 0.1), ("ann", 80, 0.1, 0.9), ("bob", 60, 0.3, 0.2)])


def test_the_sensitivity_is_the_dislike_weighted_mean_worked_by_hand() -> None:
    s = sensitivities(BY_HAND)
    # ann: (0.8 * 0.5 + 0.2 * 0.1) / 1.0 = 0.42 and (0.8 * 0.1 + 0.2 * 0.9) / 1.0 = 0.26
    assert s.loc["ann", ["toxicity", "threat"]].tolist() == pytest.approx([0.42, 0.26])
    assert s.loc["bob", ["toxicity", "threat"]].tolist() == pytest.approx([0.3, 0.2])
    # The adjusted one is that minus the plain mean of what was shown.
    s = sensitivities(BY_HAND, "exposure_adjusted")
    assert s.loc["ann", ["toxicity", "threat"]].tolist() == pytest.approx([0.42 - 0.3, 0.26 - 0.5])
    assert s.loc["bob"].tolist() == pytest.approx([0.0] * 6)


def test_a_user_who_rates_everything_100_gets_the_plain_mean() -> None:
    rows = BY_HAND.assign(rating=100)
    assert sensitivities(rows).loc["ann", "toxicity"] == pytest.approx(0.3)
    assert sensitivities(rows, "exposure_adjusted").loc["ann", "toxicity"] == pytest.approx(0)


def test_percentiles_are_midranks_and_ties_are_equal() -> None:
    s = pd.DataFrame({name: [0.1, 0.4, 0.4, 0.9] for name in SIX}, index=list("abcd"))
    assert percentiles(s)["insult"].tolist() == [0.125, 0.5, 0.5, 0.875]
    rounded = pd.DataFrame({name: [0.3, 0.1 + 0.2] for name in SIX}, index=list("ab"))
    # Sums that differ by rounding alone are ties.
    assert percentiles(rounded)["threat"].tolist() == [0.5, 0.5]


def test_a_tie_goes_to_the_category_further_above_the_mean_of_all_users() -> None:
    s = pd.DataFrame(0.5, index=list("abc"), columns=SIX)
    s["insult"] = [0.9, 0.8, 0.1]  # a leads by little
    s["threat"] = [0.9, 0.1, 0.1]  # a leads by more standard deviations
    assert primary_category(percentiles(s), s)["a"] == "threat"
    assert primary_category(percentiles(s), s * 0)["a"] == "insult"  # else the order of the six


def haters(users: int, conversations: int, *, planted: bool) -> pd.DataFrame:
    """Four answers a conversation, each toxic in one random category; planted users hate one of the six."""
    rng, n = np.random.default_rng(0), users * conversations * 4
    talk = np.arange(n) // 4
    user, category = talk // conversations, rng.integers(6, size=n)
    table = pd.DataFrame(np.eye(6)[category], columns=SIX)
    table["rating"] = np.where(planted & (category == user % 6), 1, rng.integers(60, 100, size=n))
    return table.assign(user_id=user, conversation_id=talk)


def test_users_who_hate_one_category_are_agreed_on() -> None:
    ratings = haters(24, 12, planted=True)
    lone = ratings[:4].assign(user_id=99, conversation_id=999)  # with one conversation there are no halves
    row = split_half_agreement(pd.concat([ratings, lone]), "exposure_adjusted", n_splits=5).iloc[0]
    assert (row.users, row.left_out, row.splits) == (24, 1, 5)
    assert row.agreement > 0.9 and row.low <= row.agreement <= row.high <= 1
    assert row.chance == pytest.approx(1 / 6, abs=0.05)
    assert 0.2 < row.rank_correlation < 1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_users_who_hate_nothing_are_agreed_on_by_chance_alone(estimator: str) -> None:
    row = split_half_agreement(haters(60, 8, planted=False), estimator, n_splits=10).iloc[0]
    assert row.low < row.chance < row.high
    assert abs(row.rank_correlation) < 0.1


def test_chance_is_the_agreement_expected_of_independent_halves() -> None:
    # Two users, always told apart: c* is toxicity for one and threat for the other in both halves.
    rows = rated([("ann", 1, 1, 0), ("ann", 1, 1, 0), ("bob", 1, 0, 1), ("bob", 1, 0, 1)])
    row = split_half_agreement(rows.assign(conversation_id=list("abcd")), n_splits=1).iloc[0]
    assert row.agreement == 1
    assert row.chance == 1 / 2 * 1 / 2 + 1 / 2 * 1 / 2
