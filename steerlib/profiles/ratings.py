"""Ratings of responses by users: PRISM, a file of one's own, or the demo set, as one table."""

from pathlib import Path

import numpy as np
import pandas as pd

from steerlib.profiles.columns import OWN_COLUMNS, PRISM_COLUMNS, checked_ratings
from steerlib.profiles.sources import file_label, hub_file, read_rows
from steerlib.tables import ATTRIBUTE_COLUMNS, SCHEMA, check_table

PRISM = "HannahRoseKirk/prism-alignment"
DEMO = Path(__file__).parent / "demo"
EMPTY = "EMPTY STRING"
COLUMNS = [name for name in SCHEMA["ratings"].columns if name not in ATTRIBUTE_COLUMNS]


def read_ratings(
    source: str | Path = "demo",
    *,
    folder: str | Path | None = None,
    turns: str = "first",
    min_ratings: int = 1,
    revision: str = "main",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rated responses in one schema, and a count of what was dropped or odd.

    Args:
        source: "demo" (synthetic); "prism" (from the hub, or from `folder`); a folder with PRISM's
            utterances.jsonl; or a .csv, .jsonl or .parquet file with user_id, prompt, response, rating and,
            if it has them, conversation_id (else one a user and prompt), utterance_id, turn (else 0), chosen
            (else the highest rated of a turn, the first in a tie), prompt_category.
        folder: with source="prism", the local folder to read instead of the hub.
        turns: "first" drops the later turns, which compare two samples of one model; "all" keeps them.
        min_ratings: users with fewer rated responses, after the other drops, are dropped.
        revision: of the hub's data set; name a commit to hold a study to it.

    Returns:
        ratings: user_id, conversation_id, utterance_id, turn, prompt, response, rating, chosen,
            prompt_category; in the order of the file. `with_toxicity` adds the six attributes.
        report: what, count; names the file and its SHA-256.

    Raises:
        ValueError: a bad value, named by file, row (the first is 1) and column; unknown `turns`; nothing
        left.
        FileNotFoundError: no such file or folder, or the hub cannot be reached.

    Source: PRISM data card and codebook (the literal "EMPTY STRING", duplicate chosen answers in later
    turns).
    """
    if turns not in ("first", "all"):
        raise ValueError(f"turns must be 'first' or 'all', not {turns!r}")
    path = _find(source, folder, revision)
    rows = read_rows(path)
    if "model_response" in rows or path.name == "utterances.jsonl":
        rows = _blank_to_empty(rows)
        checked = checked_ratings(rows, PRISM_COLUMNS, path.name)
    else:
        checked = checked_ratings(rows, OWN_COLUMNS, path.name)
    counts = {f"rows of {file_label(path)}": len(checked)}
    ratings = _clean(_filled(checked), counts, turns, min_ratings)
    if ratings.empty:
        raise ValueError(f"{path.name}: no rating is left of {len(checked)} (min_ratings {min_ratings})")
    kept = {"ratings": "utterance_id", "users": "user_id", "conversations": "conversation_id"}
    counts |= {f"{what} kept": ratings[column].nunique() for what, column in kept.items()}
    return ratings, pd.DataFrame({"what": list(counts), "count": list(counts.values())})


def with_toxicity(ratings: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """The run's table `ratings`: rated responses with their six toxicity scores.

    Args:
        ratings: what `read_ratings` returned.
        scores: six attributes in [0, 1], row for row those of `ratings["response"]`; the index is not used.

    Raises:
        ValueError: other numbers of rows, or a score that is missing or outside [0, 1].
    """
    if len(ratings) != len(scores):
        raise ValueError(f"{len(ratings)} ratings but {len(scores)} rows of scores")
    values = scores[list(ATTRIBUTE_COLUMNS)].to_numpy(dtype=np.float64)
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        name = ATTRIBUTE_COLUMNS[column]
        raise ValueError(f"scores, row {row + 1}, column {name}: must be in 0..1, not {values[row, column]}")
    scored = ratings.reset_index(drop=True)
    scored[list(ATTRIBUTE_COLUMNS)] = values
    return check_table("ratings", scored)


def _find(source: str | Path, folder: str | Path | None, revision: str) -> Path:
    """The file that a source stands for."""
    if folder is not None and str(source) != "prism":
        raise ValueError(f"folder goes with source 'prism', not with {str(source)!r}")
    if str(source) == "demo":
        return DEMO / "utterances.jsonl"
    if str(source) == "prism" and folder is None:
        return hub_file(PRISM, "utterances.jsonl", revision=revision)
    place = Path(folder) if folder is not None else Path(source)
    if not place.is_dir():
        return place
    if not (place / "utterances.jsonl").is_file():
        raise FileNotFoundError(f"{place} has no utterances.jsonl")
    return place / "utterances.jsonl"


def _blank_to_empty(rows: pd.DataFrame) -> pd.DataFrame:
    """PRISM writes an empty text as "EMPTY STRING"; one of spaces only is as empty."""
    rows = rows.copy()
    for column in rows.columns.intersection(["user_prompt", "model_response"]):
        rows[column] = [
            EMPTY if isinstance(text, str) and not text.strip() else text for text in rows[column]
        ]
    return rows


def _filled(table: pd.DataFrame) -> pd.DataFrame:
    """Optional columns that the file does not have, each with its default."""
    table = table.copy()
    if "conversation_id" not in table:
        talk = table.groupby(["user_id", "prompt"], sort=False).ngroup().add(1).astype(str)
        table["conversation_id"] = "conversation" + talk
    if "utterance_id" not in table:
        table["utterance_id"] = [f"row{number}" for number in range(1, len(table) + 1)]
    if "turn" not in table:
        table["turn"] = 0
    if "chosen" not in table:
        best_first = table.sort_values("rating", ascending=False, kind="stable")
        table["chosen"] = ~best_first.duplicated(["conversation_id", "turn"])
    if "prompt_category" not in table:
        table["prompt_category"] = ""
    return table[COLUMNS]


def _clean(table: pd.DataFrame, counts: dict[str, int], turns: str, min_ratings: int) -> pd.DataFrame:
    """Without what must not enter a profile; every drop and every oddity is counted."""
    empty = table["response"].eq(EMPTY) | table["prompt"].eq(EMPTY)
    counts[f'empty texts ("{EMPTY}") dropped'] = int(empty.sum())
    table = table[~empty]
    turn = ["conversation_id", "turn"]
    again = table["chosen"] & table[table["chosen"]].duplicated(turn).reindex(table.index, fill_value=False)
    counts["further chosen responses of a turn, first kept"] = int(again.sum())
    table = table.assign(chosen=table["chosen"] & ~again)
    later = table["turn"] > 0
    counts["responses of later turns" + (" dropped" if turns == "first" else " kept")] = int(later.sum())
    table = table[~later] if turns == "first" else table
    top = table["rating"].eq(table.groupby(turn)["rating"].transform("max"))
    counts["turns with a tie for the highest rating"] = int((table[top].groupby(turn).size() > 1).sum())
    counts["turns without a chosen response"] = int((~table.groupby(turn)["chosen"].any()).sum())
    few = table.groupby("user_id")["rating"].transform("size") < min_ratings
    counts[f"users with fewer than {min_ratings} ratings dropped"] = table.loc[few, "user_id"].nunique()
    counts["ratings of those users dropped"] = int(few.sum())
    return table[~few].reset_index(drop=True)
