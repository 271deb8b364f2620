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


def crowd(users: int = 30, n: int = 12, seed: int = 0) -> pd.DataFrame:
    noise = np.random.default_rng(seed)
    table = pd.DataFrame(noise.random((users * n, 6)), columns=SIX)
    table["user_id"] = np.repeat([f"user{i}" for i in range(users)], n)
    table["rating"] = noise.integers(1, 101, users * n)
    return table


def test_the_sensitivity_is_the_dislike_weighted_mean_worked_by_hand() -> None:
    s = sensitivities(BY_HAND)
    # ann: (0.8 * 0.5 + 0.2 * 0.1) / 1.0 = 0.42 and (0.8 * 0.1 + 0.2 * 0.9) / 1.0 = 0.26
    assert s.loc["ann", ["toxicity", "threat"]].tolist() == pytest.approx([0.42, 0.26])
    assert s.loc["bob", ["toxicity", "threat"]].tolist() == pytest.approx([0.3, 0.2])
    assert list(s.columns) == SIX


def test_the_adjusted_sensitivity_is_that_minus_the_plain_mean_of_what_was_shown() -> None:
    s = sensitivities(BY_HAND, "exposure_adjusted")
    assert s.loc["ann", ["toxicity", "threat"]].tolist() == pytest.approx([0.42 - 0.3, 0.26 - 0.5])
    assert s.loc["bob"].tolist() == pytest.approx([0.0] * 6)


@pytest.mark.parametrize(("estimator", "expected"), [("paper", 0.3), ("exposure_adjusted", 0.0)])
def test_a_user_who_rates_everything_100_gets_the_plain_mean(estimator: str, expected: float) -> None:
    for rating in (100, 100 - 1e-7):  # which is the limit
        rows = rated([("ann", rating, 0.5, 0.1), ("ann", rating, 0.1, 0.9), ("bob", 1, 0, 0)])
        assert sensitivities(rows, estimator).loc["ann", "toxicity"] == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_order_of_rows_and_users_does_not_matter(estimator: str) -> None:
    table = crowd()
    shuffled = table.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(
        sensitivities(table, estimator), sensitivities(shuffled, estimator), check_exact=True
    )


def test_percentiles_are_midranks_and_ties_are_equal() -> None:
    s = pd.DataFrame({name: [0.1, 0.4, 0.4, 0.9] for name in SIX}, index=list("abcd"))
    assert percentiles(s)["insult"].tolist() == [0.125, 0.5, 0.5, 0.875]
    assert percentiles(s.iloc[:1])["insult"].tolist() == [0.5]
    rounded = pd.DataFrame({name: [0.3, 0.1 + 0.2] for name in SIX}, index=list("ab"))
    # Sums that differ by rounding alone are ties.
    assert percentiles(rounded)["threat"].tolist() == [0.5, 0.5]


def test_a_tie_goes_to_the_category_further_above_the_mean_of_all_users() -> None:
    s = pd.DataFrame(0.5, index=list("abc"), columns=SIX)
    s["insult"] = [0.9, 0.8, 0.1]  # a leads by little
    s["threat"] = [0.9, 0.1, 0.1]  # a leads by more standard deviations
    assert primary_category(percentiles(s), s)["a"] == "threat"
    assert primary_category(percentiles(s), s * 0)["a"] == "insult"  # else the order of the six


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(ValueError, match="median"):
        sensitivities(BY_HAND, "median")
    with pytest.raises(ValueError, match=r"lack the columns \['threat'\]"):
        sensitivities(BY_HAND.drop(columns="threat"))
    with pytest.raises(ValueError, match="threat is missing in a row of user 'bob'"):
        sensitivities(BY_HAND.assign(threat=[0.1, 0.2, np.nan]))
    with pytest.raises(ValueError, match="have 0 rows"):
        sensitivities(BY_HAND.iloc[:0])


def haters(users: int, conversations: int, *, planted: bool, seed: int = 0) -> pd.DataFrame:
    """Four answers a conversation, each toxic in one random category; planted users hate one of the six."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for talk in range(conversations):
            for _ in range(4):
                category = rng.integers(6)
                hated = planted and category == user % 6
                rating = 1 if hated else int(rng.integers(60, 100))
                row = dict.fromkeys(SIX, 0.0) | {SIX[category]: 1.0, "rating": rating}
                rows.append(row | {"user_id": f"u{user:02d}", "conversation_id": f"u{user}-c{talk}"})
    return pd.DataFrame(rows)


def test_users_who_hate_one_category_are_agreed_on() -> None:
    row = split_half_agreement(haters(24, 12, planted=True), "exposure_adjusted", n_splits=5).iloc[0]
    assert row.agreement > 0.9 and row.low <= row.agreement <= row.high <= 1
    assert row.chance == pytest.approx(1 / 6, abs=0.05)
    assert 0.2 < row.rank_correlation < 1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_users_who_hate_nothing_are_agreed_on_by_chance_alone(estimator: str) -> None:
    row = split_half_agreement(haters(60, 8, planted=False), estimator, n_splits=10).iloc[0]
    assert row.low < row.chance < row.high
    assert abs(row.rank_correlation) < 0.1


def test_chance_is_the_agreement_expected_of_independent_halves() -> None:
    # Two users, always told apart: c* is threat for one and insult for the other in both halves.
    rows = [
        dict.fromkeys(SIX, 0.0)
        | {column: 1.0, "rating": 1, "user_id": user, "conversation_id": f"{user}{talk}"}
        for user, column in (("ann", "threat"), ("bob", "insult"))
        for talk in range(2)
    ]
    row = split_half_agreement(pd.DataFrame(rows), n_splits=1).iloc[0]
    assert row.agreement == 1
    assert row.chance == 1 / 2 * 1 / 2 + 1 / 2 * 1 / 2


def test_users_with_one_conversation_are_left_out_and_counted() -> None:
    ratings = haters(6, 4, planted=True)
    lone = ratings[ratings["conversation_id"] == "u0-c0"].assign(user_id="lone", conversation_id="lone-c0")
    row = split_half_agreement(pd.concat([ratings, lone]), n_splits=2).iloc[0]
    assert (row.users, row.left_out, row.splits) == (6, 1, 2)
    with pytest.raises(ValueError, match="0 users have two conversations or more"):
        split_half_agreement(lone)
