"""Profiles: sensitivities, percentiles, the primary category, its split-half agreement, the recovery study."""

import numpy as np
import pandas as pd
import pytest
from studies.recovery import demo_texts, recovery_confusion, recovery_shares, recovery_study

from steerlib.profiles.sensitivities import (
    ESTIMATORS,
    SIX,
    percentiles,
    primary_category,
    sensitivities,
    split_half_agreement,
)
from steerlib.profiles.sources import DEMO, read_rows


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


def perfect_scorer(texts: list[str]) -> pd.DataFrame:
    """Scores each text by the unkind sentence in it, half its strength, in its own category alone."""
    scores = pd.DataFrame(0.0, index=range(len(texts)), columns=SIX)
    for sentence in read_rows(DEMO / "unkind.jsonl").to_dict("records"):
        inside = [text.endswith(sentence["text"]) for text in texts]
        scores.loc[inside, sentence["category"]] = sentence["strength"] / 2
    return scores


def test_more_ratings_find_more_and_noise_finds_chance() -> None:
    texts = demo_texts(perfect_scorer)
    study = recovery_study(texts, ratings=(8, 96), users=24, simulations=8)
    assert (study.groupby(["estimator", "simulation"])["users"].sum() == 2 * 24).all()
    shares = recovery_shares(study).set_index(["estimator", "ratings"])
    assert shares.loc[("exposure_adjusted", 96), "share"] > 0.85
    assert shares.loc[("exposure_adjusted", 8), "high"] < 0.85
    noise = recovery_study(texts, ratings=(48,), users=48, simulations=12, noise=10_000)
    table = recovery_shares(noise).query("estimator != 'difference'")
    assert ((table["low"] < 1 / 6) & (table["high"] > 1 / 6)).all()


def test_shares_and_paired_differences_are_those_of_a_hand_made_study() -> None:
    rows = []
    for estimator, hits in {"paper": (1, 3), "exposure_adjusted": (3, 3)}.items():  # of 4 in two simulations
        for simulation, hit in enumerate(hits):
            shared = {"ratings": 8, "estimator": estimator, "simulation": simulation}
            rows.append(shared | {"planted": "threat", "found": "threat", "users": hit})
            rows.append(shared | {"planted": "threat", "found": "insult", "users": 4 - hit})
    study = pd.DataFrame(rows)
    shares = recovery_shares(study).set_index("estimator")
    assert shares["share"].to_dict() == {"paper": 0.5, "exposure_adjusted": 0.75, "difference": 0.25}
    # t with 1 degree of freedom is 12.706; the shares 1/4 and 3/4 have a standard error of 1/4.
    assert shares.loc["paper", "high"] - 0.5 == pytest.approx(12.706 / 4, rel=1e-4)
    assert shares.loc["difference", "low"] == pytest.approx(0.25 - 12.706 / 4, rel=1e-4)
    confusion = recovery_confusion(study, estimator="paper", ratings=8)
    assert confusion.loc["threat", ["threat", "insult"]].tolist() == [0.5, 0.5]
