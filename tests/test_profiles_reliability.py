"""Split-half agreement: what it must be where the answer is known."""

import numpy as np
import pandas as pd
import pytest

from steerlib.profiles import ESTIMATORS, split_half_agreement
from steerlib.tables import ATTRIBUTE_COLUMNS

SIX = list(ATTRIBUTE_COLUMNS)


def rated(users: int, conversations: int, *, planted: bool, seed: int = 0) -> pd.DataFrame:
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
    row = split_half_agreement(rated(24, 12, planted=True), "exposure_adjusted", n_splits=5).iloc[0]
    assert row.agreement > 0.9 and row.low <= row.agreement <= row.high <= 1
    assert row.chance == pytest.approx(1 / 6, abs=0.05)
    assert 0.2 < row.rank_correlation < 1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_users_who_hate_nothing_are_agreed_on_by_chance_alone(estimator: str) -> None:
    row = split_half_agreement(rated(60, 8, planted=False), estimator, n_splits=10).iloc[0]
    assert row.low < row.chance < row.high
    assert abs(row.rank_correlation) < 0.1


def test_the_same_answers_in_every_conversation_agree_always() -> None:
    one = rated(12, 1, planted=False)
    talks = pd.concat([one.assign(conversation_id=one["user_id"] + f"-{talk}") for talk in range(4)])
    row = split_half_agreement(talks, "exposure_adjusted", n_splits=3).iloc[0]
    assert row.agreement == row.low == row.high == 1
    assert row.rank_correlation == pytest.approx(1)


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
    ratings = rated(6, 4, planted=True)
    lone = ratings[ratings["conversation_id"] == "u0-c0"].assign(user_id="lone", conversation_id="lone-c0")
    row = split_half_agreement(pd.concat([ratings, lone]), n_splits=2).iloc[0]
    assert (row.users, row.left_out, row.splits) == (6, 1, 2)
    with pytest.raises(ValueError, match="0 users have two conversations or more"):
        split_half_agreement(lone)


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does() -> None:
    ratings = rated(12, 5, planted=True)
    mixed = ratings.sample(frac=1, random_state=1)
    first = split_half_agreement(ratings, n_splits=4, seed=3)
    pd.testing.assert_frame_equal(first, split_half_agreement(mixed, n_splits=4, seed=3))
    assert not first.equals(split_half_agreement(ratings, n_splits=4, seed=4))
