"""A whole run: one params file through the notebooks in order, resumed where an earlier one stopped."""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from steerlib.runner.parameters import BadInput, check_params, notebook_parameters, read_params
from steerlib.tables import ROOT, atomic_path, results_folder

NOTEBOOKS = ROOT / "notebooks"


@dataclass(frozen=True)
class Stage:
    """A notebook and the parameters it is handed."""

    notebook: Path
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        return self.notebook.stem


@dataclass(frozen=True)
class Study:
    """What a params file asks for, checked: the name of the run and its notebooks in order."""

    run: str
    stages: tuple[Stage, ...]
    inputs: tuple[Path, ...]


def plan(
    params_file: Path, *, data: Path | None = None, model: str | None = None, notebooks: Path = NOTEBOOKS
) -> Study:
    """Read and check everything a run needs, before anything starts or is written.

    Args:
        params_file: flat YAML; its stem names the run unless it has a key `run`.
        data: folder handed to notebooks that take `data_folder`.
        model: hub id or folder handed to notebooks that take `model`, in place of the params file's.
        notebooks: folder with `01_*.ipynb` and so on.

    Raises:
        BadInput: anything missing, unknown or ill-typed, named in one line.
    """
    params = read_params(params_file)
    files = _files(notebooks, params.pop("notebooks", None))
    if data is not None:
        params["data_folder"] = str(data.resolve())
    if model is not None:
        params["model"] = str(Path(model).resolve()) if Path(model).is_dir() else model
    taken = {file: notebook_parameters(file) for file in files}
    check_params({name: params[name] for name in params if name != "run"}, {f.stem: taken[f] for f in files})
    run = params.setdefault("run", params_file.stem)
    if not isinstance(run, str) or Path(run).name != run or run.startswith("."):
        raise BadInput(f"run must be a plain folder name, not {run!r}")
    folder = params.get("data_folder")
    if folder and not Path(folder).is_dir():
        raise BadInput(f"data folder {folder} does not exist")
    stages = (Stage(file, {name: params[name] for name in params if name in taken[file]}) for file in files)
    given = (params.get("data_folder"), params.get("model"))
    return Study(run, tuple(stages), tuple(Path(path) for path in given if path and Path(path).is_dir()))


def _files(folder: Path, names: object) -> list[Path]:
    """The numbered notebooks in order, or those that the params file names, for instance `extra/name`."""
    if names is None:
        files = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
        if not files:
            raise BadInput(f"no notebooks like 01_name.ipynb in {folder}")
        return files
    if not isinstance(names, list) or not names:
        raise BadInput(f"notebooks must be a list of names, not {names!r}")
    files = [folder / f"{name}.ipynb" for name in names]
    for file in files:
        if not file.is_file():
            raise BadInput(f"notebooks: there is no {file}")
    return files


def run_study(study: Study, *, only: Sequence[str] = (), force: bool = False) -> Path:
    """Run the notebooks in order, one line each; a finished one whose code and inputs are unchanged is kept.

    Args:
        study: what `plan` returned.
        only: beginnings of names, for instance `03`; the other notebooks are left as they are.
        force: execute finished notebooks again. Tables of the run stay; notebooks decide what they redo.

    Returns:
        The run's folder.

    Raises:
        BadInput: `only` names no notebook, or the same run is going on in another process.
        NotebookFailed, KeyboardInterrupt: from the notebook; those before it stay finished.
    """
    for start in only:
        if not any(stage.name.startswith(start) for stage in study.stages):
            names = ", ".join(stage.name for stage in study.stages)
            raise BadInput(f"--only {start}: no such notebook; there are {names}")
    started, folder = time.perf_counter(), results_folder(study.run)
    with _alone(folder):
        before = _digest(_described(study))
        for stage in study.stages:
            done = folder / "notebooks" / f"{stage.name}.done.json"
            if not only or stage.name.startswith(tuple(only)):
                _run_stage(stage, done, before, force)
            # What this notebook left behind is an input of the next: run anew, it makes those after it run anew.
            before = _digest([before, done.read_text() if done.exists() else ""])
    print(f"total {time.perf_counter() - started:.1f} s, peak memory {peak_gb():.2f} GB", flush=True)
    return folder


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Keep a second process out of the run's folder; the lock dies with its holder, even a killed one."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise BadInput(f"run {folder.name!r} is already going on in another process") from None


def _run_stage(stage: Stage, done: Path, before: str, force: bool) -> None:
    from steerlib.runner.kernel import execute, progress_file

    print(f"{stage.name:<24}", end=" ", flush=True)
    copy = done.with_name(f"{stage.name}.ipynb")
    fingerprint = _digest([before, _code(stage.notebook), json.dumps(stage.parameters, sort_keys=True)])
    if not force and copy.exists() and done.exists():
        record = json.loads(done.read_text())
        if record["fingerprint"] == fingerprint:
            print(f"kept    {record['seconds']:8.1f} s when it ran", flush=True)
            return
    done.unlink(missing_ok=True)
    try:
        with _shown_progress(stage.name, progress_file(copy)):
            outcome = execute(stage.notebook, copy, stage.parameters)
    except BaseException:
        print("failed", flush=True)
        raise
    finally:
        progress_file(copy).unlink(missing_ok=True)
    record = {"fingerprint": fingerprint, "seconds": outcome.seconds, "finished": time.time()}
    with atomic_path(done) as partial:
        partial.write_text(json.dumps(record) + "\n")
    memory = f"{outcome.peak_gb:6.2f} GB" if outcome.peak_gb else ""
    print(f"done    {outcome.seconds:8.1f} s {memory}", flush=True)


@contextmanager
def _shown_progress(name: str, file: Path) -> Generator[None]:
    """Show on a terminal, every second, how far the kernel has come with its long work."""
    stop = threading.Event()

    def show() -> None:
        while not stop.wait(1):
            with suppress(OSError):
                newest = file.read_text().split("\r")[-1].strip()
                print(f"\r{name:<24} {newest:<90}", end="", flush=True)
        print(f"\r{' ' * 115}\r{name:<24} ", end="", flush=True)

    thread = threading.Thread(target=show, daemon=True)
    if sys.stdout.isatty():
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _code(notebook: Path) -> str:
    """Source of the code cells: prose and stored outputs may change without a new run."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return json.dumps(["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"])


def _described(study: Study) -> list[str]:
    """The library by content, the user's folders by size and time: a model's folder is too large to read."""
    library = [file for file in sorted((ROOT / "steerlib").rglob("*")) if file.is_file()]
    sources = [file for file in library if file.suffix not in {".pyc", ".partial"}]
    described = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sources]
    for folder in study.inputs:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                described.append(
                    f"{file.relative_to(folder)} {file.stat().st_size} {file.stat().st_mtime_ns}"
                )
    return described


def peak_gb() -> float:
    """Largest resident memory, in GB, of any kernel this process has finished with."""
    try:
        import resource
    except ImportError:  # Windows has no such count
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
