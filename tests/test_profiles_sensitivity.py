"""Sensitivities, percentiles and the primary category."""

import numpy as np
import pandas as pd
import pytest

from steerlib.profiles.sensitivities import (
    ESTIMATORS,
    SIX,
    percentiles,
    population_category,
    primary_category,
    profiles_table,
    sensitivities,
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
    s = sensitivities(rated([("ann", 100, 0.5, 0.1), ("ann", 100, 0.1, 0.9), ("bob", 1, 0, 0)]), estimator)
    assert s.loc["ann", "toxicity"] == pytest.approx(expected)


def test_ratings_near_100_approach_the_plain_mean_continuously() -> None:
    near = sensitivities(rated([("ann", 100 - 1e-7, 0.5, 0.1), ("ann", 100 - 1e-7, 0.1, 0.9)]))
    exactly = sensitivities(rated([("ann", 100, 0.5, 0.1), ("ann", 100, 0.1, 0.9)]))
    assert np.allclose(near, exactly)


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


def test_a_tie_goes_to_the_category_further_above_the_mean_of_all_users() -> None:
    s = pd.DataFrame(0.5, index=list("abc"), columns=SIX)
    s["insult"] = [0.9, 0.8, 0.1]  # a leads by little
    s["threat"] = [0.9, 0.1, 0.1]  # a leads by more standard deviations
    assert primary_category(percentiles(s), s)["a"] == "threat"
    assert primary_category(percentiles(s), s * 0)["a"] == "insult"  # else the order of the six


def test_the_average_person_is_most_sensitive_where_the_mean_is_highest() -> None:
    s = pd.DataFrame(0.1, index=list("ab"), columns=SIX).assign(profanity=[0.0, 0.9])
    assert population_category(s) == "profanity"


def test_the_profiles_table_has_one_primary_a_user() -> None:
    s = sensitivities(crowd())
    table = profiles_table(s, estimator="paper")
    assert len(table) == 6 * 30
    primary = table[table["primary"]].set_index("user_id")["attribute"]
    assert primary.index.is_unique
    assert primary.sort_index().tolist() == primary_category(percentiles(s), s).sort_index().tolist()


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(ValueError, match="median"):
        sensitivities(BY_HAND, "median")
    with pytest.raises(ValueError, match=r"lack the columns \['threat'\]"):
        sensitivities(BY_HAND.drop(columns="threat"))
    with pytest.raises(ValueError, match="threat is missing in a row of user 'bob'"):
        sensitivities(BY_HAND.assign(threat=[0.1, 0.2, np.nan]))
    with pytest.raises(ValueError, match="have 0 rows"):
        sensitivities(BY_HAND.iloc[:0])


def test_sums_that_differ_by_rounding_alone_are_ties() -> None:
    s = pd.DataFrame({name: [0.3, 0.1 + 0.2] for name in SIX}, index=list("ab"))
    assert s.loc["a", "threat"] != s.loc["b", "threat"]
    assert percentiles(s)["threat"].tolist() == [0.5, 0.5]
