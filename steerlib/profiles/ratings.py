"""Ratings of responses by users: PRISM, a file of one's own, or the demo set, as one table."""

from pathlib import Path

import numpy as np
import pandas as pd

from steerlib.profiles.cleaning import blank_to_empty, cleaned, filled
from steerlib.profiles.columns import OWN_COLUMNS, PRISM_COLUMNS, checked_ratings
from steerlib.profiles.languages import not_english
from steerlib.profiles.sources import check_digest, file_label, hub_file, read_rows
from steerlib.tables import ATTRIBUTE_COLUMNS, check_table

PRISM = "HannahRoseKirk/prism-alignment"
DEMO = Path(__file__).parent / "demo"


def read_ratings(
    source: str | Path = "demo",
    *,
    folder: str | Path | None = None,
    turns: str = "first",
    language: str = "all",
    min_ratings: int = 1,
    revision: str = "main",
    sha256: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rated responses in one schema, and a count of what was dropped or odd.

    Args:
        source: "demo" (synthetic); "prism" (from the hub, or from `folder`); a folder with PRISM's
            utterances.jsonl; or a .csv, .jsonl or .parquet file with user_id, prompt, response, rating and,
            if it has them, conversation_id (else one a user and prompt), utterance_id, turn (else 0), chosen
            (else the highest rated of a turn, the first in a tie), prompt_category.
        folder: with source="prism", the local folder to read instead of the hub.
        turns: "first" drops the later turns, which compare two samples of one model; "all" keeps them.
        language: "all" counts responses flagged as not English and keeps them; "english" drops them. Only PRISM
            has such flags, in metadata.jsonl beside utterances.jsonl.
        min_ratings: users with fewer rated responses, after the other drops, are dropped.
        revision: of the hub's data set; name a commit to hold a study to it.
        sha256: what the file's SHA-256 must be, to hold a study to its data; None takes any.

    Returns:
        ratings: user_id, conversation_id, utterance_id, turn, prompt, response, rating, chosen,
            prompt_category; in the order of the file. `with_toxicity` adds the six attributes.
        report: what, count; names the file, its SHA-256 and, from the hub, its commit. A count that cannot be
            known is missing.

    Raises:
        ValueError: a bad value, named by file, row (the first is 1) and column; unknown `turns` or `language`;
        another SHA-256; `language="english"` without flags; nothing left.
        FileNotFoundError: no such file or folder, or the hub cannot be reached.

    Source: PRISM data card and codebook (the literal "EMPTY STRING", duplicate chosen answers in later
    turns).
    """
    if turns not in ("first", "all"):
        raise ValueError(f"turns must be 'first' or 'all', not {turns!r}")
    if language not in ("all", "english"):
        raise ValueError(f"language must be 'all' or 'english', not {language!r}")
    path = find_file(source, folder, revision)
    check_digest(path, sha256)
    rows = read_rows(path)
    if "model_response" in rows or path.name == "utterances.jsonl":
        rows = blank_to_empty(rows)
        checked = checked_ratings(rows, PRISM_COLUMNS, path.name)
    else:
        checked = checked_ratings(rows, OWN_COLUMNS, path.name)
    counts: dict[str, int | None] = {f"rows of {file_label(path)}": len(checked)}
    metadata = _metadata(path, source, folder, revision)
    foreign = None if metadata is None else not_english(metadata)
    ratings, counted = cleaned(
        filled(checked), turns=turns, language=language, min_ratings=min_ratings, foreign=foreign
    )
    counts |= counted
    if ratings.empty:
        raise ValueError(f"{path.name}: no rating is left of {len(checked)} (min_ratings {min_ratings})")
    kept = {"ratings": "utterance_id", "users": "user_id", "conversations": "conversation_id"}
    counts |= {f"{what} kept": ratings[column].nunique() for what, column in kept.items()}
    report = pd.DataFrame({"what": list(counts), "count": list(counts.values())})
    return ratings, report.astype({"count": "Int64"})


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


def find_file(
    source: str | Path, folder: str | Path | None, revision: str, name: str = "utterances.jsonl"
) -> Path:
    """The file that a source stands for: that of a name in a data set or folder, else the source itself."""
    if folder is not None and str(source) != "prism":
        raise ValueError(f"folder goes with source 'prism', not with {str(source)!r}")
    if str(source) == "demo":
        return DEMO / name
    if str(source) == "prism" and folder is None:
        return hub_file(PRISM, name, revision=revision)
    place = Path(folder) if folder is not None else Path(source)
    if not place.is_dir():
        return place
    if not (place / name).is_file():
        raise FileNotFoundError(f"{place} has no {name}")
    return place / name


def _metadata(path: Path, source: str | Path, folder: str | Path | None, revision: str) -> Path | None:
    """PRISM's metadata.jsonl: beside the ratings, or from the hub where they came from there."""
    beside = path.with_name("metadata.jsonl")
    if path.name == "utterances.jsonl" and beside.is_file():
        return beside
    if str(source) != "prism" or folder is not None:
        return None
    try:
        fetched = hub_file(PRISM, "metadata.jsonl", revision=revision)
    except FileNotFoundError:
        return None
    return fetched if fetched.is_file() else None
