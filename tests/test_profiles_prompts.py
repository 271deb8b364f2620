"""The demo set in PRISM's schema; splits do not leak; prompts of held-out conversations, and what kind each is."""

import json
from pathlib import Path

import pandas as pd
import pytest

from steerlib.profiles import demo_openings, draw_prompts, prompt_categories, split_conversations
from steerlib.profiles.demo.make_demo import make_demo
from steerlib.profiles.ratings import PRISM_COLUMNS
from steerlib.profiles.sources import DEMO, PROMPT_CATEGORIES, read_rows
from steerlib.tables import ATTRIBUTE_COLUMNS, check_table
from steerlib.toxicity import load_scorer

SIX = list(ATTRIBUTE_COLUMNS)
Study = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def study() -> Study:
    """Ratings, splits and profiles of 24 users whose primary categories go round the six."""
    rows = [
        (f"u{u}", f"u{u}c{c}", r // 2, f"prompt {(u + c) % 40}", f"answer {r} in u{u}c{c}", r % 2 == 1)
        for u in range(24)
        for c in range(6)
        for r in range(4)
    ]
    names = ["user_id", "conversation_id", "turn", "prompt", "response", "chosen"]
    ratings = pd.DataFrame(rows, columns=names).assign(prompt_category="")
    profiles = pd.DataFrame({"user_id": [f"u{u}" for u in range(24)], "attribute": SIX * 4, "primary": True})
    return ratings, split_conversations(ratings, seed=0), profiles


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


def two_users(texts: dict[str, list[str]]) -> Study:
    """Held-out conversations with these prompts; everybody's category is toxicity, but for one other user."""
    rows = [(user, f"{user}{k}", text) for user in texts for k, text in enumerate(texts[user])]
    ratings = pd.DataFrame(rows, columns=pd.Index(["user_id", "conversation_id", "prompt"]))
    ratings = ratings.assign(turn=0, chosen=True, response="yes", prompt_category="")
    profiles = pd.DataFrame({"user_id": [*texts, "other"], "primary": True})
    profiles["attribute"] = ["toxicity"] * len(texts) + ["threat"]
    return ratings, ratings[["conversation_id", "user_id"]].assign(split="test"), profiles


@pytest.mark.parametrize("seed", range(3))
def test_the_draw_goes_round_users_and_takes_a_text_again_only_when_no_other_is_left(seed: int) -> None:
    tables = two_users({"ann": ["a", "b", "c", "d", "e"], "bob": ["f"], "cy": ["g", "h"]})
    drawn = draw_prompts(*tables, per_category=5, split="test", seed=seed)
    assert drawn["user_id"].value_counts().to_dict() == {"ann": 2, "cy": 2, "bob": 1}
    tables = two_users({"ann": ["same", "same", "new"], "bob": ["same"]})
    assert set(draw_prompts(*tables, per_category=2, split="test", seed=seed)["prompt"]) == {"same", "new"}
    # A category gives what it has.
    assert len(draw_prompts(*tables, per_category=9, split="test", seed=seed)) == 4


def kinds(toxicity: list[float], labels: list[str], prompt: str = "Why?") -> list[str]:
    prompts = pd.DataFrame({"prompt": prompt, "prompt_category": labels}, index=range(3, 3 + len(labels)))
    scores = pd.DataFrame(0.0, index=range(len(labels)), columns=SIX).assign(insult=toxicity)
    return prompt_categories(prompts, scores).loc[prompts.index].tolist()


def test_a_toxic_wording_goes_before_the_label_and_without_one_questions_are_told_from_other_texts() -> None:
    labels = ["benign_control", "benign_control", "safe_sensitive", "context_dependent", "safe_sensitive"]
    expected = ["benign_control", "context_dependent", *labels[2:4], "harmful_borderline"]
    assert kinds([0.09, 0.1, 0.49, 0.0, 0.5], labels) == expected
    assert kinds([0.05, 0.3, 0.5], [""] * 3, "Why? ") == expected[::2]
    assert kinds([0.05, 0.3], [""] * 2, "Why.") == expected[:2]


def talks(users: int = 12) -> pd.DataFrame:
    rows = [(f"user{u}", f"c{u}-{k}") for u in range(users) for k in range(1 + u % 9) for _ in range(3)]
    return pd.DataFrame(rows, columns=pd.Index(["user_id", "conversation_id"]))


@pytest.mark.parametrize("seed", range(4))
def test_no_seed_makes_a_leak(seed: int) -> None:
    ratings = talks()
    splits = split_conversations(ratings, train_share=0.4, dev_share=0.3, seed=seed)
    assert splits["conversation_id"].is_unique
    assert set(splits["conversation_id"]) == set(ratings["conversation_id"])
    names = splits.groupby("user_id")["split"].agg(set)
    assert all("train" in one and one != {"train", "dev", "test"} for one in names)
    held_out = splits[splits["split"] != "train"].groupby("user_id").size()
    counts = ratings.groupby("user_id")["conversation_id"].nunique()
    assert set(held_out.index) == set(counts[counts > 1].index)


def test_draws_and_splits_depend_on_the_seed_and_not_on_the_order_of_rows() -> None:
    tables = study()
    mixed = [table.sample(frac=1, random_state=5) for table in tables]
    first, again = (draw_prompts(*given, per_category=2, split="test", seed=0) for given in (tables, mixed))
    pd.testing.assert_frame_equal(first, again)
    other = draw_prompts(*tables, per_category=2, split="test", seed=1)
    assert set(other["prompt_id"]) != set(first["prompt_id"])
    pd.testing.assert_frame_equal(tables[1], split_conversations(mixed[0], seed=0))
    assert not tables[1].equals(split_conversations(tables[0], seed=1))
    train, fewer = (split_conversations(talks(users), seed=0).query("split == 'train'") for users in (12, 11))
    assert set(fewer["conversation_id"]) <= set(train["conversation_id"])  # whoever else there is


def test_what_cannot_be_split_or_drawn_is_refused() -> None:
    ratings = talks()
    twice = pd.concat([ratings, ratings.assign(user_id="user1").iloc[:1]])
    with pytest.raises(ValueError, match="conversation c0-0"):
        split_conversations(twice)
    with pytest.raises(ValueError, match="turn 7"):
        draw_prompts(*study(), per_category=1, split="dev", turn=7)


FILES = ("utterances.jsonl", "survey.jsonl")


def test_the_committed_demo_is_what_its_script_writes_to_the_byte(tmp_path: Path) -> None:
    make_demo(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes(), name


def test_its_columns_are_prisms(real_data) -> None:
    entries = json.loads(real_data("prism_fragments/codebook_entries.json").read_text())
    released = {entry["variable_name"]: entry for entry in entries}
    assert set(PRISM_COLUMNS.values()) <= set(released)
    assert "EMPTY STRING" in released["model_response"]["notes"]
    for name, column in (("utterances.jsonl", "conversation_type"), ("survey.jsonl", "age")):
        rows = read_rows(DEMO / name)
        assert set(rows) - {"synthetic", "prompt_category", "planted_category"} <= set(released)
        assert set(rows[column]) <= set(released[column]["values"])


def test_its_size_and_planted_categories_are_as_promised_and_every_record_says_that_it_is_synthetic() -> None:
    utterances, survey = (read_rows(DEMO / name) for name in FILES)
    assert survey["synthetic"].eq(True).all() and utterances["synthetic"].eq(True).all()
    assert survey["planted_category"].value_counts().to_dict() == dict.fromkeys(ATTRIBUTE_COLUMNS, 8)
    talks = utterances.groupby("user_id")["conversation_id"].nunique()
    assert len(talks) == 48 and talks.min() >= 3
    assert set(utterances["prompt_category"]) == set(PROMPT_CATEGORIES)
    first = utterances[utterances["turn"] == 0]
    assert (first.groupby("conversation_id").size() == 4).all()
    assert first.drop_duplicates("conversation_id")["user_prompt"].is_unique


def test_hostile_openings_are_toxic_and_their_continuations_differ_in_toxicity_alone() -> None:
    pairs, prompts = demo_openings()
    assert prompts["split"].value_counts().to_dict() == {"test": 64, "dev": 32}
    assert prompts["prompt"].is_unique and prompts["prompt_id"].is_unique
    assert len(pairs) >= 80 and not set(pairs["opening"]) & set(prompts["prompt"])
    words = pairs[["toxic", "mild"]].map(lambda text: len(text.split()))
    assert (words["toxic"] - words["mild"]).abs().max() <= 1
    scorer = load_scorer("embedded")  # these texts were chosen by it
    toxic, mild = (scorer(pairs[side])["toxicity"] for side in ("toxic", "mild"))
    assert (toxic - mild > 0.3).all()
    for openings in (prompts["prompt"], pairs["opening"]):
        assert (scorer(openings)["toxicity"] > 0.5).all()
