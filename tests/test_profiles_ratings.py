"""Ratings and users: one schema, bad input refused by file, row and column, PRISM's oddities counted."""

import csv
import gzip
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import huggingface_hub
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlib.profiles import read_demographics, read_ratings, sources, with_toxicity
from steerlib.profiles.sources import UNSTORABLE, read_rows
from steerlib.tables import ATTRIBUTE_COLUMNS, PROGRESS_FILE

OWN = pd.DataFrame(
    {
        "user_id": ["ann", "ann", "bob"],
        "prompt": ["Hello", "Hello", "Hi"],
        "response": ["Good day", "Go away", "NA"],
        "rating": ["90", "1", "55.5"],
    }
)
HEADER = "user_id,prompt,response,rating\n"


def prism_row(utterance: int, **changes: object) -> dict:
    row = {
        "utterance_id": f"ut{utterance}",
        "conversation_id": "c0",
        "user_id": "user0",
        "turn": 0,
        "conversation_type": "unguided",
        "user_prompt": "Hello",
        "model_response": f"Answer {utterance}",
        "model_name": "read by no one",
        "score": 50 + utterance,
        "if_chosen": False,
    }
    return row | changes


def prism_folder(folder: Path, rows: list[dict], name: str = "utterances.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def counts(report: pd.DataFrame) -> dict[str, int]:
    return dict(zip(report["what"], report["count"], strict=True))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_a_file_of_ones_own_needs_four_columns(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"mine.{ending}"
    if ending == "csv":
        OWN.rename(columns={"rating": " rating "}).to_csv(path, encoding="utf-8-sig")  # row numbers, a BOM
    else:
        OWN.to_json(path, orient="records", lines=ending == "jsonl")
        path.write_text(f"\n{path.read_text()}\n\n", encoding="utf-8-sig")
    ratings, report = read_ratings(path)
    assert ratings["rating"].tolist() == [90.0, 1.0, 55.5]
    assert ratings["response"].tolist()[2] == "NA"  # a text, not a missing value
    assert ratings["conversation_id"].tolist() == ["conversation1", "conversation1", "conversation2"]
    assert ratings["chosen"].tolist() == [True, False, True]
    assert counts(report)["users kept"] == 2
    assert "sha256" in report["what"][0]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("rating", value) for value in (None, True, [1], {"a": 1}, 10**400, float("nan"), 0)),
        *(("rating", value) for value in ("100.5", "good", "nan", "", "1_0", "1e999")),
        *(("user_id", value) for value in (["a"], {}, None, True, 0.5, float("inf"), " ")),
        *(("response", value) for value in (7, ["a"], "a\0b", " ")),
        *(("prompt_category", value) for value in (["unguided"], 1, "rude")),
        *(("turn", value) for value in ([0], 1e300, "-1", "0.5")),
        ("chosen", "maybe"),
        ("utterance_id", "u0"),  # stands there twice
        ("conversation_id", ""),
    ],
)
def test_a_bad_value_is_refused_naming_its_row_and_column(tmp_path: Path, column: str, value: object) -> None:
    full = OWN.assign(turn="0", chosen="true", prompt_category="", conversation_id="c")
    rows = full.assign(utterance_id=["u0", "u1", "u2"]).to_dict("records")
    rows[1][column] = value
    path = prism_folder(tmp_path, rows, "mine.jsonl") / "mine.jsonl"
    with pytest.raises(ValueError, match=rf"^mine.jsonl, row 2, column {column}: .*\Z"):
        read_ratings(path)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.csv", HEADER + '\nu1,"h\ni",ok,50\n\nu1,hi,ok\n', "a.csv, line 6: 3 fields"),
        ("a.csv", HEADER + 'u1,hi,"ok,50\nu1,hi,ok,50\n', "a.csv, line 2: unexpected end of data"),
        ("a.csv", "user_id,rating,rating \nu,1,2\n", "a.csv: the name 'rating' stands twice"),
        ("a.csv", HEADER, "a.csv has no rows"),
        ("a.csv", (HEADER + "u,caf\u00e9,b,5\n").encode("latin-1"), "a.csv, line 2: byte 0xe9 .* UTF-8"),
        ("a.csv", HEADER + "u,a\0,b,5\n", "a.csv, line 2: byte 0x00"),
        ("a.jsonl", '{"user_id": "a"}\n\n{"user_id"\n', "a.jsonl, line 3: not JSON"),
        ("a.jsonl", '{"rating": 1, "rating": 2}\n', "a.jsonl, line 1: .*'rating' stands twice"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: not JSON"),
        ("a.jsonl", '{"a": {"b": ["\\u0000"]}}\n', "a.jsonl, row 1, column a: .* NUL"),
        ("a.jsonl.gz", gzip.compress(b'{"rating": 1}\n' * 99)[:-9], "a.jsonl.gz: cannot be read"),
        ("a.parquet", b"PAR1", "a.parquet: "),
        ("a.xlsx", "", "a.xlsx: its ending must be"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(tmp_path, name, content, named):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"^{named}.*\Z"):  # on one line
        read_ratings(tmp_path / name)


TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("\0\ud800\udc80\"',\r\n\ufeff\u2028"))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_any_text_in_any_column_comes_back_or_is_refused(tmp_path_factory, ending, rows) -> None:
    path = tmp_path_factory.mktemp("rows") / f"a.{ending}"
    frame = pd.DataFrame(rows, columns=["one", "two"], dtype=object)
    try:
        if ending == "csv":
            frame.to_csv(path, index=False, quoting=csv.QUOTE_ALL)  # pandas leaves a lone \r without quotes
        elif ending == "parquet":
            frame.to_parquet(path)
        else:
            records = [json.dumps(row) for row in frame.to_dict("records")]
            path.write_text(f"[{', '.join(records)}]" if ending == "json" else "\n".join(records))
    except UnicodeEncodeError:
        return
    bad = any(UNSTORABLE.search(text) for row in rows for text in row)
    with pytest.raises(ValueError, match=r"^a\.") if bad else nullcontext():
        assert read_rows(path).to_numpy().tolist() == list(map(list, rows))


def test_ids_written_in_two_ways_and_answers_in_other_languages_are_counted(tmp_path: Path) -> None:
    users = ["u1", "u1 ", "1", "1.0", "caf\u00e9", "cafe\u0301"]
    answers = [
        "Привет, мир",
        "Hello мир",
        "Ik denk dat het in de zomer beter is om vroeg op te staan en eerst naar de markt te gaan voor groenten.",
        "I do not know why he left so early without a word to the friends who waited for him at the station.",
    ]
    own = OWN.iloc[[0] * 6].assign(user_id=users, response=[*answers, "Good", "Day"])
    own.to_csv(tmp_path / "mine.csv", index=False)
    ratings, report = read_ratings(tmp_path / "mine.csv")
    assert ratings["user_id"].tolist() == ["u1", "u1", "1", "1", "caf\u00e9", "caf\u00e9"]
    assert counts(report)["ids written in two ways, made one"] == 3
    assert [count for what, count in counts(report).items() if "English" in what] == [2]


def test_many_ratings_are_read_in_blocks_with_a_bar(tmp_path: Path, monkeypatch, capsys) -> None:
    blocks: list[int] = []
    monkeypatch.setattr(sources, "_storable", lambda rows, *_: blocks.append(len(rows)) or rows)
    monkeypatch.delenv(PROGRESS_FILE, raising=False)
    monkeypatch.setattr(sources, "LARGE", 0)
    n = 11_000
    frame = pd.DataFrame({"user_id": "u", "prompt": [f"prompt {i}" for i in range(n)], "rating": 1})
    frame.assign(response="a long answer " * 6).to_csv(tmp_path / "many.csv", index=False)
    ratings, _ = read_ratings(tmp_path / "many.csv")
    assert ratings["prompt"].tolist() == frame["prompt"].tolist()
    assert blocks == [10_000, 1_000]
    assert "reading many.csv: 100%" in capsys.readouterr().err


@pytest.mark.slow
def test_two_hundred_thousand_ratings_are_read_in_bounded_memory(tmp_path: Path) -> None:
    words, n = "with some more words " * 14, 200_000
    with (tmp_path / "many.csv").open("w") as file:  # row by row: this process's own memory counts too
        file.write(HEADER)
        file.writelines(f"u{i // 50},prompt {i // 4},answer {i} {words},{1 + i % 100}\n" for i in range(n))
    code = "import resource, sys; from pathlib import Path; from steerlib.profiles import read_ratings\n"
    code += "rows = len(read_ratings(Path(sys.argv[1]))[0])\n"
    code += "print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    run = [sys.executable, "-c", code, str(tmp_path / "many.csv")]
    found = subprocess.run(run, capture_output=True, text=True, check=True)
    rows, peak = map(int, found.stdout.split())
    assert rows == n and peak < 700_000  # kB, Python and its libraries included


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no utterances.jsonl"):
        read_ratings(tmp_path)
    OWN.to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(ValueError, match="min_ratings 50"):
        read_ratings(tmp_path / "mine.csv", min_ratings=50)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"^utterances\.jsonl.*name a folder.*\Z"):
        read_ratings("prism")


def test_prism_rows_are_renamed_and_its_oddities_counted(tmp_path: Path) -> None:
    rows = [
        prism_row(0, score=90, if_chosen=True, conversation_type="values guided"),
        prism_row(1, score=90),
        prism_row(2, model_response="EMPTY STRING"),
        prism_row(3, model_response="  \n"),
        prism_row(4, turn=1, model_response="Same", if_chosen=True),
        prism_row(5, turn=1, model_response="Same", if_chosen=True),
        prism_row(6, user_id="user1", conversation_id="c1"),
    ]
    folder = prism_folder(tmp_path, rows)
    ratings, report = read_ratings(folder, min_ratings=2)
    assert ratings["utterance_id"].tolist() == ["ut0", "ut1"]
    assert ratings.loc[0, ["prompt", "response", "rating"]].tolist() == ["Hello", "Answer 0", 90.0]
    assert ratings["prompt_category"].tolist() == ["safe_sensitive", "benign_control"]
    found = counts(report)
    assert found['empty texts ("EMPTY STRING") dropped'] == 2
    assert found["further chosen responses of a turn, first kept"] == 1
    assert found["responses after turn 0 dropped"] == 2
    assert found["turns with a tie for the highest rating"] == 1
    assert found["turns without a chosen response"] == 1
    assert found["users with fewer than 2 ratings dropped"] == 1
    later, _ = read_ratings(folder, last_turn=1, min_ratings=2)
    assert set(later["user_id"]) == set(ratings["user_id"])  # later turns make nobody a user


def test_turns_counted_from_1_are_moved_to_0_and_counted(tmp_path: Path) -> None:
    rows = [prism_row(0, turn=1), prism_row(1, turn=2), prism_row(2, turn=1, conversation_id="c1")]
    ratings, report = read_ratings(prism_folder(tmp_path, rows))
    assert ratings["utterance_id"].tolist() == ["ut0", "ut2"] and ratings["turn"].eq(0).all()
    assert counts(report)["conversations counted from turn 1, moved to 0"] == 2


def test_prism_in_the_hubs_cache_is_read_at_the_revision_named_and_its_commit_told(monkeypatch, tmp_path):
    asked, cached = {}, tmp_path / "snapshots" / "abc123"
    cached.mkdir(parents=True)

    def fetched(dataset: str, name: str, **options: object) -> str:
        asked.update(options, dataset=dataset)
        return str(prism_folder(cached, [prism_row(0)]) / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    ratings, report = read_ratings("prism", revision="abc")
    assert len(ratings) == 1
    assert asked["dataset"] == "HannahRoseKirk/prism-alignment" and asked["revision"] == "abc"
    assert report["what"][0].startswith("rows of utterances.jsonl, commit abc123, sha256 ")


def test_toxicity_is_joined_row_by_row() -> None:
    scores = pd.DataFrame({name: [0.1, 0.2, 0.3] for name in ATTRIBUTE_COLUMNS}, index=[7, 8, 9])
    ratings = read_ratings("demo")[0].head(3)
    assert with_toxicity(ratings, scores)["threat"].tolist() == [0.1, 0.2, 0.3]


def person(user: str, **changes: object) -> dict:
    religion = {"categorised": "Non-religious", "simplified": "No Affiliation"}
    return {"user_id": user, "age": "18-24 years old", "gender": "Female", "religion": religion} | changes


def test_prisms_nested_religion_is_read_as_its_coarse_category_and_what_is_missing_is_unknown(tmp_path):
    sikh = person("u1", religion={"categorised": "Sikh"}, gender="Prefer not to say")
    nobody = person("u2", age=None, gender=None, religion={"simplified": None})
    folder = prism_folder(tmp_path, [person("u0"), sikh, nobody], "survey.jsonl")
    users = read_demographics(folder)
    assert users.values.tolist() == [
        ["u0", "18-24 years old", "Female", "No Affiliation"],
        ["u1", "18-24 years old", "Prefer not to say", "Sikh"],
        ["u2", "unknown", "unknown", "unknown"],
    ]
    prism_folder(tmp_path, [prism_row(0)])
    assert read_demographics(folder / "utterances.jsonl").equals(users)  # a file stands for its folder


def test_a_file_of_ones_own_may_repeat_users_but_not_contradict_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    pd.DataFrame({"user_id": ["b", "a", "b"], "age": ["", "40", " 30 "]}).to_csv(path, index=False)
    users = read_demographics(path)
    assert users.values.tolist() == [["b", "30", "unknown", "unknown"], ["a", "40", "unknown", "unknown"]]
    pd.DataFrame({"user_id": ["a", "a"], "gender": ["Male", "Female"]}).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"mine.csv: user 'a' has two values of gender"):
        read_demographics(path)
