"""Splits do not leak."""

import pandas as pd
import pytest

from steerlib.profiles import split_conversations


def talks(users: int = 12, most: int = 9) -> pd.DataFrame:
    rows = [(f"user{u}", f"c{u}-{k}") for u in range(users) for k in range(1 + u % most) for _ in range(3)]
    return pd.DataFrame(rows, columns=pd.Index(["user_id", "conversation_id"]))


@pytest.mark.parametrize("by", ["users", "conversations"])
@pytest.mark.parametrize("seed", range(8))
def test_no_seed_makes_a_leak(by: str, seed: int) -> None:
    ratings = talks()
    splits = split_conversations(ratings, by=by, train_share=0.4, dev_share=0.3, seed=seed)
    assert splits["conversation_id"].is_unique
    owners = ratings.drop_duplicates("conversation_id").set_index("conversation_id")["user_id"]
    assert splits.set_index("conversation_id")["user_id"].to_dict() == owners.to_dict()
    names = splits.groupby("user_id")["split"].agg(set)
    assert all("train" in one and (by != "users" or one != {"train", "dev", "test"}) for one in names)
    held_out = splits[splits["split"] != "train"].groupby("user_id").size()
    counts = ratings.groupby("user_id")["conversation_id"].nunique()
    assert set(held_out.index) == set(counts[counts > 1].index)
    if by == "conversations":
        assert all(names[user] == {"train", "dev", "test"} for user in counts[counts > 2].index)


def test_half_of_the_users_are_dev_users() -> None:
    splits = split_conversations(talks(users=40), seed=1)
    groups = splits[splits["split"] != "train"].groupby("user_id")["split"].unique()
    assert all(len(names) == 1 for names in groups)
    dev = sum(names[0] == "dev" for names in groups)
    assert 15 <= dev <= 20  # of 20 dev users, those with one conversation have nothing held out


def test_the_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    ratings = talks()
    first = split_conversations(ratings, seed=0)
    again = split_conversations(ratings.sample(frac=1, random_state=2), seed=0)
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(split_conversations(ratings, seed=1))


def test_another_user_leaves_the_train_conversations_of_the_others_as_they_were() -> None:
    def train(ratings: pd.DataFrame) -> set[str]:
        splits = split_conversations(ratings, seed=0)
        return set(splits.loc[splits["split"] == "train", "conversation_id"])

    assert train(talks(users=11)) <= train(talks(users=12))


def test_what_cannot_be_split_is_refused() -> None:
    ratings = talks()
    with pytest.raises(ValueError, match="by must be 'users' or 'conversations', not 'rows'"):
        split_conversations(ratings, by="rows")
    with pytest.raises(ValueError, match=r"train_share 1.0 is not in \(0, 1\)"):
        split_conversations(ratings, train_share=1.0)
    with pytest.raises(ValueError, match="leave nothing for test"):
        split_conversations(ratings, by="conversations", train_share=0.5, dev_share=0.5)
    with pytest.raises(ValueError, match="conversation c0-0 belongs to two users: user0 and user1"):
        split_conversations(pd.concat([ratings, ratings.assign(user_id="user1").iloc[:1]]))


@pytest.mark.parametrize("by", ["users", "conversations"])
def test_a_large_train_share_still_leaves_something_held_out(by: str) -> None:
    dev_share = 0.5 if by == "users" else 0.04
    splits = split_conversations(talks(users=9), by=by, train_share=0.95, dev_share=dev_share)
    held_out = splits[splits["split"] != "train"]["user_id"].unique()
    assert len(held_out) == 8  # all but the user with one conversation
