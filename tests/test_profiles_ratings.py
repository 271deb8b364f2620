"""Ratings: one schema, bad input refused by row and column, PRISM's oddities counted."""

import hashlib
import json
from pathlib import Path

import huggingface_hub
import pandas as pd
import pytest

from steerlib.profiles import check_splits, split_conversations
from steerlib.profiles.sources import PRISM_COLUMNS, read_ratings, with_toxicity
from steerlib.tables import ATTRIBUTE_COLUMNS, check_table

OWN = pd.DataFrame(
    {
        "user_id": ["ann", "ann", "bob"],
        "prompt": ["Hello", "Hello", "Hi"],
        "response": ["Good day", "Go away", "NA"],
        "rating": ["90", "1", "55.5"],
    }
)


def prism_row(utterance: int, **changes: object) -> dict:
    row = {
        "utterance_id": f"ut{utterance}",
        "interaction_id": "int0",
        "conversation_id": "c0",
        "user_id": "user0",
        "turn": 0,
        "within_turn_id": utterance,
        "included_in_balanced_subset": True,
        "conversation_type": "unguided",
        "user_prompt": "Hello",
        "model_response": f"Answer {utterance}",
        "model_name": "m",
        "model_provider": "p",
        "score": 50 + utterance,
        "if_chosen": False,
    }
    return row | changes


def prism_folder(folder: Path, rows: list[dict]) -> Path:
    (folder / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def counts(report: pd.DataFrame) -> dict[str, int]:
    return dict(zip(report["what"], report["count"], strict=True))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_file_of_ones_own_needs_four_columns(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"mine.{ending}"
    if ending == "csv":
        OWN.to_csv(path, index=False)
    elif ending == "jsonl":
        OWN.to_json(path, orient="records", lines=True)
    else:
        OWN.assign(rating=OWN["rating"].astype(float)).to_parquet(path)
    ratings, report = read_ratings(path)
    assert ratings["rating"].tolist() == [90.0, 1.0, 55.5]
    assert ratings["response"].tolist()[2] == "NA"  # a text, not a missing value
    assert ratings["conversation_id"].tolist() == ["conversation1", "conversation1", "conversation2"]
    assert ratings["chosen"].tolist() == [True, False, True]
    assert ratings["turn"].tolist() == [0, 0, 0]
    assert counts(report)["users kept"] == 2
    assert "sha256" in report["what"][0]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("rating", "0", "row 2, column rating: must be a number in 1..100, not '0'"),
        ("rating", "100.5", "row 2, column rating: must be a number in 1..100, not '100.5'"),
        ("rating", "good", "row 2, column rating: must be a number in 1..100, not 'good'"),
        ("rating", "nan", "row 2, column rating: must be a number in 1..100, not 'nan'"),
        ("rating", "", "row 2, column rating: must be a number in 1..100, not ''"),
        ("response", " ", "row 2, column response: must be text that is not empty, not ' '"),
        ("prompt", "", "row 2, column prompt: must be text that is not empty, not ''"),
        ("user_id", "", "row 2, column user_id: must name a user, not ''"),
        ("turn", "-1", "row 2, column turn: must be 0, 1, 2, ..., not '-1'"),
        ("chosen", "maybe", "row 2, column chosen: must be true or false, not 'maybe'"),
        ("prompt_category", "rude", "row 2, column prompt_category: must be empty or one of benign_control"),
        ("utterance_id", "u", "row 2, column utterance_id: 'u' stands there twice"),
        ("conversation_id", "", "row 2, column conversation_id: must name a conversation, not ''"),
    ],
)
def test_a_bad_value_is_refused_naming_its_row_and_column(
    tmp_path: Path, column: str, value: str, message: str
) -> None:
    full = OWN.assign(
        turn="0", chosen="true", prompt_category="", utterance_id=["u", "v", "w"], conversation_id="c"
    )
    full.loc[1, column] = value
    full.to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(ValueError) as refusal:
        read_ratings(tmp_path / "mine.csv")
    assert message in str(refusal.value)
    assert str(refusal.value).startswith("mine.csv") and "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [None, True, [1], float("nan")])
def test_a_json_rating_that_is_no_number_is_refused(tmp_path: Path, value: object) -> None:
    folder = prism_folder(tmp_path, [prism_row(0), prism_row(1, score=value)])
    with pytest.raises(
        ValueError, match=r"utterances.jsonl, row 2, column score: must be a number in 1\.\.100"
    ):
        read_ratings(folder)


def test_missing_columns_and_unreadable_files_are_refused_in_one_line(tmp_path: Path) -> None:
    OWN.drop(columns="rating").to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(
        ValueError, match="column 'rating' is missing; the columns are user_id, prompt, response"
    ):
        read_ratings(tmp_path / "mine.csv")
    (tmp_path / "broken.jsonl").write_text('{"user_id": "a"}\n{"user_id"\n')
    with pytest.raises(ValueError, match=r"broken.jsonl, row 2: not JSON"):
        read_ratings(tmp_path / "broken.jsonl")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"row 1: not a JSON object but '\[1\]'"):
        read_ratings(tmp_path / "list.jsonl")
    (tmp_path / "none.csv").write_text("user_id,prompt,response,rating\n")
    with pytest.raises(ValueError, match=r"none.csv has no rows"):
        read_ratings(tmp_path / "none.csv")
    (tmp_path / "x.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"must be .jsonl, .csv or .parquet"):
        read_ratings(tmp_path / "x.xlsx")
    with pytest.raises(FileNotFoundError, match=r"absent.csv is not a file"):
        read_ratings(tmp_path / "absent.csv")
    with pytest.raises(FileNotFoundError, match=r"has no utterances.jsonl"):
        read_ratings(tmp_path)
    with pytest.raises(ValueError, match="turns must be 'first' or 'all', not 'last'"):
        read_ratings("demo", turns="last")
    with pytest.raises(ValueError, match="folder goes with source 'prism', not with 'demo'"):
        read_ratings("demo", folder=tmp_path)


def test_prism_rows_are_renamed_and_its_oddities_counted(tmp_path: Path) -> None:
    rows = [
        prism_row(0, score=90, if_chosen=True),
        prism_row(1, score=90),
        prism_row(2, model_response="EMPTY STRING"),
        prism_row(3, model_response="  \n"),
        prism_row(4, turn=1, model_response="Same", if_chosen=True),
        prism_row(5, turn=1, model_response="Same", if_chosen=True),
        prism_row(6, user_id="user1", conversation_id="c1"),
    ]
    folder = prism_folder(tmp_path, rows)
    ratings, report = read_ratings("prism", folder=folder, min_ratings=2)
    assert ratings["utterance_id"].tolist() == ["ut0", "ut1"]
    assert ratings.loc[0, ["prompt", "response", "rating"]].tolist() == ["Hello", "Answer 0", 90.0]
    found = counts(report)
    assert found['empty texts ("EMPTY STRING") dropped'] == 2
    assert found["further chosen responses of a turn, first kept"] == 1
    assert found["responses of later turns dropped"] == 2
    assert found["turns with a tie for the highest rating"] == 1
    assert found["turns without a chosen response"] == 1
    assert found["users with fewer than 2 ratings dropped"] == 1
    everything, _ = read_ratings(folder, turns="all")
    assert len(everything) == 5
    assert everything.groupby(["conversation_id", "turn"])["chosen"].sum().max() == 1


def test_a_filter_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    OWN.to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(ValueError, match=r"no rating is left of 3 \(min_ratings 50\)"):
        read_ratings(tmp_path / "mine.csv", min_ratings=50)


def test_prism_without_a_network_says_at_once_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_cached(*_: object, **options: object) -> str:
        assert options["local_files_only"], "the hub's client would retry for half a minute"
        raise huggingface_hub.errors.LocalEntryNotFoundError("a long story\nof two lines")

    class Offline:
        def head(self, *_: object, **__: object) -> None:
            raise RuntimeError("no such host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", not_cached)
    monkeypatch.setattr(huggingface_hub, "get_session", Offline)
    with pytest.raises(FileNotFoundError, match=r"name a folder that holds utterances.jsonl") as refusal:
        read_ratings("prism")
    assert "\n" not in str(refusal.value)


def test_prism_in_the_hubs_cache_is_read_at_the_revision_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = {}

    def cached(dataset: str, name: str, **options: object) -> str:
        asked.update(options, dataset=dataset)
        return str(prism_folder(tmp_path, [prism_row(0)]) / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    ratings, _ = read_ratings("prism", revision="abc")
    assert len(ratings) == 1
    assert asked["dataset"] == "HannahRoseKirk/prism-alignment" and asked["revision"] == "abc"


def test_toxicity_is_joined_row_by_row(tmp_path: Path) -> None:
    OWN.to_csv(tmp_path / "mine.csv", index=False)
    ratings, _ = read_ratings(tmp_path / "mine.csv")
    scores = pd.DataFrame({name: [0.1, 0.2, 0.3] for name in ATTRIBUTE_COLUMNS}, index=[7, 8, 9])
    scored = with_toxicity(ratings, scores)
    check_table("ratings", scored)
    assert scored["threat"].tolist() == [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="3 ratings but 2 rows of scores"):
        with_toxicity(ratings, scores.iloc[:2])
    with pytest.raises(ValueError, match=r"scores, row 2, column insult: must be in 0..1, not nan"):
        with_toxicity(ratings, scores.assign(insult=[0.1, None, 0.1]))


def test_the_column_names_are_those_of_prisms_codebook(real_data) -> None:
    entries = json.loads(real_data("prism_fragments/codebook_entries.json").read_text())
    released = {entry["variable_name"] for entry in entries}
    of_prism = set(PRISM_COLUMNS.values()) - {"prompt_category"}  # the poster's label, not PRISM's
    assert of_prism <= released
    assert set(prism_row(0)) <= released
    empty = next(entry for entry in entries if entry["variable_name"] == "model_response")
    assert "EMPTY STRING" in empty["notes"]


def test_real_rated_answers_of_prism_are_read(real_data, tmp_path: Path) -> None:
    triples = [json.loads(line) for line in real_data(TRIPLES).read_text().splitlines()]
    rows = [
        prism_row(number) | {name: triple[name] for name in ("user_prompt", "model_response", "score")}
        for number, triple in enumerate(triples)
    ]
    ratings, report = read_ratings(prism_folder(tmp_path, rows))
    assert len(ratings) + counts(report)['empty texts ("EMPTY STRING") dropped'] == len(triples) == 38
    assert ratings["rating"].between(1, 100).all()


TRIPLES = "prism_fragments/rated_triples_from_notebook03.jsonl"


def metadata(folder: Path, rows: list[dict]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def flag(utterance: str | None, column: str = "model_response", **flags: object) -> dict:
    return {"column_id": column, "utterance_id": utterance, **flags}


def test_answers_not_in_english_are_counted_and_dropped_where_asked(tmp_path: Path) -> None:
    folder = prism_folder(tmp_path, [prism_row(number) for number in range(4)])
    flags = [
        flag(None, "user_prompt", en_flag=False),
        flag("ut0", en_flag=True),
        flag("ut1", en_flag=False),
        flag("ut2", language_flag="de"),
        flag("ut3", language_flag="en"),
    ]
    metadata(folder, flags)
    ratings, report = read_ratings(folder)
    assert len(ratings) == 4 and counts(report)["responses flagged as not English kept"] == 2
    ratings, report = read_ratings("prism", folder=folder, language="english")
    assert ratings["utterance_id"].tolist() == ["ut0", "ut3"]
    assert counts(report)["responses flagged as not English dropped"] == 2


def test_a_language_that_is_not_known_is_said_to_be_not_known(tmp_path: Path) -> None:
    folder = prism_folder(tmp_path, [prism_row(0)])
    _, report = read_ratings(folder)
    assert counts(report)["responses flagged as not English: not known, no metadata.jsonl"] is pd.NA
    with pytest.raises(ValueError, match=r"language='english' needs PRISM's metadata.jsonl"):
        read_ratings(folder, language="english")
    with pytest.raises(ValueError, match="language must be 'all' or 'english', not 'german'"):
        read_ratings(folder, language="german")
    metadata(folder, [flag("ut0", en_flag=True), {"column_id": "model_response", "utterance_id": "ut1"}])
    with pytest.raises(ValueError, match=r"metadata.jsonl, row 2: not PRISM's metadata"):
        read_ratings(folder)


def test_turns_counted_from_1_are_moved_to_0_and_counted(tmp_path: Path) -> None:
    rows = [prism_row(0, turn=1), prism_row(1, turn=2), prism_row(2, turn=1, conversation_id="c1")]
    ratings, report = read_ratings(prism_folder(tmp_path, rows))
    assert ratings["utterance_id"].tolist() == ["ut0", "ut2"] and ratings["turn"].eq(0).all()
    assert counts(report)["conversations counted from turn 1, moved to 0"] == 2
    later = read_ratings(prism_folder(tmp_path, [prism_row(0, turn=0), prism_row(1, turn=1)]), turns="all")
    assert later[0]["turn"].tolist() == [0, 1]


def test_a_study_can_be_held_to_the_sha256_of_its_ratings(tmp_path: Path) -> None:
    folder = prism_folder(tmp_path, [prism_row(0)])
    digest = hashlib.sha256((folder / "utterances.jsonl").read_bytes()).hexdigest()
    _, report = read_ratings(folder, sha256=digest.upper())
    assert digest in report["what"][0]
    with pytest.raises(ValueError, match=f"utterances.jsonl: its sha256 is {digest}, not 0123"):
        read_ratings(folder, sha256="0123")


def test_a_file_from_the_hubs_cache_is_named_with_its_commit(tmp_path: Path) -> None:
    cached = tmp_path / "snapshots" / "abc123"
    cached.mkdir(parents=True)
    _, report = read_ratings(prism_folder(cached, [prism_row(0)]))
    assert report["what"][0].startswith("rows of utterances.jsonl, commit abc123, sha256 ")


def test_the_flags_have_the_names_of_prisms_codebook(real_data) -> None:
    entries = json.loads(real_data("prism_fragments/codebook_entries.json").read_text())
    released = {entry["variable_name"]: entry for entry in entries}
    assert {"column_id", "utterance_id", "en_flag", "language_flag"} <= set(released)
    assert released["column_id"]["values"]["model_response"] == 68371


def test_the_users_of_all_real_conversations_have_enough_of_them_to_split(real_data) -> None:
    talks = pd.read_csv(real_data("prism_fragments/local_clusters_opening_prompt_0-05.csv"))
    rows = [
        {"user_id": user, "conversation_id": talk, "prompt": "p", "response": "r", "rating": 50}
        for user, talk in talks[["user_id", "conversation_id"]].itertuples(index=False)
    ]
    splits = split_conversations(pd.DataFrame(rows))
    check_splits(pd.DataFrame(rows), splits)
    assert splits["user_id"].nunique() == 1396 and len(splits) == 8011
    assert set(splits.loc[splits["split"] == "train", "user_id"]) == set(talks["user_id"])
