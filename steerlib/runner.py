"""One params file through the notebooks in order: each in a kernel of its own, resumed where an earlier run stopped.

A finished notebook is kept while nothing that made it has changed: its code, its parameters, the content of the files
that these name, the library, and the notebooks before it. What has changed is printed.
"""

import hashlib
import json
import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import yaml
from filelock import FileLock, Timeout
from traitlets.config import Config

from steerlib import params as keys
from steerlib.params import BadInput, flat
from steerlib.tables import COMMAND, PROGRESS_FILE, ROOT, RUN, atomic_path, results_folder

NOTEBOOKS = ROOT / "notebooks"
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}
LARGE, BLOCKS = 2**26, 64  # of weights with more bytes than that only so many blocks are read
REMEDIES = {  # OutOfMemoryError is torch's
    "MemoryError": "fewer prompts_per_category, max_new_tokens or a smaller model need less memory",
    "No space left": "free some space; the same command goes on from what is finished",
}
PAPERMILL: dict[str, Any] = {
    "kernel_name": "python3",
    "language": "python",
    "progress_bar": False,
    "store_widget_state": False,
    "coalesce_streams": True,
    "extra_arguments": ["--IPKernelApp.log_level=50"],  # else Ctrl-C prints its traceback
}
PARAMS, LOCK = "params.yaml", ".lock"
"""In a run's folder: what it was run with, and what a command holds while it goes on."""


class NotebookFailed(RuntimeError):
    """A notebook did not reach its end; the message says where and why, in one line."""


@dataclass(frozen=True)
class Stage:
    """A notebook, the parameters it is handed, the files that these name, and what it takes of the params file."""

    notebook: Path
    parameters: dict[str, Any]
    inputs: dict[str, list[Path]]
    given: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What a params file asks for, checked: the name of the run, its stages in order, the file and all its params."""

    run: str
    stages: dict[str, Stage]
    file: Path
    params: dict[str, Any]


def plan(params_file: Path, *, notebooks: Path = NOTEBOOKS, **overrides: Any) -> Study:
    """What a run needs, checked before anything starts or is written; BadInput names a mistake in one line.

    Args:
        params_file: flat YAML; its stem names the run unless it has a key `run`. Relative paths in it are looked for
            in the current folder, then in its own.
        notebooks: folder with `01_*.ipynb` and so on; a key `notebooks` of the file names others, as `extra/name`.
        overrides: params in place of the file's, for instance `model`.
    """
    params = keys.read_params(params_file) | overrides
    written = {"run": params_file.stem} | params
    names = params.pop("notebooks", None) or [file.stem for file in numbered(notebooks)]
    files = [notebooks / f"{name}.ipynb" for name in names] if isinstance(names, list) else []
    if not files or not all(file.is_file() for file in files):
        raise BadInput(f"notebooks: not all of {names!r} are in {notebooks}")
    run = params.setdefault("run", params_file.stem)
    if not isinstance(run, str) or not RUN.fullmatch(run):
        raise BadInput(f"run must be a folder name of letters, digits, '-', '_' and '.', not {run!r}")
    taken = {file: keys.notebook_parameters(file) for file in files}
    keys.check_params(params, {key: one for file in files for key, one in flat(taken[file]).items()})
    params, inputs = keys.resolved(params, [Path.cwd(), params_file.parent])
    stages = {}
    for file in files:
        given, named = ({name: d[name] for name in flat(taken[file]) if name in d} for d in (params, inputs))
        stages[file.stem] = Stage(file, keys.handed(params, taken[file]), named, given)
    return Study(run, stages, params_file, written)


def check_reachable(study: Study, stages: Sequence[str]) -> dict[str, Any]:
    """Judges behind an endpoint, by parameter; BadInput names a parameter whose judge or hub model is not to be had."""
    judges: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for name in stages:
        given |= study.stages[name].given
        keys.check_hub(study.stages[name].given, study.stages[name].inputs)
    for key in ("judge", "second_judge"):
        if given.get(key, "").startswith("endpoint:"):
            from steerlib.judges import load_judge  # torch comes with it

            try:
                judges[key] = load_judge(given[key], **given.get(f"{key}_settings", {}))
                judges[key].try_once()
            except (ImportError, KeyError, TypeError, ValueError, ConnectionError) as failure:
                raise BadInput(f"{key}: {failure.args[0]}") from None
    return judges


def numbered(folder: Path) -> list[Path]:
    """The numbered notebooks in order: 04_evaluation, 04b_costs, 05_figures."""
    return sorted(folder.glob("[0-9][0-9]*_*.ipynb"))


def run_study(study: Study, *, only: Sequence[str] = (), force: bool = False) -> Path:
    """The run's folder, its notebooks executed in order; a finished one of which nothing has changed is kept.

    All params are written into it, with the command; that file runs as any other params file.

    Args:
        only: beginnings of names, for instance `03`; the other notebooks are left as they are.
        force: execute finished notebooks again. Tables of the run stay; notebooks decide what they redo.

    Raises BadInput where `only` names no notebook or the same run is going on in another process; else as `execute`.
    """
    for start in only:
        if not any(name.startswith(start) for name in study.stages):
            raise BadInput(f"--only {start}: no such notebook; there are {', '.join(study.stages)}")
    started, folder, peaks = time.perf_counter(), results_folder(study.run), [0.0]
    chosen = [name for name in study.stages if not only or name.startswith(tuple(only))]
    states = {name: state(study, name, folder / "notebooks") for name in chosen}
    due = [name for name, (took, changed) in states.items() if took is None or changed or force]
    check_reachable(study, due)
    try:
        with FileLock(folder / LOCK, timeout=0):  # freed when its holder ends, even a killed one
            if study.file.parent.resolve() != folder.resolve():
                written = yaml.safe_dump(study.params, sort_keys=False, allow_unicode=True)
                with atomic_path(folder / PARAMS) as partial:
                    partial.write_text(f"# {study.file}: {_command()}\n{written}", encoding="utf-8")
            for name in chosen:
                peaks.append(_run_stage(study, name, folder / "notebooks", force))
    except Timeout:
        raise BadInput(f"run {study.run!r} is already going on in another process") from None
    print(f"total {time.perf_counter() - started:.1f} s, peak memory {max(peaks):.2f} GB", flush=True)
    return folder


def _command() -> str:
    return shlex.join(["python", "-m", "steerlib", *sys.argv[1:]])


def _run_stage(study: Study, name: str, folder: Path, force: bool) -> float:
    """Peak memory of the stage in GB, 0 where it is kept."""
    print(f"{name:<24}", end=" ", flush=True)
    seconds, changed = state(study, name, folder)
    if seconds is not None and not changed and not force:
        print(f"kept    {seconds:8.1f} s when it ran", flush=True)
        return 0
    done, stage, made_from = folder / f"{name}.done.json", study.stages[name], _made_from(study, name, folder)
    done.unlink(missing_ok=True)
    for drawn in (folder.parent / "figures").glob(f"{name.partition('_')[0]}_*"):
        drawn.unlink()  # the stage may not draw it any more
    try:
        seconds, memory = execute(stage.notebook, folder / f"{name}.ipynb", stage.parameters)
    except BaseException:
        print("failed", flush=True)
        raise
    with atomic_path(done) as partial:
        partial.write_text(json.dumps({"made_from": made_from, "seconds": seconds, "finished": time.time()}))
    why = f"  again: {', '.join(changed)} changed" if changed else ""
    again = f"\r{name:<24} " if sys.stdout.isatty() else ""  # a progress bar has taken the line
    print(f"{again}done    {seconds:8.1f} s {memory:6.2f} GB{why}", flush=True)
    return memory


def state(study: Study, name: str, folder: Path) -> tuple[float | None, list[str]]:
    """Seconds that a stage took, None where it has not finished; and what has changed since."""
    try:
        record = json.loads((folder / f"{name}.done.json").read_text())
        before, seconds = dict(record["made_from"]), float(record["seconds"])
    except (OSError, ValueError, KeyError, TypeError):  # a truncated done-file is none
        return None, []
    now = _made_from(study, name, folder)
    changed = [part for part in now | before if now.get(part) != before.get(part)]
    return (seconds, changed) if (folder / f"{name}.ipynb").exists() else (None, [])


def _made_from(study: Study, name: str, folder: Path) -> dict[str, str]:
    """Digests of everything that a stage's results rest on, by what a message calls it."""
    stage, made_from = study.stages[name], {}
    for before in takewhile(lambda before: before != name, study.stages):
        done = folder / f"{before}.done.json"
        made_from[before] = _digest(done.read_text() if done.exists() else "")
    cells = json.loads(stage.notebook.read_text(encoding="utf-8"))["cells"]
    made_from["code"] = _digest(*("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    made_from["library"] = _digest(*map(version, ("torch", "transformers")), *_contents(ROOT / "steerlib"))
    made_from |= {key: _digest(json.dumps(value, sort_keys=True)) for key, value in stage.parameters.items()}
    for key, paths in stage.inputs.items():
        made_from[f"content of {key}"] = _digest(*(line for path in paths for line in _contents(path)))
    return made_from


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _contents(path: Path) -> list[str]:
    """Digest of a file, or of every file of a folder: by content; large weights by size and evenly spread blocks."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix not in {".pyc", ".partial"}]
        return [f"{file.relative_to(path)} {_contents(file)}" for file in files if file.is_file()]
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as stream:
        if path.suffix not in WEIGHTS or size <= LARGE:
            return [hashlib.file_digest(stream, "sha256").hexdigest()]
        for block in range(BLOCKS):
            stream.seek(block * (size - 2**16) // (BLOCKS - 1))
            digest.update(stream.read(2**16))
    return [f"{size} {digest.hexdigest()}"]


def execute(notebook: Path, copy: Path, parameters: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds and peak memory in GB of a notebook, executed in its own folder; the executed copy is left.

    The copy is called `<stem>.partial.ipynb` until it is complete, and `<stem>.failed.ipynb` where a cell raised or
    the kernel died (NotebookFailed). KeyboardInterrupt where the run was interrupted.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    # Its warnings come from a line-by-line reader that misses `int | None`; ours were checked already.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    started, seen = time.perf_counter(), [(False, 0.0)]
    partial, failed = copy.with_suffix(".partial.ipynb"), copy.with_suffix(".failed.ipynb")
    for stale in (partial, failed, copy):
        stale.unlink(missing_ok=True)
    copy.parent.mkdir(parents=True, exist_ok=True)

    def watch(cell: Any, cell_index: int, execute_reply: Mapping[str, Any]) -> None:  # noqa: ARG001
        seen.append((execute_reply["content"]["status"] == "ok", _kernels_gb()))

    told = {COMMAND: _command(), PROGRESS_FILE: _terminal(), "PLOTLY_RENDERER": "plotly_mimetype"}
    settings = PAPERMILL | {"cwd": notebook.parent, "on_cell_executed": watch}
    try:
        with patch.dict(os.environ, told), tempfile.TemporaryDirectory(prefix="steerlib-") as sockets:
            settings["config"] = _sockets(sockets)
            executed: Any = papermill.execute_notebook(notebook, partial, dict(parameters), **settings)
    except (papermill.PapermillExecutionError, DeadKernelError) as error:
        if partial.exists():
            partial.replace(failed)
        reason = "lost its kernel, most likely because memory ran out: choose fewer rows or a smaller model"
        if isinstance(error, papermill.PapermillExecutionError):
            said = f"failed in cell [{error.exec_count}]: {error.ename}: {error.evalue}"
            remedies = [f"({remedy})" for sign, remedy in REMEDIES.items() if sign in said]
            reason = " ".join([*said.split(), *remedies])[:500]
        raise NotebookFailed(f"{notebook.stem} {reason}; executed copy: {os.path.relpath(failed)}") from None
    # After Ctrl-C the executed copy calls cells done that never ran; the kernel's replies do not.
    code = [cell for cell in executed.cells if cell.cell_type == "code" and cell.source.strip()]
    if sum(ok for ok, _ in seen) < len(code):
        raise KeyboardInterrupt
    partial.replace(copy)
    return time.perf_counter() - started, max(gb for _, gb in seen)


def _sockets(folder: str) -> Config:
    """A kernel that talks over Unix sockets of its own, so that runs side by side never share a port.

    Where the folder's path is too long for a socket (Unix allows about 107 bytes), and on Windows, it talks by TCP.
    """
    short = len(os.fsencode(folder)) <= 80 and sys.platform != "win32"
    file = os.path.join(folder, "kernel.json")  # sockets are named after it
    return Config({"KernelManager": {"transport": "ipc" if short else "tcp", "connection_file": file}})


def _terminal() -> str:
    """Where a kernel writes how far its long work has come: what the user looks at, else nowhere."""
    if not sys.stdout.isatty():
        return os.devnull
    return "CONOUT$" if sys.platform == "win32" else os.ttyname(sys.stdout.fileno())


def _kernels_gb() -> float:
    """Peak resident memory of the kernel that runs, in GB, where the system tells it (Linux); else 0."""
    peaks = [0]
    for child in psutil.Process().children():
        with suppress(OSError, IndexError):
            status = Path(f"/proc/{child.pid}/status").read_text()
            peaks.append(int(status.split("VmHWM:")[1].split()[0]) * 1024)
    return max(peaks) / 1e9
