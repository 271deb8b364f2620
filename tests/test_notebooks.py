"""What every committed notebook and params file keeps to, so that none can drift from the others."""

import ast
from pathlib import Path

import nbformat
import pytest
from stored import KERNEL, machine_paths

from steerlib.params import Parameter, flat, notebook_parameters, read_params
from steerlib.runner import numbered, plan
from steerlib.tables import ROOT

NOTEBOOKS = numbered(ROOT / "notebooks")
ALL = [*NOTEBOOKS, *sorted((ROOT / "notebooks" / "extra").glob("*.ipynb"))]
PARAMS = sorted((ROOT / "params").glob("*.yaml"))
AT_THE_CALL = {"run", "data_folder"}
LONGEST_CELL = 15
LONGEST_IMPORTS = 22
LONGEST_PARAMETERS = 36

numbered_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
every_notebook = pytest.mark.parametrize("notebook", ALL, ids=lambda path: path.stem)


def code_cells(notebook: Path) -> list[nbformat.NotebookNode]:
    cells = nbformat.read(notebook, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]


def taken() -> dict[str, dict[str, Parameter]]:
    return {notebook.stem: flat(notebook_parameters(notebook)) for notebook in NOTEBOOKS}


@every_notebook
def test_a_notebook_has_one_cell_of_annotated_literal_parameters(notebook: Path) -> None:
    assert "run" in notebook_parameters(notebook)


@every_notebook
def test_a_notebook_defines_no_function_and_no_class(notebook: Path) -> None:
    defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for cell in code_cells(notebook):
        source = "\n".join(
            line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!"))
        )
        assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, defining)], source


@every_notebook
def test_cells_are_short_but_for_the_lists_of_imports_and_parameters(notebook: Path) -> None:
    long = [c for c in code_cells(notebook) if c.source.count("\n") >= LONGEST_CELL]
    for cell in long:
        kinds = {type(node) for node in ast.parse(cell.source).body}
        limit = LONGEST_PARAMETERS if kinds == {ast.AnnAssign} else LONGEST_IMPORTS
        assert kinds <= {ast.AnnAssign} or kinds <= {ast.Import, ast.ImportFrom}, cell.source
        assert cell.source.count("\n") < limit, cell.source


# Notebooks in extra/ may need data that is not at hand, so only the numbered ones are stored with outputs.
@numbered_notebook
def test_a_notebook_is_committed_as_it_ran_from_top_to_bottom(notebook: Path) -> None:
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    assert not [cell.id for cell in cells if any(output.output_type == "error" for output in cell.outputs)]


@every_notebook
def test_a_notebook_carries_no_metadata_of_the_machine_it_ran_on(notebook: Path) -> None:
    stored = nbformat.read(notebook, as_version=4)
    assert stored.metadata == {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    assert {key for cell in stored.cells for key in cell.metadata} <= {"tags"}
    assert machine_paths(stored) == []


def test_a_parameter_means_the_same_in_every_notebook() -> None:
    seen: dict[str, Parameter] = {}
    for parameters in taken().values():
        for name, parameter in parameters.items():
            assert seen.setdefault(name, parameter) == parameter


def test_the_quick_params_are_the_notebooks_defaults() -> None:
    quick = ROOT / "params" / "quick.yaml"
    defaults = {name: parameter.default for taker in taken().values() for name, parameter in taker.items()}
    stated = read_params(quick) if quick.exists() else {}
    assert {name: stated[name] for name in stated if name not in AT_THE_CALL} == {
        name: defaults[name] for name in defaults if name not in AT_THE_CALL
    }
    assert defaults.get("run", "quick") == "quick"


@pytest.mark.parametrize("params", PARAMS, ids=lambda path: path.stem)
def test_a_params_file_holds_only_what_notebooks_take_and_no_folder_of_a_machine(params: Path) -> None:
    given = read_params(params)
    plan(params)
    assert "data_folder" not in given
    assert given.get("run", params.stem) == params.stem
    assert [
        value for value in given.values() if isinstance(value, str) and value.startswith(("/", "~"))
    ] == []


def test_a_folder_with_other_data_leaves_the_demo_ratings_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERLIB_RESULTS", str(tmp_path))
    sources = [cell.source for cell in code_cells(ROOT / "notebooks" / "01_user_profiles.ipynb")]
    reading = next(number for number, source in enumerate(sources) if "read_ratings(source" in source)
    names: dict[str, object] = {}
    for source in sources[: reading + 1]:
        exec(source, names)  # the notebook's own cells, with a folder that holds no ratings
        names["data_folder"] = str(tmp_path)
    assert len(names["rated"]) == 1701
