"""Files that a user can bring, here or on the hub: found, named by their SHA-256, read; random orders by id."""

import csv
import gzip
import hashlib
import io
import json
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype

from steerlib.embedded import cache_folder
from steerlib.tables import progress_bar

PRISM = "HannahRoseKirk/prism-alignment"
DEMO = Path(__file__).parent / "demo"
DEMOGRAPHICS = ("age", "gender", "religion")
PROMPT_CATEGORIES = ("benign_control", "context_dependent", "harmful_borderline", "safe_sensitive")
BLOCK, MEGABYTE, LARGE = 10_000, 1_000_000, 20
"""Rows that are read at once; bytes; megabytes of a file from which on its reading shows its progress."""
UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def hash_order(ids: Iterable[object], *salt: object) -> list[str]:
    """The distinct ids sorted by the SHA-256 of salt and id: a random order that no other id changes."""
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

    A FileNotFoundError, neither cached nor reachable, names what to give instead.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from steerlib.models import hub_answers  # late: it imports torch

    of: dict[str, Any] = {"repo_type": "dataset", "revision": revision}
    try:
        return Path(hf_hub_download(dataset, name, **of, local_files_only=True))
    except LocalEntryNotFoundError:
        offline = not hub_answers()
    try:
        return Path(hf_hub_download(dataset, name, **of, local_files_only=offline))
    except Exception as failure:  # the client's HTTP library, and so its errors, differ between versions
        raise FileNotFoundError(
            f"{name} of {dataset} (revision {revision}) is not on this machine and cannot be fetched"
            f" ({type(failure).__name__}): name a folder that holds {name} instead"
        ) from None


def find_file(source: str | Path, *names: str) -> Path:
    """A file itself, or the first of `names` that lies in a folder; else a FileNotFoundError."""
    path = Path(source)
    found = [path / name for name in names if (path / name).is_file()] if path.is_dir() else [path]
    if not found:
        raise FileNotFoundError(f"{path} has no {' or '.join(names)}")
    if not found[0].is_file():
        raise FileNotFoundError(f"{path.absolute()} is not a file")
    return found[0]


def prism_file(source: str | Path, name: str, revision: str = "main") -> Path:
    """One of PRISM's files ("utterances.jsonl" or "survey.jsonl"), or the file that the source names.

    The source is "demo" (synthetic); "demo_large" (the same, twice the users, written into the cache at first
    use); "prism" (the hub's data set); a folder with PRISM's files; one of PRISM's files, which stands for its folder;
    or another file.
    """
    if str(source) == "demo":
        return DEMO / name
    if str(source) == "demo_large":
        from steerlib.profiles.demo.make_demo import make_demo  # it reads this module

        made_of = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(DEMO.glob("*.*"))))
        folder = cache_folder() / f"demo_large-{made_of.hexdigest()[:8]}"
        folder.mkdir(exist_ok=True)
        if not (folder / name).exists():
            make_demo(folder, rounds=2)
        return folder / name
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


def as_id(value: Any) -> str | None:
    """An id or a category as text, without outer spaces, in composed characters, 1.0 as 1; None where it is none."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if whole or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    text = unicodedata.normalize("NFC", value).strip() if isinstance(value, str) else ""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text) or None


def as_text(value: Any) -> str | None:
    """The text as it stands; None where it is empty or no text."""
    return value if isinstance(value, str) and value.strip() else None


def read_rows(path: Path) -> pd.DataFrame:
    """A file's rows, every value as it stands there: in a CSV all are text, and "NA" is text too.

    Left out are blank lines, a byte-order mark, spaces around a CSV's column names, and a leading CSV column without
    a name (row numbers). A large file is read in blocks with a progress bar.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ending than .csv, .jsonl(.gz), .json (a list or lines) or .parquet; bytes that are not
            UTF-8; a CSV row with another number of fields than the header; a line that is no JSON object; a column or
            key that stands twice; a NUL byte or a lone surrogate; no rows. Names the file, and the line or row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind not in (".csv", ".jsonl", ".json", ".parquet") or (path.suffix == ".gz" and kind != ".jsonl"):
        raise ValueError(f"{path.name}: its ending must be .csv, .jsonl, .jsonl.gz, .json or .parquet")
    try:
        if kind == ".parquet":
            blocks = [_storable(pd.read_parquet(path), path, 1)]
        else:
            rows, blocks = (_csv_rows if kind == ".csv" else _json_rows)(path), []
            while block := list(islice(rows, BLOCK)):
                first = 1 + BLOCK * len(blocks)
                blocks.append(_storable(pd.DataFrame(block, dtype=object), path, first))
    except RecursionError:
        raise ValueError(f"{path.name}: a value is nested too deeply") from None
    except (OSError, EOFError, zlib.error) as failure:
        raise ValueError(f"{path.name}: cannot be read, it may be cut short ({failure})") from None
    except ValueError as failure:  # pyarrow's refusals do not say which file it was
        named = str(failure).startswith(path.name)
        raise failure if named else ValueError(f"{path.name}: {str(failure).splitlines()[0]}") from None
    if not blocks or blocks[0].empty:
        raise ValueError(f"{path.name} has no rows")
    return pd.concat(blocks, ignore_index=True)


def _lines(path: Path) -> Iterator[str]:
    size = path.stat().st_size // MEGABYTE
    with (
        path.open("rb") as raw,
        progress_bar(size, what=f"reading {path.name}", unit="MB") if size > LARGE else nullcontext() as bar,
    ):
        content = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        text = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")
        for number, line in enumerate(text, start=1):
            if bad := UNSTORABLE.search(line):
                raise ValueError(
                    f"{path.name}, line {number}: byte {ord(bad[0]) & 0xFF:#04x} is not text in UTF-8; "
                    "save the file as UTF-8 (it may be Latin-1 or UTF-16)"
                )
            yield line
            if bar:
                bar.update(raw.tell() // MEGABYTE - bar.n)


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(_lines(path), strict=True)
    line = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        _refuse_twice(header, path.name)
        unnamed = header[:1] == [""]
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise ValueError(
                    f"{path.name}, line {line}: {len(cells)} fields, but the header has {len(header)};"
                    " a text with commas or line breaks must stand in double quotes"
                )
            if cells:
                yield dict(zip(header[unnamed:], cells[unnamed:], strict=True))
            line = reader.line_num + 1
    except csv.Error as failure:
        raise ValueError(
            f"{path.name}, line {line}: {failure}; a text in double quotes must be closed, a quote in it doubled"
        ) from None


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    numbered = enumerate(_lines(path), start=1)
    for number, line in numbered:
        if not line.strip():
            continue
        is_list = path.suffix == ".json" and line.lstrip().startswith("[")
        try:
            text = line + "".join(rest for _, rest in numbered) if is_list else line
            found = json.loads(text, object_pairs_hook=lambda pairs: _one_each(pairs, path.name))
        except (ValueError, RecursionError) as failure:
            reason = str(failure).removeprefix(f"{path.name}: ")
            raise ValueError(f"{path.name}, line {number}: not JSON ({reason})") from None
        for row in found if is_list else [found]:
            if not isinstance(row, dict):
                raise ValueError(f"{path.name}, line {number}: not a JSON object but {str(row)[:40]!r}")
            yield row


def _one_each(pairs: list[tuple[str, Any]], file: str) -> dict[str, Any]:
    _refuse_twice([name for name, _ in pairs], file)
    return dict(pairs)


def _refuse_twice(names: list[str], file: str) -> None:
    for name in set(names) if len(set(names)) < len(names) else ():
        if names.count(name) > 1:
            raise ValueError(f"{file}: the name {name!r} stands twice")


def _storable(rows: pd.DataFrame, path: Path, first: int) -> pd.DataFrame:
    """The rows, columns of texts packed, if a table can store them; `first` is the number of the first."""
    _refuse_twice(list(map(str, rows.columns)), path.name)
    for column in rows.select_dtypes(["object", "str"]):
        for number, value in enumerate(rows[column], start=first):
            if any(UNSTORABLE.search(text) for text in _strings(value)):
                raise ValueError(
                    f"{path.name}, row {number}, column {column}: remove the NUL byte or lone surrogate"
                )
        if infer_dtype(rows[column], skipna=False) == "string":
            rows[column] = rows[column].astype("str")
    return rows


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | np.ndarray):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)
