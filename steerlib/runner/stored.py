"""Notebooks committed with the outputs of their own defaults, so that a reader online sees the figures."""

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat

from steerlib.runner.kernel import environment, execute
from steerlib.runner.parameters import BadInput
from steerlib.tables import ROOT, atomic_path

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
