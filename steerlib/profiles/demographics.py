"""Age, gender and religion of users, for subgroups: PRISM's survey, the demo's, or a file of one's own."""

from pathlib import Path
from typing import Any

import pandas as pd

from steerlib.profiles.ratings import find_file
from steerlib.profiles.sources import read_rows
from steerlib.tables import check_table

UNKNOWN = "unknown"
DEMOGRAPHICS = ("age", "gender", "religion")


def read_demographics(
    source: str | Path = "demo", folder: str | Path | None = None, *, revision: str = "main"
) -> pd.DataFrame:
    """The table `users`: what people said about themselves, in the categories of the source.

    Takes the same source as `read_ratings`. Of PRISM's nested religion the coarse category is taken
    (`simplified`), else the finer one (`categorised`). What is missing is "unknown"; "Prefer not to say" is an
    answer and stays.

    Args:
        source: "demo" (synthetic); "prism" (from the hub, or from `folder`); a folder with PRISM's survey.jsonl;
            or a .csv, .jsonl or .parquet file with user_id and, if it has them, age, gender, religion; users may
            stand there many times, as in a file of ratings.
        folder: with source="prism", the local folder to read instead of the hub.
        revision: of the hub's data set.

    Returns:
        user_id, age, gender, religion; in the order of the file, users without a rating too.

    Raises:
        ValueError: no user_id in a row, or two values of a field for one user, named.
        FileNotFoundError: no such file, no survey in the folder, or the hub cannot be reached.

    Source: PRISM codebook. Its 12 finer religions and its self-descriptions are not used: most are too rare for
    a subgroup, and free text may identify a person.
    """
    path = find_file(source, folder, revision, "survey.jsonl")
    rows = read_rows(path)
    if "user_id" not in rows:
        raise ValueError(
            f"{path.name}: column 'user_id' is missing; the columns are {', '.join(map(str, rows.columns))}"
        )
    empty = rows["user_id"].map(_plain) == UNKNOWN
    if empty.any():
        raise ValueError(
            f"{path.name}, row {int(empty.to_numpy().argmax()) + 1}, column user_id: must name a user"
        )
    users = pd.DataFrame({"user_id": rows["user_id"].astype(str)})
    for field in DEMOGRAPHICS:
        users[field] = rows[field].map(_plain) if field in rows else UNKNOWN
    return check_table("users", _one_row_each(users, path.name))


def _plain(value: Any) -> str:
    """A category as text; of a nested field the coarse category."""
    if isinstance(value, dict):
        value = value.get("simplified") or value.get("categorised")
    missing = value is None or value is pd.NA or value is pd.NaT or value != value
    return UNKNOWN if missing or not str(value).strip() else str(value).strip()


def _one_row_each(users: pd.DataFrame, file: str) -> pd.DataFrame:
    """A known value goes before an unknown one; two known ones contradict each other."""
    known = users.replace({field: {UNKNOWN: None} for field in DEMOGRAPHICS})
    for field in DEMOGRAPHICS:
        values = known.dropna(subset=field).groupby("user_id")[field].unique()
        for user, found in values[values.map(len) > 1].items():
            both = " and ".join(map(repr, map(str, found[:2])))
            raise ValueError(f"{file}: user {user!r} has two values of {field}, {both}")
    return known.groupby("user_id", sort=False)[list(DEMOGRAPHICS)].first().fillna(UNKNOWN).reset_index()
