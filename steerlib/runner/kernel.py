"""One notebook executed in a kernel of its own, and the proof that every cell of it ran."""

import contextlib
import logging
import os
import sys
import time
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jupyter_client.manager import AsyncKernelManager
from jupyter_core.paths import jupyter_runtime_dir

from steerlib.progress import PROGRESS_FILE

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
