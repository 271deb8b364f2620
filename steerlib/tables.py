"""The tidy tables of a run: their columns, parts written whole or not at all and checked when read, the cache.

A run is a folder, `results/<run>/`. A table is a folder of parquet parts in it, `tables/<name>/<part>.parquet`.
Settings are columns, never parts of a file name, and each table names the columns that identify a row.
"""

import hashlib
import io
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
"""The checkout: notebooks/, params/ and results/ lie here, wherever a kernel is started."""

PACKAGES = ("torch", "transformers", "pandas", "numpy", "pyarrow", "papermill")
COMMAND, PROGRESS_FILE = "STEER_COMMAND", "STEER_PROGRESS"
"""Environment variables that the runner sets for its kernels: how it was started, and the file of `progress_bar`."""
RUN = re.compile(r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(\.|$))\w[\w.-]*(?<!\.)")
"""Names of runs: those that are folders on every system; Windows has some of its own."""
ATTRIBUTE_COLUMNS = ("toxicity", "severe_toxicity", "identity_attack", "insult", "profanity", "threat")


class Table(NamedTuple):
    """Columns of a table and those that identify a row."""

    columns: tuple[str, ...]
    key: tuple[str, ...]


SIX = " ".join(ATTRIBUTE_COLUMNS)
COLUMNS = {  # a star stands at those that identify a row
    "ratings": "user_id conversation_id utterance_id* turn prompt response rating chosen prompt_category"
    f" {SIX}",
    "splits": "conversation_id* user_id split",
    "users": "user_id* age gender religion",
    "profiles": "user_id* attribute* estimator* sensitivity percentile primary",
    "prompts": "prompt_id* user_id conversation_id prompt history category shuffled_category prompt_category"
    " accepted split",
    "pairs": "pair_id* user_id conversation_id prompt preferred dispreferred split",
    "arms": "arm_id* model contexts method alpha unit factor profile category family vector_user control vector"
    " vector_alpha layers positions style temperature top_p min_p js_sigma min_temperature repetition_penalty"
    " penalty_scope max_new_tokens branches variant",
    "generations": "arm_id* prompt_id* seed* text token_ids n_tokens stopped nll_base kl_to_base near_ties"
    " hardware",
    "segments": "arm_id* prompt_id* seed* alpha_low* alpha_high complete text token_ids n_tokens stopped"
    " nll_base",
    "fluency": "arm_id* prompt_id* seed* scorer_model* nll n_tokens",
    "scores": f"text_sha* scorer* {SIX}",
    "judged": "judge* dimension* prompt_sha* text_sha* score",
    "verdicts": "judge* dimension* prompt_sha* text_sha* other_sha* score other_score",
    "relative_norms": "arm_id* prompt_id* layer* norm relative_norm",
    "preference": "model* pair_id* user_id margin",
    "questions": "question_id* subject question A B C D answer",
    "choices": "arm_id* question_id* category* p_A p_B p_C p_D correct",
    "metrics": "arm_id* comparator* split* subgroup* scorer* metric* value low high n n_clusters",
    "verdict": "method* arm_id control_arm alpha alpha_low alpha_high toxicity_base toxicity change change_low"
    " change_high difference low high own_minus_shuffled own_low own_high distance distance_low distance_high"
    " perplexity_ratio kl_per_token control_kl shuffled_kl accuracy questions n effective_n sentence",
}
SCHEMA: Mapping[str, Table] = {
    name: Table(tuple(re.findall(r"\w+", columns)), tuple(re.findall(r"(\w+)\*", columns)))
    for name, columns in COLUMNS.items()
}


def results_folder(run: str) -> Path:
    """`results/<run>`, or `$STEERLIB_RESULTS/<run>`, made if absent; a ValueError for what is no plain folder name."""
    if not isinstance(run, str) or not RUN.fullmatch(run):
        raise ValueError(f"run must be a folder name of letters, digits, '-', '_' and '.', not {run!r}")
    folder = results_root() / run
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def results_root() -> Path:
    """Folder of all runs: `results`, or `$STEERLIB_RESULTS` where that is set."""
    return Path(os.environ.get("STEERLIB_RESULTS") or ROOT / "results")


def check_table(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its schema's columns in order; a ValueError names missing or unknown ones or a repeated key."""
    if name not in SCHEMA:
        raise KeyError(f"no table is called {name!r}; the tables are {', '.join(SCHEMA)}")
    table = SCHEMA[name]
    missing = [column for column in table.columns if column not in frame]
    unknown = [column for column in frame if column not in table.columns]
    if missing or unknown:
        raise ValueError(f"table {name}: missing columns {missing}, unknown columns {unknown}")
    key = list(table.key)
    repeated = frame.duplicated(key)
    if repeated.any():
        row = frame.loc[repeated, key].iloc[0].to_dict()
        raise ValueError(f"table {name}: {int(repeated.sum())} rows repeat a key, the first is {row}")
    return frame[list(table.columns)]


SEAL = b"steerlib sha256 "  # stands before the checksum in a part's key-value metadata


def _digest(data: bytes, start: int) -> bytes:
    """Hex sha256 of a part, the 64 places of the checksum itself, from `start`, left out."""
    return hashlib.sha256(data[:start] + data[start + 64 :]).hexdigest().encode()


def _parts(folder: Path, name: str) -> Iterator[tuple[Path, pd.DataFrame]]:
    """Sound parts of a table in the order of their names; a damaged one is renamed `*.corrupt`, with a warning."""
    for path in sorted((folder / "tables" / name).glob("[!.]*.parquet")):
        data = path.read_bytes()
        start = data.rfind(SEAL) + len(SEAL)
        if start >= len(SEAL) and data[start : start + 64] == _digest(data, start):
            yield path, pd.read_parquet(io.BytesIO(data))
        else:
            set_aside(path)


def set_aside(path: Path) -> None:
    """Rename a damaged file to `<name>.corrupt`, with a warning, so that what it held is made again."""
    path.replace(path.with_name(f"{path.name}.corrupt"))
    warnings.warn(f"{path} is damaged: set aside as {path.name}.corrupt, to be made again", stacklevel=3)


def has_table(folder: Path, name: str) -> bool:
    """Whether the run has any sound part of the table."""
    return next(_parts(folder, name), None) is not None


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """All parts of a table, one below the other, in the order of their names; a damaged part is set aside.

    A row that two processes made at once is there once: a key holds everything that made its row. FileNotFoundError
    where the table was not written yet, ValueError where the parts break the schema.
    """
    parts = [part for _, part in _parts(folder, name)]
    if not parts:
        where = f"is not in {folder / 'tables'}: run the notebook that writes it first"
        raise FileNotFoundError(f"table {name!r} {where}")
    return check_table(name, _joined(name, parts))


def _joined(name: str, parts: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True).drop_duplicates([*SCHEMA[name].key], ignore_index=True)


def append_part(folder: Path, name: str, frame: pd.DataFrame, *, part: str) -> Path:
    """Write one part of a table of `SCHEMA`, whole or not at all, with a checksum of all other bytes; the part's path.

    `part` is the stem of the part's file: writing the same part again replaces it.
    """
    buffer = io.BytesIO()
    table = pa.Table.from_pandas(check_table(name, frame), preserve_index=False)
    with pq.ParquetWriter(buffer, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"checksum": (SEAL + b"0" * 64).decode()})
    data = buffer.getvalue()
    start = data.rindex(SEAL) + len(SEAL)
    target = folder / "tables" / name / f"{part}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as partial:
        partial.write_bytes(data[:start] + _digest(data, start) + data[start + 64 :])
    return target


def write_table(folder: Path, name: str, frame: pd.DataFrame) -> Path:
    """Write a table as a single part, replacing all that it held."""
    target = append_part(folder, name, frame, part="all")
    for stale in target.parent.glob("[!.]*.parquet"):
        if stale != target:
            stale.unlink()
    return target


def cached_rows(
    folder: Path,
    name: str,
    keys: pd.DataFrame,
    compute: Callable[[list[int]], pd.DataFrame],
    *,
    unit: str,
    what: str,
    chunk: int,
    announce: Callable[[list[int]], object] | None = None,
) -> pd.DataFrame:
    """Rows of a table for the keys asked for: from the table where it has them, else computed and appended.

    Each key is computed once however often it occurs. A kill loses at most one chunk. Rows are those of `keys`.

    `compute` gives the table's other columns for row numbers of `keys`, row by row; a part has `chunk` rows. `announce`
    is called once with the row numbers of all that is to be computed, before the first is.
    """
    key = list(SCHEMA[name].key)
    wanted = keys[key].astype("str").reset_index(drop=True)
    distinct = wanted.drop_duplicates()
    found = [part.merge(distinct, on=key) for _, part in _parts(folder, name)]
    known = pd.MultiIndex.from_frame(pd.concat([distinct[:0], *(rows[key] for rows in found)]))
    absent = distinct[~pd.MultiIndex.from_frame(distinct).isin(known)]
    if len(absent):
        if announce:
            announce(absent.index.tolist())
        with progress_bar(len(absent), unit=unit, what=what) as bar:
            for start in range(0, len(absent), chunk):
                rows = absent.iloc[start : start + chunk]
                values = compute(rows.index.tolist()).set_axis(rows.index)
                found.append(pd.concat([rows, values], axis=1))
                # Named by what it holds, so that no part ever replaces another.
                held = "\0".join(map(str, rows.to_numpy().ravel()))
                append_part(folder, name, found[-1], part=hashlib.sha256(held.encode()).hexdigest()[:20])
                bar.update(len(rows))
    if not found:
        return wanted.reindex(columns=list(SCHEMA[name].columns))
    table = check_table(name, _joined(name, found))
    return wanted.merge(table, on=key, how="left", validate="many_to_one")


@contextmanager
def atomic_path(target: Path) -> Generator[Path]:
    """`with atomic_path(target) as partial:` write to `partial`; it becomes `target` only if nothing failed.

    A kill at any moment leaves the old state or the new one. Partials of processes that died are removed.
    """
    host = re.sub(r"\W", "_", socket.gethostname())
    for left in target.parent.glob(f".*~{host}~*~*.partial"):
        if not psutil.pid_exists(int(left.name.split("~")[-2])):
            left.unlink(missing_ok=True)
    own = f".{target.stem}~{host}~{os.getpid()}~"
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=own, suffix=".partial")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("r+b") as written:
            os.fsync(written.fileno())
        partial.chmod(0o644)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_manifest(folder: Path, stage: str, params: Mapping[str, object], *, seconds: float) -> None:
    """Record in the run's `manifest.json` how a stage (a notebook) came about; `params` never hold a secret."""
    manifest, commit = read_manifest(folder), ""
    if shutil.which("git"):
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    manifest[stage] = {
        "params": dict(params),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "command": os.environ.get(COMMAND, "by hand"),
        "versions": {package: version(package) for package in PACKAGES} | {"python": sys.version.split()[0]},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "seconds": round(seconds, 1),
    }
    with atomic_path(folder / "manifest.json") as partial:
        partial.write_text(json.dumps(manifest, indent=1, default=str) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, dict]:
    """Records of all stages that ran so far, by stage; empty before the first, or where the file is damaged."""
    path = folder / "manifest.json"
    if path.exists():
        with suppress(ValueError, RecursionError):
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(manifest, dict) and all(isinstance(record, dict) for record in manifest.values()):
                return manifest
        set_aside(path)
    return {}


def progress_bar(total: int, *, what: str, unit: str, done: int = 0) -> tqdm:
    """A bar, `done` of `total` finished by an earlier call: on the screen, or in the file that the runner shows."""
    path = os.environ.get(PROGRESS_FILE)
    stream = open(path, "w", buffering=1, encoding="utf-8") if path else None  # noqa: SIM115  (the bar's)
    return tqdm(
        total=total, initial=done, desc=what, unit=unit, file=stream, mininterval=1, ncols=80, leave=not path
    )
