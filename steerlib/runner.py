"""Notebooks committed with the outputs of their own defaults, so that a reader online sees the figures.

The parameters of a run: what each notebook takes, what a params file gives, and whether they fit.

Everything is checked before the first notebook starts. A misspelt key would otherwise run for hours with the
default in its place, and `1e-4`, which YAML reads as text, would fail deep inside a cell.

One notebook executed in a kernel of its own, and the proof that every cell of it ran.

A whole run: one params file through the notebooks in order, resumed where an earlier one stopped.
"""

import ast
import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import nbformat
import yaml
from filelock import FileLock, Timeout
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.paths import jupyter_runtime_dir

from steerlib.tables import PROGRESS_FILE, ROOT, atomic_path, results_folder


class BadInput(ValueError):
    """A mistake in what the user gave; its message is one line and needs no traceback."""


@dataclass(frozen=True)
class Parameter:
    """One line of a `parameters` cell, `name: annotation = default`."""

    name: str
    annotation: str
    default: Any

    def takes(self, value: object) -> bool:
        """Whether the value is of the annotated type; a whole number serves as a float, True is no number."""
        return _fits(value, ast.parse(self.annotation, mode="eval").body)


TYPES = {"str": str, "bool": bool, "int": int, "float": (int, float), "list": list, "dict": dict}


def _fits(value: object, annotation: ast.expr) -> bool:
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Name(id=name) if name in TYPES:
            return isinstance(value, TYPES[name]) and (name == "bool" or not isinstance(value, bool))
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(_fits(entry, item) for entry in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, item])):
            return isinstance(value, dict) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    raise BadInput(f"a parameter cannot be annotated {ast.unparse(annotation)!r}")


def notebook_parameters(notebook: Path) -> dict[str, Parameter]:
    """Parameters a notebook takes, by name, read from its cell tagged `parameters` without running it.

    Raises:
        BadInput: not exactly one such cell, or a line of it that is not `name: type = literal`.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise BadInput(f"{notebook.name} has {len(tagged)} cells tagged 'parameters', not 1")
    lines = ast.parse("".join(tagged[0]["source"])).body
    parameters = [_parameter(line, notebook.name) for line in lines]
    return {parameter.name: parameter for parameter in parameters}


def _parameter(line: ast.stmt, notebook: str) -> Parameter:
    match line:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
            try:
                parameter = Parameter(name, ast.unparse(annotation), ast.literal_eval(value))
            except ValueError:
                raise BadInput(f"{notebook}: the default of {name!r} is not a literal") from None
            if not parameter.takes(parameter.default):
                raise BadInput(
                    f"{notebook}: {name} is {parameter.annotation}, its default {ast.unparse(value)}"
                )
            return parameter
    raise BadInput(f"{notebook}: {ast.unparse(line)!r} in the parameters cell is not `name: type = literal`")


class _UniqueKeys(yaml.SafeLoader):
    """YAML as usual, but a key given twice is refused: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(None, None, f"{key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_params(path: Path) -> dict[str, Any]:
    """Keys and values of a flat params file; an empty file is a run with all defaults.

    Raises:
        BadInput: the file is absent, not YAML, not a mapping, or gives a key twice.
    """
    if not path.is_file():
        raise BadInput(f"params file {path} does not exist")
    try:
        params = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as failure:
        raise BadInput(f"{path} is not valid YAML: {' '.join(str(failure).split())}") from None
    if params is None:
        return {}
    if not isinstance(params, dict) or not all(isinstance(key, str) for key in params):
        raise BadInput(f"{path} must hold lines `key: value` with keys that are words, not {params!r}")
    return params


def check_params(params: Mapping[str, Any], notebooks: Mapping[str, Mapping[str, Parameter]]) -> None:
    """Refuse what no notebook takes, what has the wrong type, and what looks like a secret.

    Args:
        params: keys and values as given.
        notebooks: parameters of each notebook, by notebook.

    Raises:
        BadInput: naming every offending key, what was expected and what was given.
    """
    secrets = [name for name, value in params.items() if _is_secret(name, value)]
    if secrets:
        raise BadInput(
            f"{', '.join(secrets)}: params end up in executed notebooks, so a secret must not be among them;"
            " put it in the environment (HF_TOKEN for the hub)"
        )
    problems = [problem for name in params for problem in _problems(name, params[name], notebooks)]
    if problems:
        raise BadInput("; ".join(dict.fromkeys(problems)))


def _is_secret(name: str, value: object) -> bool:
    words = re.split(r"[^a-z]+", name.lower())
    if words[-1] in {"token", "key", "apikey"} or {"secret", "password", "passwd"} & set(words):
        return True
    return isinstance(value, str) and re.match(r"(hf_|sk-)\w{16,}", value) is not None


def _problems(name: str, value: object, notebooks: Mapping[str, Mapping[str, Parameter]]) -> list[str]:
    takers = [parameters[name] for parameters in notebooks.values() if name in parameters]
    if not takers:
        known = sorted({known for parameters in notebooks.values() for known in parameters})
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the notebooks take {', '.join(known) or 'none'}"
        return [f"unknown parameter {name!r}; {hint}"]
    if not _is_finite(value):
        return [f"{name} must be finite, not {value!r}"]
    return [_mismatch(taker, value) for taker in takers if not taker.takes(value)]


def _is_finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _mismatch(parameter: Parameter, value: object) -> str:
    message = (
        f"{parameter.name} must be {parameter.annotation}, as in {parameter.default!r},"
        f" not {value!r} ({type(value).__name__})"
    )
    if re.search(r"'[-+]?\d+e[-+]?\d+'", repr(value)):
        message += ": YAML reads 1e-4 as text, write 1.0e-4"
    return message


BATCH = {"STEER_BATCH": "1", "PLOTLY_RENDERER": "plotly_mimetype"}
"""Environment of every kernel started here: plain progress lines, figures as data."""

LONGEST_SOCKET_PATH = 100  # bytes; Unix allows about 107, and the channel's number is still to come


class NotebookFailed(RuntimeError):
    """A notebook did not reach its end; the message says where and why, in one line."""


@dataclass(frozen=True)
class Outcome:
    """What an executed notebook cost."""

    seconds: float
    peak_gb: float | None


class SocketKernelManager(AsyncKernelManager):
    """A kernel that talks over Unix sockets of its own, so that runs side by side never share a port.

    The connection file must be named here: left to its default, all kernels of a folder share socket names and
    dead-lock. Where the path is too long for a socket the kernel falls back to TCP.
    """

    newest: ClassVar["SocketKernelManager | None"] = None

    def __init__(self, **kwargs: Any) -> None:
        folder = jupyter_runtime_dir()
        os.makedirs(folder, mode=0o700, exist_ok=True)
        file = os.path.join(folder, f"k-{uuid.uuid4().hex[:12]}.json")
        short = len(os.fsencode(file)) <= LONGEST_SOCKET_PATH and sys.platform != "win32"
        super().__init__(transport="ipc" if short else "tcp", connection_file=file, **kwargs)
        SocketKernelManager.newest = self

    def peak_gb(self) -> float | None:
        """Peak resident memory of the kernel so far, where the system tells it (Linux)."""
        with contextlib.suppress(OSError, AttributeError):
            pid = self.provisioner.pid  # ty: ignore[missing-attribute]
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / 1e9
        return None


class _Watch:
    """Counts cells the kernel reported as done; after Ctrl-C the file calls cells done that never ran."""

    def __init__(self) -> None:
        self.done = 0
        self.peak_gb: float | None = None

    def __call__(self, cell: Any, cell_index: int, execute_reply: Mapping[str, Any]) -> None:  # noqa: ARG002
        self.done += execute_reply["content"]["status"] == "ok"
        kernel = SocketKernelManager.newest
        self.peak_gb = kernel.peak_gb() if kernel else None


def execute(notebook: Path, copy: Path, parameters: Mapping[str, Any]) -> Outcome:
    """Execute a notebook in its own folder and leave the executed copy, whole or under another name.

    Args:
        notebook: the source, never changed.
        copy: where the executed copy goes. Until it is complete it is called `<stem>.partial.ipynb`, and
            `<stem>.failed.ipynb` where a cell failed.
        parameters: values for the notebook's `parameters` cell; what is not named keeps its default.

    Returns:
        Seconds and peak memory.

    Raises:
        NotebookFailed: a cell raised, or the kernel died.
        KeyboardInterrupt: the run was interrupted.
    """
    started = time.perf_counter()
    partial, failed = copy.with_suffix(".partial.ipynb"), copy.with_suffix(".failed.ipynb")
    for stale in (partial, failed, copy):
        stale.unlink(missing_ok=True)
    copy.parent.mkdir(parents=True, exist_ok=True)
    watch = _Watch()
    try:
        executed = _papermill(notebook, partial, parameters, watch)
    except NotebookFailed as failure:
        if partial.exists():
            partial.replace(failed)
        raise NotebookFailed(f"{notebook.stem} {failure}; executed copy: {_shown(failed)}") from None
    if watch.done < sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in executed.cells):
        raise KeyboardInterrupt
    partial.replace(copy)
    return Outcome(time.perf_counter() - started, watch.peak_gb)


def _papermill(notebook: Path, partial: Path, parameters: Mapping[str, Any], watch: _Watch) -> Any:
    import papermill
    from nbclient.exceptions import DeadKernelError

    # Its warnings come from a line-by-line reader that misses `int | None`; ours were checked already.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        with environment({**BATCH, PROGRESS_FILE: str(progress_file(partial))}):
            return papermill.execute_notebook(
                notebook,
                partial,
                parameters=dict(parameters),
                cwd=notebook.parent,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                autosave_cell_every=5,
                coalesce_streams=True,
                store_widget_state=False,
                record_timing=False,
                kernel_manager_class=SocketKernelManager,
                extra_arguments=["--IPKernelApp.log_level=50"],  # else Ctrl-C prints its traceback
                on_cell_executed=watch,
            )
    except papermill.PapermillExecutionError as error:
        reason = " ".join(f"{error.ename}: {error.evalue}".split())
        raise NotebookFailed(f"failed in cell [{error.exec_count}]: {reason[:400]}") from None
    except DeadKernelError:
        raise NotebookFailed(
            f"lost its kernel after {watch.done} cells, most likely because memory ran out:"
            " choose fewer rows to a batch or a smaller model"
        ) from None


def progress_file(copy: Path) -> Path:
    """Where a kernel writes how far its long work has come."""
    return copy.with_name(copy.name.split(".")[0] + ".progress")


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Generator[None]:
    """Environment variables for the kernels started within; what was set before comes back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _shown(path: Path) -> str:
    """The path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


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
    from steerlib.runner import execute, progress_file

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


KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"
HOUSES = r"(?<![\w<:/.])/(?:home|Users|root|tmp|var|usr|opt|mnt|private|srv)/[\w.-]+"


def store_notebooks(
    notebooks: Path = ROOT / "notebooks",
    *,
    figures: Path = ROOT / "figures" / "quick",
    scratch: Path = ROOT / "results" / ".stored",
) -> list[Path]:
    """Run all notebooks with their defaults from nothing, then store the outputs in them: all of them or none.

    Args:
        notebooks: folder with `01_*.ipynb` and so on; they are rewritten in place.
        figures: replaced by the figures which the run `quick` made.
        scratch: results folder of this run; emptied first, kept afterwards for a look.

    Returns:
        The notebooks stored.

    Raises:
        BadInput: no notebooks, or an output names a path of this machine.
        NotebookFailed: a notebook did not reach its end.
    """
    files = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not files:
        raise BadInput(f"no notebooks like 01_name.ipynb in {notebooks}")
    shutil.rmtree(scratch, ignore_errors=True)
    with environment({"STEERLIB_RESULTS": str(scratch)}):
        stored = {file: _executed(file, scratch / "notebooks" / file.name) for file in files}
    problems = [f"{file.name} {found}" for file in files for found in machine_paths(stored[file])]
    if problems:
        raise BadInput("outputs name paths of this machine, nothing was stored: " + "; ".join(problems))
    for file, notebook in stored.items():
        with atomic_path(file) as partial:
            nbformat.write(notebook, partial)
    if (scratch / "quick" / "figures").is_dir():
        shutil.rmtree(figures, ignore_errors=True)
        shutil.copytree(scratch / "quick" / "figures", figures, ignore=shutil.ignore_patterns("*.partial"))
    return files


def _executed(source: Path, copy: Path) -> nbformat.NotebookNode:
    outcome = execute(source, copy, {})
    print(f"{source.stem:<24} done    {outcome.seconds:8.1f} s", flush=True)
    notebook, ran = (nbformat.read(path, as_version=4) for path in (source, copy))
    for number, (cell, run) in enumerate(zip(notebook.cells, ran.cells, strict=True), start=1):
        cell.setdefault("id", f"cell-{number:02d}")
        cell.metadata = {name: cell.metadata[name] for name in ("tags",) if name in cell.metadata}
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_without_widget, run.outputs) if output is not None]
            cell.execution_count = run.execution_count
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    notebook.nbformat_minor = max(notebook.nbformat_minor, 5)
    return nbformat.from_dict(notebook)


def _without_widget(output: Any) -> Any:
    """A widget's view is dead without its kernel and its id differs each time; its text stays."""
    if WIDGET not in output.get("data", {}):
        return output
    output.data.pop(WIDGET)
    return output if output.data else None


def machine_paths(notebook: nbformat.NotebookNode) -> list[str]:
    """Where a stored output names a folder of the machine it ran on: `cell [3]: /home/...`, one entry a cell.

    Pictures and plot data are searched only for this machine's own folders, as base64 looks like any path.
    """
    own = {str(ROOT), str(Path.home()), sys.prefix, tempfile.gettempdir()} - {"/"}
    found = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        text = json.dumps([_texts(output) for output in outputs], ensure_ascii=False)
        match = re.search(HOUSES, text)
        paths = [path for path in sorted(own) if f"{path}/" in json.dumps(outputs)]
        if match or paths:
            found.append(f"cell [{cell.execution_count}]: {match.group() if match else paths[0]}")
    return found


def _texts(output: Any) -> list[Any]:
    data = output.get("data", {})
    return [output.get("text", ""), *(data[mime] for mime in ("text/plain", "text/html") if mime in data)]
