"""Which conversations profiles and vectors are fitted on, and which are held out."""

import pandas as pd

from steerlib.profiles.sources import hash_order
from steerlib.tables import check_table

SPLITS = ("train", "dev", "test")


def split_conversations(
    ratings: pd.DataFrame,
    *,
    by: str = "users",
    train_share: float = 0.5,
    dev_share: float = 0.5,
    seed: int = 0,
) -> pd.DataFrame:
    """Conversations into train, dev and test, so that nothing is reported on what was fitted.

    by="users" (one alpha for all, or one a category): users into a dev and a test group; of each user, some
    conversations to train (the profile and the vectors), the others to the group's split.
    by="conversations" (one alpha a user): each user's conversations into train, dev and test.
    A user with two conversations or more keeps one in train and one held out (with three, by conversations,
    one in each); a user with one has it in train.

    Args:
        ratings: user_id, conversation_id.
        train_share: share of a user's conversations in train, in (0, 1).
        dev_share: by users, share of users in the dev group; by conversations, share of a user's
            conversations in dev. In (0, 1).
        seed: of the random order; the order of the rows and other users do not matter.

    Returns:
        conversation_id, user_id, split.

    Raises:
        ValueError: unknown `by`, a share outside (0, 1), or a conversation of two users.
    """
    if by not in ("users", "conversations"):
        raise ValueError(f"by must be 'users' or 'conversations', not {by!r}")
    for name, share in (("train_share", train_share), ("dev_share", dev_share)):
        if not 0 < share < 1:
            raise ValueError(f"{name} {share} is not in (0, 1)")
    if by == "conversations" and train_share + dev_share >= 1:
        raise ValueError(f"train_share {train_share} and dev_share {dev_share} leave nothing for test")
    owner = _owners(ratings)
    users = hash_order(owner, "group", seed)
    dev_users = set(users[: round(dev_share * len(users))])
    rows = []
    for user in sorted(users):
        conversations = hash_order(owner[user], "conversations", seed, user)
        n = len(conversations)
        train = max(1, min(round(train_share * n), n - (1 if by == "users" else 2)))
        held_out = n - train
        if by == "users":
            dev = held_out if user in dev_users else 0
        else:
            dev = max(1, min(round(dev_share * n), held_out - 1)) if held_out > 1 else 0
        names = ["train"] * train + ["dev"] * dev + ["test"] * (held_out - dev)
        rows += zip(conversations, [user] * n, names, strict=True)
    splits = pd.DataFrame(rows, columns=pd.Index(["conversation_id", "user_id", "split"]))
    return check_table("splits", splits)


def check_splits(ratings: pd.DataFrame, splits: pd.DataFrame, *, by: str = "users") -> None:
    """Refuse splits that leak.

    Args:
        ratings, by: as for `split_conversations`; by "users", no user may be in both dev and test.
        splits: conversation_id, user_id, split.

    Raises:
        ValueError: names the leak: a conversation in two splits or in none, of another user than in the
            ratings, a user without train conversations, a user in both dev and test.
    """
    for split in set(splits["split"]) - set(SPLITS):
        raise ValueError(f"splits: {split!r} is not one of {', '.join(SPLITS)}")
    for conversation, names in splits.groupby("conversation_id")["split"]:
        if len(names) > 1:
            raise ValueError(f"conversation {conversation} is in {' and in '.join(names)}")
    placed = splits.set_index("conversation_id")["user_id"].to_dict()
    for user, conversations in _owners(ratings).items():
        for conversation in sorted(conversations):
            if conversation not in placed:
                raise ValueError(f"conversation {conversation} of user {user} is in no split")
            if placed[conversation] != user:
                raise ValueError(f"conversation {conversation} is of user {user}, not {placed[conversation]}")
    for user, names in splits.groupby("user_id")["split"]:
        if "train" not in set(names):
            raise ValueError(f"user {user} has no train conversation to fit a profile on")
        if by == "users" and {"dev", "test"} <= set(names):
            raise ValueError(f"user {user} is in both dev and test")


def _owners(ratings: pd.DataFrame) -> dict[str, set[str]]:
    """Each user's conversations; a conversation that two users share could leak from one split to another."""
    pairs = ratings[["user_id", "conversation_id"]].drop_duplicates()
    for conversation, users in pairs.groupby("conversation_id")["user_id"]:
        if len(users) > 1:
            raise ValueError(
                f"conversation {conversation} belongs to two users: {' and '.join(sorted(users))}"
            )
    return {str(user): set(rows) for user, rows in pairs.groupby("user_id")["conversation_id"]}
