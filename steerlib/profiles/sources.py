"""Files that a user can bring, here or on the hub: found, named by their SHA-256, read; random orders by id."""

import csv
import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

PRISM = "HannahRoseKirk/prism-alignment"
DEMO = Path(__file__).parent / "demo"
DEMOGRAPHICS = ("age", "gender", "religion")
PROMPT_CATEGORIES = ("benign_control", "context_dependent", "harmful_borderline", "safe_sensitive")


def hash_order(ids: Iterable[object], *salt: object) -> list[str]:
    """The distinct ids in a random order fixed by `salt`: sorted by the SHA-256 of salt and id.

    Removing an id leaves the others in the same order, on every machine and version.
    """
    prefix = "".join(f"{part}\x1f" for part in salt)
    return sorted(set(map(str, ids)), key=lambda one: hashlib.sha256(f"{prefix}{one}".encode()).digest())


def in_hash_order(rows: pd.DataFrame, column: str, *salt: object) -> pd.DataFrame:
    """The rows sorted by the `hash_order` of a column; rows with the same value keep their order."""
    place = {one: index for index, one in enumerate(hash_order(rows[column], *salt))}
    return rows.iloc[rows[column].astype(str).map(place).argsort(kind="stable")]


def round_robin(rows: pd.DataFrame, by: str | list[str]) -> pd.DataFrame:
    """One row of each group, then a second of each, and so on; within a group and a round in the given order."""
    return rows.iloc[rows.groupby(by).cumcount().argsort(kind="stable")]


def hub_file(dataset: str, name: str, *, revision: str = "main") -> Path:
    """Path of a file of a data set on the Hugging Face hub; a cached copy is used without a request.

    Raises:
        FileNotFoundError: neither cached nor reachable; names what to give instead.
    """
    from huggingface_hub import get_session, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetched(*, local_files_only: bool) -> Path:
        only = local_files_only
        return Path(
            hf_hub_download(dataset, name, repo_type="dataset", revision=revision, local_files_only=only)
        )

    try:
        return fetched(local_files_only=True)
    except LocalEntryNotFoundError:
        pass
    try:
        # One plain request first: without a network the hub's client retries for half a minute.
        get_session().head(hf_hub_url(dataset, name, repo_type="dataset", revision=revision), timeout=10)
        return fetched(local_files_only=False)
    except Exception as failure:  # the client's HTTP library, and so its errors, differ between versions
        raise FileNotFoundError(
            f"{name} of {dataset} (revision {revision}) is not on this machine and cannot be fetched"
            f" ({type(failure).__name__}): name a folder that holds {name} instead"
        ) from None


def find_file(source: str | Path, *names: str) -> Path:
    """A file itself, or the first of `names` that lies in a folder.

    Raises:
        FileNotFoundError: no such file, or none of the names in the folder.
    """
    path = Path(source)
    found = [path / name for name in names if (path / name).is_file()] if path.is_dir() else [path]
    if not found:
        raise FileNotFoundError(f"{path} has no {' or '.join(names)}")
    if not found[0].is_file():
        raise FileNotFoundError(f"{path.absolute()} is not a file")
    return found[0]


def prism_file(source: str | Path, name: str, revision: str = "main") -> Path:
    """One of PRISM's files, or the file that the source names.

    Args:
        source: "demo" (synthetic); "prism" (the hub's data set); a folder with PRISM's files; one of PRISM's files,
            which stands for its folder; or another file.
        name: "utterances.jsonl" or "survey.jsonl".
        revision: of the hub's data set.
    """
    if str(source) == "demo":
        return DEMO / name
    if str(source) == "prism":
        return hub_file(PRISM, name, revision=revision)
    path = find_file(source, name)
    beside = path.with_name(name)
    return beside if path.name in ("utterances.jsonl", "survey.jsonl") and beside.is_file() else path


def file_label(path: Path) -> str:
    """Name and SHA-256 of a file, and its commit if it is of the hub: a report says which data it stands on."""
    commit = f", commit {path.parent.name}" if path.parent.parent.name == "snapshots" else ""
    with path.open("rb") as content:
        return f"{path.name}{commit}, sha256 {hashlib.file_digest(content, 'sha256').hexdigest()}"


def read_rows(path: Path) -> pd.DataFrame:
    """A file's rows, every value as it stands there: in a CSV all are text, and "NA" is text too.

    Blank lines, a byte-order mark and a leading CSV column without a name (row numbers) are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ending than .csv, .jsonl(.gz), .json (a list or lines) or .parquet; text that is not UTF-8;
            a CSV row with another number of fields than the header; a line that is no JSON object; a name that stands
            twice; no rows. Names the file, and the line where there is one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".json": _json_rows, ".parquet": pd.read_parquet}
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind not in readers or (path.suffix == ".gz" and kind != ".jsonl"):
        raise ValueError(f"{path.name}: its ending must be .csv, .jsonl, .jsonl.gz, .json or .parquet")
    try:
        rows = readers[kind](path)
    except UnicodeDecodeError as failure:
        raise ValueError(
            f"{path.name}: byte {failure.start} is not UTF-8 text; save the file as UTF-8"
        ) from None
    except (OSError, EOFError) as failure:
        raise ValueError(f"{path.name}: cannot be read, it may be cut short ({failure})") from None
    except ValueError as failure:  # pyarrow's refusals do not say which file it was
        named = str(failure).startswith(path.name)
        raise failure if named else ValueError(f"{path.name}: {str(failure).splitlines()[0]}") from None
    if rows.empty:
        raise ValueError(f"{path.name} has no rows")
    return rows.reset_index(drop=True)


def _csv_rows(path: Path) -> pd.DataFrame:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header, rows = next(reader, []), []
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise ValueError(
                        f"{path.name}, line {reader.line_num}: {len(cells)} fields, but the header has {len(header)};"
                        " a text with commas or line breaks must stand in double quotes"
                    )
                rows += [cells] if cells else []
        except csv.Error as failure:
            raise ValueError(f"{path.name}, line {reader.line_num}: {failure}") from None
    twice = [name for place, name in enumerate(header) if name in header[:place]]
    if twice:
        raise ValueError(f"{path.name}: two columns are called {twice[0]!r}")
    table = pd.DataFrame(rows, columns=pd.Index(header), dtype=object)
    return table.iloc[:, 1:] if header[:1] == [""] else table


def _json_rows(path: Path) -> pd.DataFrame:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
        if path.suffix == ".json" and file.read(1) == "[":
            file.seek(0)
            return pd.DataFrame(json.load(file), dtype=object)
        file.seek(0)
        rows = []
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line, object_pairs_hook=_one_each) if line.strip() else None
            except (ValueError, RecursionError) as failure:
                raise ValueError(f"{path.name}, line {number}: not JSON ({failure})") from None
            if row is not None and not isinstance(row, dict):
                raise ValueError(f"{path.name}, line {number}: not a JSON object but {line.strip()[:40]!r}")
            rows += [row] if row else []
    return pd.DataFrame(rows, dtype=object)


def _one_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in found if names.count(name) > 1)!r} stands twice")
    return found
