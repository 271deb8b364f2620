"""The demo set: reproducible, in PRISM's schema, labelled synthetic."""

import json
from pathlib import Path

from steerlib.profiles import demo_openings
from steerlib.profiles.demo.make_demo import make_demo
from steerlib.profiles.ratings import PRISM_COLUMNS
from steerlib.profiles.sources import DEMO, PROMPT_CATEGORIES, read_rows
from steerlib.tables import ATTRIBUTE_COLUMNS
from steerlib.toxicity import load_scorer

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
