"""Progress of long work: a bar where somebody looks, a file that the runner shows where nobody does.

The tidy tables of a run: what columns each has, how they are written (whole or not at all) and read back.

A run is a folder, `results/<run>/`. A table is a folder of parquet parts in it, `tables/<name>/<part>.parquet`.
Settings are columns, never parts of a file name, and each table names the columns that identify a row.
"""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
"""The checkout: notebooks/, params/ and results/ lie here, wherever a kernel is started."""

ATTRIBUTE_COLUMNS = ("toxicity", "severe_toxicity", "identity_attack", "insult", "profanity", "threat")


@dataclass(frozen=True)
class Table:
    """Columns of a table and those that identify a row."""

    columns: tuple[str, ...]
    key: tuple[str, ...]


def _table(columns: str, key: str) -> Table:
    return Table(tuple(columns.split()), tuple(key.split()))


SIX = " ".join(ATTRIBUTE_COLUMNS)
SCHEMA: Mapping[str, Table] = {
    "ratings": _table(
        f"user_id conversation_id utterance_id turn prompt response rating chosen prompt_category {SIX}",
        "utterance_id",
    ),
    "splits": _table("conversation_id user_id split", "conversation_id"),
    "users": _table("user_id age gender religion", "user_id"),
    "profiles": _table(
        "user_id attribute estimator sensitivity percentile primary", "user_id attribute estimator"
    ),
    "prompts": _table(
        "prompt_id user_id conversation_id prompt history category shuffled_category prompt_category accepted"
        " split",
        "prompt_id",
    ),
    "pairs": _table("pair_id user_id conversation_id prompt preferred dispreferred weight split", "pair_id"),
    "arms": _table(
        "arm_id model contexts method alpha factor profile category vector vector_alpha layers positions style"
        " temperature top_p min_p js_sigma min_temperature base_top_p repetition_penalty penalty_scope"
        " max_new_tokens branches variant",
        "arm_id",
    ),
    "generations": _table(
        "arm_id prompt_id seed text token_ids n_tokens stopped nll_base kl_to_base near_ties hardware",
        "arm_id prompt_id seed",
    ),
    "segments": _table(
        "arm_id prompt_id seed alpha_low alpha_high complete text token_ids n_tokens stopped nll_base",
        "arm_id prompt_id seed alpha_low",
    ),
    "fluency": _table(
        "arm_id prompt_id seed scorer_model nll n_tokens", "arm_id prompt_id seed scorer_model"
    ),
    "scores": _table(f"text_sha scorer {SIX}", "text_sha scorer"),
    "judged": _table(
        "judge dimension prompt_sha text_sha score tries", "judge dimension prompt_sha text_sha"
    ),
    "verdicts": _table(
        "judge dimension prompt_sha text_sha other_sha score other_score tries",
        "judge dimension prompt_sha text_sha other_sha",
    ),
    "doses": _table("arm_id prompt_id layer norm dose", "arm_id prompt_id layer"),
    "preference": _table("model pair_id user_id margin", "model pair_id"),
    "questions": _table("question_id subject question A B C D answer", "question_id"),
    "choices": _table("arm_id question_id category p_A p_B p_C p_D correct", "arm_id question_id category"),
    "metrics": _table(
        "arm_id comparator split subgroup scorer metric value low high n n_clusters",
        "arm_id comparator split subgroup scorer metric",
    ),
}


def results_folder(run: str) -> Path:
    """Folder of a run, made if absent.

    Args:
        run: name of the run, the stem of its params file.

    Returns:
        `results/<run>`; where the environment names STEERLIB_RESULTS, `<STEERLIB_RESULTS>/<run>`.

    Raises:
        ValueError: the name is empty or would leave the results folder.
    """
    if not run or Path(run).name != run or run.startswith("."):
        raise ValueError(f"run must be a plain folder name, not {run!r}")
    folder = Path(os.environ.get("STEERLIB_RESULTS") or ROOT / "results") / run
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_table(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its schema's columns in order, refused where it breaks the schema.

    Raises:
        KeyError: no such table.
        ValueError: a column is missing or unknown, or two rows share a key.
    """
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


def has_table(folder: Path, name: str) -> bool:
    """Whether the run has any part of the table."""
    return any((folder / "tables" / name).glob("*.parquet"))


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """All parts of a table, one below the other, in the order of their names.

    Raises:
        FileNotFoundError: the table was not written yet; the message says where it was looked for.
        ValueError: the parts together break the schema.
    """
    parts = sorted((folder / "tables" / name).glob("*.parquet"))
    if not parts:
        raise FileNotFoundError(
            f"table {name!r} is not in {folder / 'tables'}: run the notebook that writes it first"
        )
    frame = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    return check_table(name, frame)


def append_part(folder: Path, name: str, frame: pd.DataFrame, *, part: str) -> Path:
    """Write one part of a table, whole or not at all.

    The part is written beside its place, flushed to the disk and renamed, so that a kill at any moment leaves
    either the old state or the new one.

    Args:
        folder: the run's folder.
        name: the table, a key of `SCHEMA`.
        frame: rows with exactly the table's columns.
        part: stem of the part's file; writing the same part again replaces it.

    Returns:
        Path of the part.
    """
    target = folder / "tables" / name / f"{part}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as partial:
        check_table(name, frame).to_parquet(partial, index=False)
    return target


def write_table(folder: Path, name: str, frame: pd.DataFrame) -> Path:
    """Write a table as a single part, replacing all that it held."""
    target = append_part(folder, name, frame, part="all")
    for stale in target.parent.glob("*.parquet"):
        if stale != target:
            stale.unlink()
    return target


class atomic_path:
    """`with atomic_path(target) as partial:` write to `partial`; it becomes `target` only if nothing failed."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(
            dir=self.target.parent, prefix=f".{self.target.stem}-", suffix=".partial"
        )
        os.close(handle)
        self.partial = Path(name)
        return self.partial

    def __exit__(self, failure: object, *_: object) -> None:
        if failure is not None:
            self.partial.unlink(missing_ok=True)
            return
        with self.partial.open("rb") as written:
            os.fsync(written.fileno())
        self.partial.chmod(0o644)
        self.partial.replace(self.target)


PACKAGES = ("torch", "transformers", "pandas", "numpy", "pyarrow", "papermill")


def write_manifest(folder: Path, stage: str, params: Mapping[str, object], *, seconds: float) -> None:
    """Record how a stage of the run came about: parameters, versions, machine, seconds.

    Args:
        folder: the run's folder; the record goes to its `manifest.json`.
        stage: the notebook, for instance `03_generation_sweep`; an earlier record of it is replaced.
        params: parameters of the stage; plain values only, never a secret.
        seconds: wall time of the stage.
    """
    manifest = read_manifest(folder)
    manifest[stage] = {
        "params": dict(params),
        "versions": {package: version(package) for package in PACKAGES} | {"python": sys.version.split()[0]},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "seconds": round(seconds, 1),
    }
    with atomic_path(folder / "manifest.json") as partial:
        partial.write_text(json.dumps(manifest, indent=1, default=str) + "\n")


def read_manifest(folder: Path) -> dict[str, dict]:
    """Records of all stages that ran so far, by stage; empty before the first."""
    path = folder / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}


PROGRESS_FILE = "STEER_PROGRESS"
"""Environment variable that names the file; the runner sets it for the kernels it starts."""


def progress_bar(total: int, *, what: str, unit: str, done: int = 0) -> tqdm:
    """A bar with count, rate and time left.

    Args:
        total: how many there are.
        what: the work, shown before the bar.
        unit: one of them.
        done: how many were finished by an earlier call.
    """
    path = os.environ.get(PROGRESS_FILE)
    stream = open(path, "w", buffering=1) if path else None  # noqa: SIM115  (lives as long as the bar)
    return tqdm(total=total, initial=done, desc=what, unit=unit, file=stream, mininterval=1, ncols=80)
