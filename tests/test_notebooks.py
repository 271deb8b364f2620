"""What every committed notebook and params file keeps to, so that none can drift from the others."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from stored import KERNEL, machine_paths, store_notebooks

from steerlib import params
from steerlib.params import Parameter, flat, notebook_parameters, read_params
from steerlib.runner import NotebookFailed, numbered, plan
from steerlib.tables import ROOT

NOTEBOOKS = numbered(ROOT / "notebooks")
ALL = [*NOTEBOOKS, *sorted((ROOT / "notebooks" / "extra").glob("*.ipynb"))]
PARAMS = sorted((ROOT / "params").glob("*.yaml"))
AT_THE_CALL = {"run", "data_folder"}
LONGEST_CELL = 15
MOST_PARAMETERS = 20
MOST_CELLS = 30
MOST_BYTES = 1_000_000
CODE_LINES = range(30, 131)  # those of the imports and parameters are lists, and not counted

numbered_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
every_notebook = pytest.mark.parametrize("notebook", ALL, ids=lambda path: path.stem)


def code_cells(notebook: Path) -> list[nbformat.NotebookNode]:
    cells = nbformat.read(notebook, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]


@every_notebook
def test_a_notebook_has_parameters_defines_nothing_and_its_cells_are_short_but_for_lists(
    notebook: Path,
) -> None:
    assert "run" in notebook_parameters(notebook)
    defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for cell in code_cells(notebook):
        parsed = ast.parse(re.sub(r"^\s*[%!].*", "", cell.source, flags=re.MULTILINE))
        assert not [node for node in ast.walk(parsed) if isinstance(node, defining)], cell.source
        kinds = {type(node) for node in parsed.body}
        listing = kinds <= {ast.AnnAssign} or kinds <= {ast.Import, ast.ImportFrom}
        assert listing or cell.source.count("\n") < LONGEST_CELL, cell.source


@numbered_notebook
def test_a_numbered_notebook_can_be_read_in_one_go(notebook: Path) -> None:
    cells, code = nbformat.read(notebook, as_version=4).cells, code_cells(notebook)
    lines = [line for cell in code[2:] for line in cell.source.splitlines() if line.strip()]
    importing = [cell for cell in code if re.search(r"^(import|from) ", cell.source, flags=re.MULTILINE)]
    found = {
        "cells": len(cells) <= MOST_CELLS,
        f"{len(lines)} lines of code": len(lines) in CODE_LINES,
        "one import cell": importing == code[:1],
        "parameters": len(notebook_parameters(notebook)) <= MOST_PARAMETERS,
        "opens with its question": "?" in cells[0].source,
        "says what is in this run": any("In this run:" in cell.source for cell in code[2:6]),
    }
    assert [rule for rule, kept in found.items() if not kept] == []


@every_notebook
def test_a_notebook_is_stored_as_it_ran_from_top_to_bottom_or_says_it_was_not_run_and_names_no_machine(
    notebook: Path,
) -> None:
    stored, cells = nbformat.read(notebook, as_version=4), code_cells(notebook)
    if "**Not run here**" in stored.cells[0].source:
        assert notebook not in NOTEBOOKS and not any(cell.outputs for cell in cells)
    else:
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert any(cell.outputs for cell in cells)
    assert "error" not in {output.output_type for cell in cells for output in cell.outputs}
    assert notebook.stat().st_size < MOST_BYTES
    assert stored.metadata == {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    assert {key for cell in stored.cells for key in cell.metadata} <= {"tags"}
    assert machine_paths(stored) == []


def test_a_parameter_means_the_same_in_every_notebook_and_the_quick_params_are_the_defaults() -> None:
    seen: dict[str, Parameter] = {}
    for notebook in NOTEBOOKS:
        for name, parameter in flat(notebook_parameters(notebook)).items():
            assert seen.setdefault(name, parameter) == parameter
    defaults = {name: parameter.default for name, parameter in seen.items() if name not in AT_THE_CALL}
    assert read_params(ROOT / "params" / "quick.yaml") == defaults


@pytest.mark.parametrize("file", PARAMS, ids=lambda path: path.stem)
def test_a_params_file_holds_only_what_notebooks_take_and_no_folder_of_a_machine(file: Path) -> None:
    given = read_params(file)
    plan(file)
    assert "data_folder" not in given
    assert given.get("run", file.stem) == file.stem
    assert not [value for value in given.values() if str(value).startswith(("/", "~"))]


def test_the_lists_of_the_params_check_name_parameters_that_there_are() -> None:
    known = {name for notebook in ALL for name in flat(notebook_parameters(notebook))}
    listed = {*params.WORDS, *params.FILES, *params.WITHIN_DATA}
    assert listed.union(*(names for *_, names in params.RANGES)) <= known


@every_notebook
def test_every_model_of_a_notebook_is_loaded_with_the_runs_template_arguments(notebook: Path) -> None:
    source = "\n".join(cell.source for cell in code_cells(notebook))
    if "template_arguments" in flat(notebook_parameters(notebook)):
        calls = re.findall(r"load_model\((.*)\)", source)
        assert len(calls) == source.count("load_model(")
        assert all("template_arguments=" in call or "**" in call for call in calls)


GOOD = "import os\nos.makedirs(os.environ['STEERLIB_RESULTS'] + '/quick/figures')"
BAD = {
    "raise KeyError": r"^02_bad failed in cell \[1\]",
    "print('read /home/ann/ratings.csv')": r"02_bad\.ipynb cell \[1\]: /home/ann",
}


@pytest.mark.parametrize("cell", BAD)
def test_nothing_is_stored_where_a_notebook_fails_or_an_output_names_a_folder_of_the_machine(
    cell: str, tmp_path: Path
) -> None:
    for name, source in {"01_good": GOOD, "02_bad": cell}.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises((NotebookFailed, ValueError), match=BAD[cell]):
        store_notebooks(tmp_path, figures=tmp_path / "figures")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
