"""Ratings and users: PRISM's, the demo's or those of a file of one's own, checked by row and column, in one schema."""

from collections.abc import Callable, Mapping
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steerlib.profiles.sources import (
    DEMOGRAPHICS,
    PROMPT_CATEGORIES,
    as_id,
    as_text,
    file_label,
    prism_file,
    read_rows,
)
from steerlib.tables import ATTRIBUTE_COLUMNS, SCHEMA, check_table

EMPTY = "EMPTY STRING"  # how PRISM writes an empty text
UNKNOWN = "unknown"
COMMON_WORDS = r"(?i)\b(?:the|and|to|that|you|for|with|this|are|it|be|not|have|was|by|has|she|they|is|a)\b"
REQUIRED = ("user_id", "prompt", "response", "rating")
PRISM_COLUMNS = {
    "prompt": "user_prompt",
    "response": "model_response",
    "rating": "score",
    "chosen": "if_chosen",
    "prompt_category": "conversation_type",
}
PRISM_TYPES = {
    "unguided": "benign_control",
    "values guided": "safe_sensitive",
    "controversy guided": "context_dependent",
}
"""What PRISM asked its participants to talk about (anything; what matters to them, such as religion or family; what
people around them disagree on; Kirk et al., arXiv 2404.16019, sec. 2) and the kind of prompt that we take it for."""


def read_ratings(
    source: str | Path = "demo", *, last_turn: int = 0, min_ratings: int = 1, revision: str = "main"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rated responses in one schema, and a count of what was dropped or odd.

    Args:
        source: see `prism_file`. A file of one's own has user_id, prompt, response, rating and, if it has them,
            conversation_id (else one a user and prompt), utterance_id, turn (else 0), chosen (else the highest rated
            of a turn, the first in a tie), prompt_category.
        last_turn: later turns are dropped. Turns after 0 compare two samples of one model, so profiles and pairs
            are made from turn 0; prompts may come from a later one.
        min_ratings: users with fewer rated responses in turn 0, after the other drops, are dropped.

    Returns:
        ratings: the table `ratings` in the order of the file, but for the six attributes that `with_toxicity` adds.
        report: what, count; names the file, its SHA-256 and, from the hub, its commit.

    Raises:
        ValueError: a bad value, named by file, row (the first is 1) and column; nothing left.
        FileNotFoundError: no such file or folder, or the hub cannot be reached.

    Source: PRISM data card and codebook (the literal "EMPTY STRING", duplicate chosen answers in later turns).
    """
    path = prism_file(source, "utterances.jsonl", revision)
    rows = read_rows(path)
    table, merged = _checked(rows, path.name)
    counts = {f"rows of {file_label(path)}": len(table), "ids written in two ways, made one": merged}

    empty = table[["prompt", "response"]].eq(EMPTY).any(axis=1)
    counts[f'empty texts ("{EMPTY}") dropped'] = int(empty.sum())
    table = table[~empty]
    from_1 = bool(table["turn"].min() == 1)  # as in PRISM's paper; its data count from 0
    counts["conversations counted from turn 1, moved to 0"] = table["conversation_id"].nunique() * from_1
    table = table.assign(turn=table["turn"] - int(from_1))
    turn = ["conversation_id", "turn"]
    again = table[table["chosen"]].duplicated(turn).reindex(table.index, fill_value=False)
    counts["further chosen responses of a turn, first kept"] = int(again.sum())
    later = table["turn"] > last_turn
    counts[f"responses after turn {last_turn} dropped"] = int(later.sum())
    table = table.assign(chosen=table["chosen"] & ~again)[~later]
    top = table[table["rating"] == table.groupby(turn)["rating"].transform("max")]
    counts["turns with a tie for the highest rating"] = int((top.groupby(turn).size() > 1).sum())
    counts["turns without a chosen response"] = table.groupby(turn).ngroups - int(table["chosen"].sum())
    few = table["turn"].eq(0).groupby(table["user_id"]).transform("sum") < min_ratings
    counts[f"users with fewer than {min_ratings} ratings dropped"] = table.loc[few, "user_id"].nunique()
    counts["ratings of those users dropped"] = int(few.sum())
    table = table[~few].reset_index(drop=True)

    if table.empty:
        raise ValueError(f"{path.name}: no rating is left of {len(rows)} (min_ratings {min_ratings})")
    foreign = int(looks_foreign(table["response"]).sum())
    if foreign:
        counts["answers that do not look English, which the toxicity scorers do not know"] = foreign
    kept = {"ratings": "utterance_id", "users": "user_id", "conversations": "conversation_id"}
    counts |= {f"{what} kept": table[column].nunique() for what, column in kept.items()}
    return table, pd.DataFrame({"what": list(counts), "count": list(counts.values())})


def looks_foreign(texts: pd.Series) -> pd.Series:
    """Whether each text looks like another language than English.

    It does if most letters are not Latin, or if less than 6 % of 12 or more words are among English's commonest.
    """
    letters, words = texts.str.count(r"[^\W\d_]"), texts.str.count(r"[^\W\d_]+")
    unusual = (words >= 12) & (texts.str.count(COMMON_WORDS) < 0.06 * words)
    return unusual | (letters > 2 * texts.str.count("[A-Za-z]"))


def with_toxicity(ratings: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """The run's table `ratings`: what `read_ratings` returned with `checked_scores` of each response."""
    scored = ratings.reset_index(drop=True)
    scored[list(ATTRIBUTE_COLUMNS)] = checked_scores(scores, len(ratings))
    return check_table("ratings", scored)


def checked_scores(scores: pd.DataFrame, n: int) -> np.ndarray:
    """The six scores of n texts, `(n, 6)`; a ValueError for other rows or a score missing or outside [0, 1]."""
    if len(scores) != n:
        raise ValueError(f"{n} texts but {len(scores)} rows of scores")
    values = scores[list(ATTRIBUTE_COLUMNS)].to_numpy(dtype=np.float64)
    for row, column in np.argwhere(~((values >= 0) & (values <= 1)))[:1]:
        name = ATTRIBUTE_COLUMNS[column]
        raise ValueError(f"scores, row {row + 1}, column {name}: must be in 0..1, not {values[row, column]}")
    return values


def read_demographics(source: str | Path = "demo", *, revision: str = "main") -> pd.DataFrame:
    """The table `users`: what people said about themselves, in the categories of the source.

    Of PRISM's nested religion the coarse category is taken (`simplified`), else the finer one (`categorised`). What is
    missing is "unknown"; "Prefer not to say" is an answer and stays. Users are in the order of the file, those without
    a rating too. Source, revision and errors as for `read_ratings`; a file of one's own has user_id and, if it has
    them, age, gender, religion, and may name a user many times, but not with two values of a field.

    Source: PRISM codebook. Its 12 finer religions and its self-descriptions are not used: most are too rare for
    a subgroup, and free text may identify a person.
    """
    path = prism_file(source, "survey.jsonl", revision)
    rows = read_rows(path)
    users = pd.DataFrame({"user_id": _column(rows, "user_id", "user_id", path.name)})
    for field in DEMOGRAPHICS:
        users[field] = [_category(value) for value in rows[field]] if field in rows else None
        values = users.dropna(subset=field).groupby("user_id")[field].unique()
        for user, found in values[values.map(len) > 1].items():
            both = f"{found[0]!r} and {found[1]!r}"
            raise ValueError(f"{path.name}: user {user!r} has two values of {field}, {both}")
    known = users.astype(object).groupby("user_id", sort=False)[list(DEMOGRAPHICS)].first()
    return check_table("users", known.fillna(UNKNOWN).reset_index())


def _category(value: Any) -> str | None:
    return as_id(value.get("simplified") or value.get("categorised") if isinstance(value, dict) else value)


def _prism_text(value: Any) -> str | None:
    return EMPTY if isinstance(value, str) and not value.strip() else as_text(value)


def _number(value: Any, low: float, high: float) -> float | None:
    known = isinstance(value, str | Number) and not isinstance(value, bool) and "_" not in str(value)
    try:
        number = float(value if known else "nan")
    except (TypeError, ValueError, OverflowError):
        return None
    return number if low <= number <= high else None


def _turn(value: Any) -> int | None:
    number = _number(value, 0, 1e6)
    return int(number) if number is not None and number == int(number) else None


def _truth(value: Any) -> bool | None:
    text = str(value).strip().lower()
    return True if text in ("true", "1", "1.0") else False if text in ("false", "0", "0.0") else None


def _label(value: Any) -> str | None:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    known = isinstance(value, str) and value in ("", *PROMPT_CATEGORIES, *PRISM_TYPES)
    return PRISM_TYPES.get(value, value) if known else None


PARSERS: Mapping[str, tuple[Callable[[Any], object | None], str]] = {
    "user_id": (as_id, "must name a user"),
    "conversation_id": (as_id, "must name a conversation"),
    "utterance_id": (as_id, "must name a response"),
    "turn": (_turn, "must be 0, 1, 2, ..."),
    "prompt": (as_text, "must be text that is not empty"),
    "response": (as_text, "must be text that is not empty"),
    "rating": (lambda value: _number(value, 1, 100), "must be a number in 1..100"),
    "chosen": (_truth, "must be true or false"),
    "prompt_category": (_label, f"must be empty or one of {', '.join((*PROMPT_CATEGORIES, *PRISM_TYPES))}"),
}
"""What makes a value of each column, or None where it is not one; and the rule in words."""


def _column(rows: pd.DataFrame, ours: str, theirs: str, file: str) -> list[object]:
    if theirs not in rows:
        raise ValueError(f"{file}: column {theirs!r} is missing; the columns are {', '.join(map(str, rows))}")
    parse, rule = PARSERS[ours]
    parse = _prism_text if theirs in ("user_prompt", "model_response") else parse
    values = [parse(value) for value in rows[theirs].astype(object)]
    if None in values:
        row = values.index(None)
        shown = repr(rows[theirs].iloc[row])[:40]
        raise ValueError(f"{file}, row {row + 1}, column {theirs}: {rule}, not {shown}")
    return values


def _checked(rows: pd.DataFrame, file: str) -> tuple[pd.DataFrame, int]:
    """Rows under our column names and types, what the file leaves out filled in; how many ids were made one."""
    is_prism = "model_response" in rows or file == "utterances.jsonl"
    renamed = PRISM_COLUMNS if is_prism else {}
    table, merged = pd.DataFrame(index=rows.index), 0
    for name in PARSERS:
        theirs = name if name in rows else renamed.get(name, name)
        if theirs in rows or name in REQUIRED:
            table[name] = _column(rows, name, theirs, file)
        if name.endswith("_id") and name in table:
            merged += rows[name].astype(str).nunique() - table[name].nunique()
    if "conversation_id" not in table:
        talk = table.groupby(["user_id", "prompt"], sort=False).ngroup().add(1).astype(str)
        table["conversation_id"] = "conversation" + talk
    if "utterance_id" not in table:
        table["utterance_id"] = [f"row{number}" for number in range(1, len(table) + 1)]
    repeated = table["utterance_id"].duplicated()
    if repeated.any():
        row = int(repeated.argmax())
        name = table["utterance_id"].iloc[row]
        raise ValueError(f"{file}, row {row + 1}, column utterance_id: {name!r} stands there twice")
    if "turn" not in table:
        table["turn"] = 0
    if "chosen" not in table:
        best_first = table.sort_values("rating", ascending=False, kind="stable")
        table["chosen"] = ~best_first.duplicated(["conversation_id", "turn"])
    if "prompt_category" not in table:
        table["prompt_category"] = ""
    return table[[name for name in SCHEMA["ratings"].columns if name not in ATTRIBUTE_COLUMNS]], merged
