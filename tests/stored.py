"""`make notebooks`: run all notebooks with their defaults from nothing and store the outputs in them.

A reader online then sees the figures. All of them are stored or none, and nothing of the machine they ran on.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import nbformat

from steerlib.runner import NOTEBOOKS, NotebookFailed, execute, numbered
from steerlib.tables import ROOT, atomic_path

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"
HOUSES = r"(?<![\w<:/.])/(?:home|Users|root|tmp|var|usr|opt|mnt|private|srv)/[\w.-]+"


def store_notebooks(notebooks: Path = NOTEBOOKS, *, figures: Path = ROOT / "figures" / "quick") -> list[Path]:
    """The notebooks, rewritten in place; the folder of figures is replaced by those of the run `quick`.

    Raises:
        NotebookFailed: a notebook did not reach its end.
        ValueError: an output names a path of this machine.
    """
    files = numbered(notebooks)
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {"STEERLIB_RESULTS": folder}):
        stored = {file: executed(file, Path(folder, "notebooks", file.name)) for file in files}
        problems = [f"{file.name} {found}" for file in files for found in machine_paths(stored[file])]
        if problems:
            raise ValueError("outputs name paths of this machine, nothing was stored: " + "; ".join(problems))
        for file, notebook in stored.items():
            with atomic_path(file) as partial:
                nbformat.write(notebook, partial)
        if notebooks == NOTEBOOKS:
            tell_readme(list(stored.values()))
        if (drawn := Path(folder, "quick", "figures")).is_dir():
            shutil.rmtree(figures, ignore_errors=True)
            shutil.copytree(drawn, figures, ignore=shutil.ignore_patterns("*.partial"))
    return files


def tell_readme(stored: list[nbformat.NotebookNode], readme: Path = ROOT / "README.md") -> None:
    """Put what notebooks 00 and 04 printed between the README's two marks, so that no number there is typed by hand."""
    begin, end = "<!-- verdict -->", "<!-- /verdict -->"
    texts = [o.get("text", "") for notebook in stored for c in notebook.cells for o in c.get("outputs", [])]
    effect, verdict = (
        next(text for text in texts if what in text).strip().splitlines()
        for what in ("slope of toxicity", "Operating range: ")
    )
    block = ["**Does it steer?** From notebook 00:", "", *(f"- {line}" for line in effect)]
    block += ["", "**Is it personal?** From the quick run's verdict:", ""]
    block += [f"- {part}" for part in verdict[0].split("; ")]
    before, rest = readme.read_text("utf-8").split(begin)
    text = "\n".join(block)
    readme.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}", "utf-8")


def executed(source: Path, copy: Path) -> nbformat.NotebookNode:
    """The source with the outputs of its executed copy; of a widget, whose view dies with its kernel, the text."""
    seconds, memory = execute(source, copy, {})
    print(f"{source.stem:<24} done    {seconds:8.1f} s {memory:6.2f} GB", flush=True)
    notebook, ran = (nbformat.read(path, as_version=4) for path in (source, copy))
    for cell, run in zip(notebook.cells, ran.cells, strict=True):
        cell.metadata = {name: cell.metadata[name] for name in ("tags",) if name in cell.metadata}
        if cell.cell_type == "code":
            for output in run.outputs:
                output.get("data", {}).pop(WIDGET, None)
            cell.outputs = [output for output in run.outputs if output.get("data", True)]
            cell.execution_count = run.execution_count
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return nbformat.from_dict(notebook)


def machine_paths(notebook: nbformat.NotebookNode) -> list[str]:
    """Where a stored output names a folder of the machine it ran on: `cell [3]: /home/...`, one entry a cell.

    Pictures and plot data are searched only for this machine's own folders, as base64 looks like any path.
    """
    own, found = {str(ROOT), str(Path.home()), sys.prefix, tempfile.gettempdir()} - {"/"}, []
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        data = [{"text": output.get("text")} | output.get("data", {}) for output in outputs]
        texts = [piece.get(kind) for piece in data for kind in ("text", "text/plain", "text/html")]
        paths = re.findall(HOUSES, json.dumps(texts, ensure_ascii=False))
        paths += [path for path in sorted(own) if f"{path}/" in json.dumps(outputs)]
        found += [f"cell [{cell.execution_count}]: {paths[0]}"] if paths else []
    return found


if __name__ == "__main__":
    try:
        print(f"stored the outputs of {len(store_notebooks())} notebooks")
    except (NotebookFailed, ValueError) as failure:
        sys.exit(str(failure))
