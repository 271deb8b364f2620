"""Who the users say they are: PRISM's nested survey, the demo's, a file of one's own."""

import json
from pathlib import Path

import pandas as pd
import pytest

from steerlib.profiles import read_demographics, read_ratings
from steerlib.profiles.demo.make_demo import HERE
from steerlib.tables import check_table


def survey(folder: Path, rows: list[dict]) -> Path:
    (folder / "survey.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def person(user: str, **changes: object) -> dict:
    religion = {
        "self_described": "none at all",
        "categorised": "Non-religious",
        "simplified": "No Affiliation",
    }
    row = {"user_id": user, "survey_only": False, "age": "18-24 years old", "gender": "Female"}
    return row | {"religion": religion, "location": {"birth_country": "x"}} | changes


def test_prisms_nested_religion_is_read_as_its_coarse_category(tmp_path: Path) -> None:
    folder = survey(
        tmp_path, [person("u0"), person("u1", religion={"categorised": "Sikh"}, gender="Prefer not to say")]
    )
    users = read_demographics("prism", folder)
    check_table("users", users)
    assert users.values.tolist() == [
        ["u0", "18-24 years old", "Female", "No Affiliation"],
        ["u1", "18-24 years old", "Prefer not to say", "Sikh"],
    ]
    assert read_demographics(folder).equals(users)


def test_what_is_missing_is_unknown_and_nobody_is_lost(tmp_path: Path) -> None:
    rows = [person("u0", age=None, religion=None), {"user_id": "u1", "religion": {"simplified": None}}]
    users = read_demographics(survey(tmp_path, rows)).set_index("user_id")
    assert users.loc["u0"].tolist() == ["unknown", "Female", "unknown"]
    assert users.loc["u1"].tolist() == ["unknown"] * 3


def test_a_file_of_ones_own_may_repeat_users_and_lack_fields(tmp_path: Path) -> None:
    own = pd.DataFrame({"user_id": ["b", "a", "b"], "rating": [1, 2, 3], "age": ["", "40", " 30 "]})
    own.to_csv(tmp_path / "mine.csv", index=False)
    users = read_demographics(tmp_path / "mine.csv")
    assert users.values.tolist() == [["b", "30", "unknown", "unknown"], ["a", "40", "unknown", "unknown"]]


def test_contradictions_and_rows_without_a_user_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    pd.DataFrame({"user_id": ["a", "a"], "gender": ["Male", "Female"]}).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"mine.csv: user 'a' has two values of gender, 'Male' and 'Female'"):
        read_demographics(path)
    pd.DataFrame({"user_id": ["a", ""], "gender": ["Male", "Female"]}).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"mine.csv, row 2, column user_id: must name a user"):
        read_demographics(path)
    pd.DataFrame({"user": ["a"]}).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"column 'user_id' is missing; the columns are user"):
        read_demographics(path)
    with pytest.raises(FileNotFoundError, match=r"has no survey.jsonl"):
        read_demographics(tmp_path)
    with pytest.raises(ValueError, match="folder goes with source 'prism', not with 'demo'"):
        read_demographics("demo", tmp_path)


def test_every_user_of_the_demo_has_a_row() -> None:
    users = read_demographics("demo")
    ratings, _ = read_ratings("demo")
    assert set(ratings["user_id"]) == set(users["user_id"])
    assert not users.eq("unknown").any().any()
    assert all(users[field].nunique() >= 2 for field in ("age", "gender", "religion"))


def test_the_demos_religion_moves_neither_age_nor_gender_nor_the_planted_category() -> None:
    rows = pd.read_json(HERE / "survey.jsonl", lines=True)
    assert rows.loc[:2, "age"].tolist() == ["55-64 years old", "18-24 years old", "25-34 years old"]
    assert rows.groupby("planted_category").size().eq(8).all()


def test_the_demos_categories_are_prisms(real_data) -> None:
    entries = json.loads(real_data("prism_fragments/codebook_entries.json").read_text())
    released = {entry["variable_name"]: entry["values"] for entry in entries}
    rows = pd.read_json(HERE / "survey.jsonl", lines=True)
    assert set(rows["age"]) <= set(released["age"])
    assert set(rows["gender"]) <= set(released["gender"])
    for part in ("categorised", "simplified"):
        assert {nested[part] for nested in rows["religion"]} <= set(released[f"religion_{part}"])
