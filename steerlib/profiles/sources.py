"""Age, gender and religion of users, for subgroups: PRISM's survey, the demo's, or a file of one's own.

A random order that depends on the seed and the ids alone, not on the order of rows or on other ids.

Files that ratings and prompts come from: JSON lines (gzipped or not), CSV or parquet, here or on the hub.

The one schema of ratings, checked before any work: a bad value is named by file, row and column.

What must not enter a profile: dropped and counted; and what a file leaves out: filled.

Ratings of responses by users: PRISM, a file of one's own, or the demo set, as one table.
"""

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Set
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steerlib.tables import ATTRIBUTE_COLUMNS, SCHEMA, check_table


def not_english(metadata: Path) -> set[str]:
    """Ids of the responses whose detected language is not English.

    The file is large, so it is read line by line.

    Args:
        metadata: PRISM's metadata.jsonl, with column_id, utterance_id and en_flag, or else language_flag.

    Raises:
        ValueError: a line is no JSON object, or a response has neither flag, named by file and row.

    Source: PRISM codebook; the flags come from langid, which errs on short answers.
    """
    flagged = set()
    with metadata.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if row["column_id"] == "model_response" and not _english(row):
                    flagged.add(str(row["utterance_id"]))
            except (json.JSONDecodeError, KeyError, TypeError) as failure:
                message = f"{metadata.name}, row {number}: not PRISM's metadata ({failure})"
                raise ValueError(message) from None
    return flagged


def _english(row: dict) -> bool:
    if row.get("en_flag") is not None:
        return str(row["en_flag"]).strip().lower() in ("true", "1", "1.0")
    return row["language_flag"] == "en"


def hash_order(ids: Iterable[object], *salt: object) -> list[str]:
    """The ids in a random order fixed by `salt`: sorted by the SHA-256 of salt and id.

    Taking an id away leaves the others in the same order, on every machine and version.
    """
    prefix = "".join(f"{part}\x1f" for part in salt)
    return sorted(set(map(str, ids)), key=lambda one: sha256(f"{prefix}{one}".encode()).digest())


def read_rows(path: Path) -> pd.DataFrame:
    """A file's rows, every value as it stands there: in a CSV all are text, and "NA" is text too.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the ending is none of .jsonl(.gz), .csv, .parquet; a line is no JSON object; there are no rows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        rows = pd.DataFrame(_json_lines(path), dtype=object)
    elif path.suffix == ".csv":
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    elif path.suffix == ".parquet":
        rows = pd.read_parquet(path)
    else:
        raise ValueError(
            f"{path.name}: its ending must be .jsonl, .csv or .parquet (.jsonl.gz for packed lines)"
        )
    if rows.empty:
        raise ValueError(f"{path.name} has no rows")
    return rows.reset_index(drop=True)


def _json_lines(path: Path) -> list[dict]:
    rows = []
    packed = path.suffix == ".gz"
    with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as failure:
                raise ValueError(f"{path.name}, row {number}: not JSON ({failure.msg})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path.name}, row {number}: not a JSON object but {line.strip()[:40]!r}")
            rows.append(row)
    return rows


def hub_file(dataset: str, name: str, *, revision: str = "main") -> Path:
    """A file of a data set on the Hugging Face hub, from the cache where it lies there already.

    Raises:
        FileNotFoundError: it is neither in the cache nor can it be fetched; one line says what to do instead.
    """
    from huggingface_hub import get_session, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*, local_files_only: bool) -> Path:
        return Path(
            hf_hub_download(
                dataset, name, repo_type="dataset", revision=revision, local_files_only=local_files_only
            )
        )

    try:
        return download(local_files_only=True)
    except LocalEntryNotFoundError:
        pass
    try:
        # One plain request first: without a network the hub's client would try for half a minute.
        get_session().head(hf_hub_url(dataset, name, repo_type="dataset", revision=revision), timeout=10)
        return download(local_files_only=False)
    except Exception as failure:  # the client's HTTP library, and so its errors, differ between versions
        raise FileNotFoundError(
            f"{name} of {dataset} (revision {revision}) is not on this machine and cannot be fetched"
            f" ({type(failure).__name__}): name a folder that holds {name} instead"
        ) from None


def file_label(path: Path) -> str:
    """Name and SHA-256 of a file, and its commit if it is of the hub: a report says which data it stands on."""
    commit = f", commit {path.parent.name}" if path.parent.parent.name == "snapshots" else ""
    return f"{path.name}{commit}, sha256 {_digest(path)}"


def check_digest(path: Path, sha256: str | None) -> None:
    """Refuse a file whose SHA-256 is not the one that was asked for; None asks for none.

    Raises:
        ValueError: another digest; both are named.
        FileNotFoundError: no such file.
    """
    if sha256 is None:
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    found = _digest(path)
    if found != sha256.lower():
        raise ValueError(f"{path.name}: its sha256 is {found}, not {sha256}")


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        digest = hashlib.sha256()
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


EMPTY = "EMPTY STRING"
COLUMNS = [name for name in SCHEMA["ratings"].columns if name not in ATTRIBUTE_COLUMNS]


def blank_to_empty(rows: pd.DataFrame) -> pd.DataFrame:
    """PRISM writes an empty text as "EMPTY STRING"; one of spaces only is as empty."""
    rows = rows.copy()
    for column in rows.columns.intersection(["user_prompt", "model_response"]):
        rows[column] = [
            EMPTY if isinstance(text, str) and not text.strip() else text for text in rows[column]
        ]
    return rows


def filled(table: pd.DataFrame) -> pd.DataFrame:
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


def cleaned(
    table: pd.DataFrame, *, turns: str, language: str, min_ratings: int, foreign: Set[str] | None
) -> tuple[pd.DataFrame, dict[str, int | None]]:
    """Without what must not enter a profile; every drop and every oddity is counted.

    Args:
        table: ratings with all columns but the six attributes.
        turns: "first" or "all".
        language: "all" or "english".
        min_ratings: users with fewer are dropped.
        foreign: ids of responses flagged as not English; None where no flags are at hand.

    Returns:
        The ratings kept; what -> count, None where it is not known.

    Raises:
        ValueError: `language="english"` without flags.
    """
    counts: dict[str, int | None] = {}
    empty = table["response"].eq(EMPTY) | table["prompt"].eq(EMPTY)
    counts[f'empty texts ("{EMPTY}") dropped'] = int(empty.sum())
    table = _from_turn_0(table[~empty], counts)
    table = _in_english(table, counts, language, foreign)
    table = _one_chosen(table, counts)
    later = table["turn"] > 0
    counts["responses of later turns" + (" dropped" if turns == "first" else " kept")] = int(later.sum())
    table = table[~later] if turns == "first" else table
    turn = ["conversation_id", "turn"]
    top = table["rating"].eq(table.groupby(turn)["rating"].transform("max"))
    counts["turns with a tie for the highest rating"] = int((table[top].groupby(turn).size() > 1).sum())
    counts["turns without a chosen response"] = int((~table.groupby(turn)["chosen"].any().to_numpy()).sum())
    few = table.groupby("user_id")["rating"].transform("size") < min_ratings
    counts[f"users with fewer than {min_ratings} ratings dropped"] = table.loc[few, "user_id"].nunique()
    counts["ratings of those users dropped"] = int(few.sum())
    return table[~few].reset_index(drop=True), counts


def _from_turn_0(table: pd.DataFrame, counts: dict[str, int | None]) -> pd.DataFrame:
    """PRISM counts turns from 0, its paper from 1; a file that has no turn 0 follows the paper."""
    from_1 = bool(table["turn"].min() == 1)
    counts["conversations counted from turn 1, moved to 0"] = table["conversation_id"].nunique() * int(from_1)
    return table.assign(turn=table["turn"] - 1) if from_1 else table


def _in_english(
    table: pd.DataFrame, counts: dict[str, int | None], language: str, foreign: Set[str] | None
) -> pd.DataFrame:
    if foreign is None:
        if language == "english":
            raise ValueError(
                "language='english' needs PRISM's metadata.jsonl, and none is beside the ratings"
            )
        counts["responses flagged as not English: not known, no metadata.jsonl"] = None
        return table
    flagged = table["utterance_id"].isin(list(foreign))
    done = "dropped" if language == "english" else "kept"
    counts[f"responses flagged as not English {done}"] = int(flagged.sum())
    return table[~flagged] if language == "english" else table


def _one_chosen(table: pd.DataFrame, counts: dict[str, int | None]) -> pd.DataFrame:
    chosen = table[table["chosen"]]
    again = chosen.duplicated(["conversation_id", "turn"]).reindex(table.index, fill_value=False)
    counts["further chosen responses of a turn, first kept"] = int(again.sum())
    return table.assign(chosen=table["chosen"] & ~again)


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
