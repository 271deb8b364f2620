"""Splits do not leak; prompts are drawn from held-out conversations; the rule for their kinds on plain rows."""

import json

import pandas as pd
import pytest

from steerlib.profiles import (
    draw_prompts,
    prompt_categories,
    split_conversations,
)
from steerlib.tables import ATTRIBUTE_COLUMNS, check_table

SIX = list(ATTRIBUTE_COLUMNS)
Study = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def study(users: int = 24, talks: int = 6) -> Study:
    """Ratings, splits and profiles of users whose primary categories go round the six."""
    turns = [(u, c, r) for u in range(users) for c in range(talks) for r in range(4)]
    rows = [
        (
            f"u{u}",
            f"u{u}c{c}",
            f"u{u}c{c}r{r}",
            r // 2,
            f"prompt {(u + c) % 40}",
            f"answer {r} in u{u}c{c}",
            r % 2,
        )
        for u, c, r in turns
    ]
    names = ["user_id", "conversation_id", "utterance_id", "turn", "prompt", "response", "chosen"]
    ratings = pd.DataFrame(rows, columns=names).astype({"chosen": bool}).assign(prompt_category="")
    profiles = [
        {"user_id": f"u{u}", "attribute": name, "estimator": "paper", "primary": name == SIX[u % 6]}
        for u in range(users)
        for name in SIX
    ]
    return ratings, split_conversations(ratings, seed=0), pd.DataFrame(profiles)


def test_prompts_come_from_held_out_conversations_of_users_of_that_category() -> None:
    ratings, splits, profiles = study()
    prompts = draw_prompts(ratings, splits, profiles, per_category=2, split="test", seed=3)
    check_table("prompts", prompts)
    assert prompts["category"].tolist() == [name for name in SIX for _ in range(2)]
    assert (prompts["history"] == "").all()
    held_out = splits.set_index("conversation_id")["split"]
    assert set(held_out[prompts["conversation_id"]]) == {"test"}
    for row in prompts.itertuples():
        assert row.category == SIX[int(str(row.user_id)[1:]) % 6]
        assert row.accepted == f"answer 1 in {row.conversation_id}"  # chosen in the first turn
        assert row.shuffled_category in SIX and row.shuffled_category != row.category


def test_prompts_of_a_later_turn_have_the_chosen_turns_before_them_as_history() -> None:
    prompts = draw_prompts(*study(), per_category=1, split="test", turn=1)
    ratings = study()[0]
    for row in prompts.itertuples():
        opening = ratings[(ratings.conversation_id == row.conversation_id) & (ratings.turn == 0)].iloc[0]
        assert row.accepted == f"answer 3 in {row.conversation_id}"
        assert json.loads(str(row.history)) == [
            {"role": "user", "content": opening.prompt},
            {"role": "assistant", "content": f"answer 1 in {row.conversation_id}"},
        ]


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    tables = study()
    mixed = [table.sample(frac=1, random_state=5) for table in tables]
    first = draw_prompts(*tables, per_category=2, split="test", seed=0)
    pd.testing.assert_frame_equal(first, draw_prompts(*mixed, per_category=2, split="test", seed=0))
    other = draw_prompts(*tables, per_category=2, split="test", seed=1)
    assert set(other["prompt_id"]) != set(first["prompt_id"])


def two_users(texts: dict[str, list[str]]) -> Study:
    """Held-out conversations with these prompts; everybody's category is toxicity, but for one other user."""
    rows = [(user, f"{user}{k}", text) for user in texts for k, text in enumerate(texts[user])]
    ratings = pd.DataFrame(rows, columns=pd.Index(["user_id", "conversation_id", "prompt"]))
    ratings = ratings.assign(turn=0, chosen=True, response="yes", prompt_category="")
    profiles = pd.DataFrame({"user_id": [*texts, "other"], "estimator": "paper", "primary": True})
    profiles["attribute"] = ["toxicity"] * len(texts) + ["threat"]
    return ratings, ratings[["conversation_id", "user_id"]].assign(split="test"), profiles


@pytest.mark.parametrize("seed", range(6))
def test_the_draw_goes_round_users_and_takes_a_text_again_only_when_no_other_is_left(seed: int) -> None:
    tables = two_users({"ann": ["a", "b", "c", "d", "e"], "bob": ["f"], "cy": ["g", "h"]})
    drawn = draw_prompts(*tables, per_category=5, split="test", seed=seed)
    assert drawn["user_id"].value_counts().to_dict() == {"ann": 2, "cy": 2, "bob": 1}
    tables = two_users({"ann": ["same", "same", "new"], "bob": ["same"]})
    assert set(draw_prompts(*tables, per_category=2, split="test", seed=seed)["prompt"]) == {"same", "new"}
    # A category gives what it has.
    assert len(draw_prompts(*tables, per_category=9, split="test", seed=seed)) == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [({"split": "train"}, "'train'"), ({"per_category": -1}, "-1"), ({"turn": 7}, "turn 7")],
)
def test_what_cannot_be_drawn_is_refused(change: dict, named: str) -> None:
    ratings, splits, profiles = study()
    with pytest.raises(ValueError, match=named):
        draw_prompts(ratings, splits, profiles, **({"per_category": 1, "split": "dev"} | change))
    two = pd.concat([profiles, profiles.assign(estimator="exposure_adjusted")])
    with pytest.raises(ValueError, match="exposure_adjusted, paper"):
        draw_prompts(ratings, splits, two, per_category=1, split="dev")


def kinds(toxicity: list[float], labels: list[str], prompt: str = "Why?") -> list[str]:
    prompts = pd.DataFrame({"prompt": prompt, "prompt_category": labels}, index=range(3, 3 + len(labels)))
    scores = pd.DataFrame(0.0, index=range(len(labels)), columns=SIX).assign(insult=toxicity)
    found = prompt_categories(prompts, scores)
    assert found.index.equals(prompts.index)
    return found.tolist()


def test_a_toxic_wording_goes_before_the_label() -> None:
    labels = ["benign_control", "benign_control", "safe_sensitive", "context_dependent", "safe_sensitive"]
    assert kinds([0.09, 0.1, 0.49, 0.0, 0.5], labels) == [
        *("benign_control", "context_dependent", "safe_sensitive", "context_dependent", "harmful_borderline")
    ]


def test_without_a_label_questions_are_told_from_other_texts() -> None:
    three = ["benign_control", "safe_sensitive", "harmful_borderline"]
    assert kinds([0.05, 0.3, 0.5], [""] * 3, "Why? ") == three
    assert kinds([0.05, 0.3, 0.5], [""] * 3, "Why.") == [three[0], "context_dependent", three[2]]


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
    dev_users = splits[splits["split"] == "dev"]["user_id"].nunique()
    assert by != "users" or 1 <= dev_users <= 4  # 0.3 of 12, of whom one has one conversation
    if by == "conversations":
        assert all(names[user] == {"train", "dev", "test"} for user in counts[counts > 2].index)


def test_splits_depend_on_the_seed_and_not_on_the_order_of_rows() -> None:
    ratings = talks()
    first = split_conversations(ratings, seed=0)
    again = split_conversations(ratings.sample(frac=1, random_state=2), seed=0)
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(split_conversations(ratings, seed=1))
    fewer, train = split_conversations(talks(users=11), seed=0), first.query("split == 'train'")
    ours = set(fewer.query("split == 'train'")["conversation_id"])
    assert ours <= set(train["conversation_id"])  # another user leaves those of the others as they were


def test_what_cannot_be_split_is_refused() -> None:
    ratings = talks()
    twice = pd.concat([ratings, ratings.assign(user_id="user1").iloc[:1]])
    for given, settings, named in (
        (ratings, {"by": "rows"}, "'rows'"),
        (ratings, {"train_share": 1.0}, r"train_share 1\.0"),
        (ratings, {"by": "conversations", "train_share": 0.5, "dev_share": 0.5}, "test"),
        (twice, {}, "conversation c0-0 .*user0 and user1"),
    ):
        with pytest.raises(ValueError, match=named):
            split_conversations(given, **settings)
