"""The one schema of ratings, checked before any work: a bad value is named by file, row and column."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

PROMPT_CATEGORIES = ("benign_control", "context_dependent", "harmful_borderline", "safe_sensitive")
REQUIRED = ("user_id", "prompt", "response", "rating")
OPTIONAL = ("conversation_id", "utterance_id", "turn", "chosen", "prompt_category")
OWN_COLUMNS: Mapping[str, str] = {name: name for name in (*REQUIRED, *OPTIONAL)}
PRISM_COLUMNS: Mapping[str, str] = {
    **OWN_COLUMNS,
    "prompt": "user_prompt",
    "response": "model_response",
    "rating": "score",
    "chosen": "if_chosen",
}
TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def checked_ratings(rows: pd.DataFrame, columns: Mapping[str, str], file: str) -> pd.DataFrame:
    """Rows under our column names and types, or a refusal; absent optional columns stay absent.

    Args:
        rows: as read; the first row is row 1.
        columns: our name of each column -> the file's.
        file: name of the file, for the message.

    Raises:
        ValueError: a column is missing, a rating is no number or outside 1..100, a text is empty, an id is
            missing or repeated, `chosen`, `turn` or `prompt_category` is not one of its values.
    """
    missing = [columns[name] for name in REQUIRED if columns[name] not in rows]
    if missing:
        has = ", ".join(map(str, rows.columns))
        raise ValueError(f"{file}: column {missing[0]!r} is missing; the columns are {has}")
    table = pd.DataFrame(index=rows.index)
    for name, (valid, convert, rule) in RULES.items():
        if columns[name] not in rows:
            continue
        values = rows[columns[name]].astype(object)
        bad = ~values.map(valid).astype(bool)
        if bad.any():
            raise ValueError(f"{_place(file, bad, columns[name])} {rule}, not {_short(values[bad].iloc[0])}")
        table[name] = values.map(convert)
    if "utterance_id" in table and table["utterance_id"].duplicated().any():
        again = table["utterance_id"].duplicated()
        repeated = table.loc[again, "utterance_id"].iloc[0]
        raise ValueError(f"{_place(file, again, columns['utterance_id'])} {repeated!r} stands there twice")
    return table


def _place(file: str, bad: pd.Series, column: str) -> str:
    return f"{file}, row {int(bad.to_numpy().argmax()) + 1}, column {column}:"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _absent(value: object) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or value != value


def _is_id(value: Any) -> bool:
    return not _absent(value) and bool(str(value).strip())


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_rating(value: Any) -> bool:
    number = _number(value)
    return number is not None and 1 <= number <= 100


def _is_turn(value: Any) -> bool:
    number = _number(value)
    return number is not None and number >= 0 and number == int(number)


def _number(value: Any) -> float | None:
    """The value as a finite number; None where it is not one. True is not 1 here."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None


def _is_truth(value: Any) -> bool:
    return str(value).strip().lower() in TRUTH


def _is_category(value: Any) -> bool:
    return _absent(value) or value == "" or value in PROMPT_CATEGORIES


Rule = tuple[Callable[[Any], bool], Callable[[Any], object], str]
RULES: Mapping[str, Rule] = {
    "user_id": (_is_id, str, "must name a user"),
    "conversation_id": (_is_id, str, "must name a conversation"),
    "utterance_id": (_is_id, str, "must name a response"),
    "turn": (_is_turn, lambda value: int(float(value)), "must be 0, 1, 2, ..."),
    "prompt": (_is_text, str, "must be text that is not empty"),
    "response": (_is_text, str, "must be text that is not empty"),
    "rating": (_is_rating, float, "must be a number in 1..100"),
    "chosen": (_is_truth, lambda value: TRUTH[str(value).strip().lower()], "must be true or false"),
    "prompt_category": (
        _is_category,
        lambda value: "" if _absent(value) else value,
        f"must be empty or one of {', '.join(PROMPT_CATEGORIES)}",
    ),
}
