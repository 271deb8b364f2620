"""The runner, on toy notebooks made on the spot."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from steerlib.runner import BadInput, NotebookFailed, machine_paths, plan, run_study, store_notebooks

FIRST = 'run: str = "quick"\nrows: int = 3\nalphas: list[float] = [0.5, 1.0]\nseed: int | None = None'
SECOND = 'run: str = "quick"\nrate: float = 0.5\nmodel: str = "embedded"\ndata_folder: str | None = None'


def write_notebook(path: Path, parameters: str, *cells: str) -> None:
    code = [nbformat.v4.new_code_cell(source) for source in (parameters, *cells)]
    code[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=code), path)


@pytest.fixture(scope="module")
def sockets() -> Iterator[Path]:
    """A runtime folder with a path short enough for sockets, so that killed kernels leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        yield Path(folder)


@pytest.fixture
def toy(tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two notebooks and a params file; results go beside them."""
    monkeypatch.setenv("STEERLIB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(sockets))
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path / "notebooks" / "01_first.ipynb", FIRST, "print(run, rows, alphas, seed)")
    write_notebook(tmp_path / "notebooks" / "02_second.ipynb", SECOND, "print(rate, model, data_folder)")
    (tmp_path / "toy.yaml").write_text("rows: 7\nrate: 2\nseed: null\n")
    return tmp_path


def go(toy: Path, **options: object) -> Path:
    study = plan(toy / "toy.yaml", notebooks=toy / "notebooks")
    return run_study(study, **options)  # ty: ignore[invalid-argument-type]


def printed(copy: Path) -> str:
    cells = nbformat.read(copy, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def refusal(toy: Path, params: str) -> str:
    (toy / "toy.yaml").write_text(params)
    with pytest.raises(BadInput) as caught:
        go(toy)
    assert not (toy / "results").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def command(toy: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "steerlib", "run", *arguments, "--notebooks", str(toy / "notebooks")]


def test_each_notebook_is_handed_only_the_keys_it_takes_and_the_run_is_named_by_its_file(toy: Path) -> None:
    results = go(toy)
    assert results == toy / "results" / "toy"
    assert printed(results / "notebooks" / "01_first.ipynb") == "toy 7 [0.5, 1.0] None\n"
    assert printed(results / "notebooks" / "02_second.ipynb") == "2 embedded None\n"


def test_a_finished_notebook_is_kept_until_something_it_rests_on_changes(
    toy: Path, capsys, monkeypatch
) -> None:
    (toy / "steerlib").mkdir()
    (toy / "steerlib" / "rules.py").write_text("k = 2")
    monkeypatch.setattr("steerlib.runner.ROOT", toy)  # the library in its place: this one stands still
    states = []
    for params in ("rows: 7", "rows: 7", "rows: 7\nrate: 0.1", "rows: 8\nrate: 0.1"):
        (toy / "toy.yaml").write_text(params)
        go(toy)
        states.append([line.split()[1] for line in capsys.readouterr().out.splitlines()[:2]])
    assert states == [["done", "done"], ["kept", "kept"], ["kept", "done"], ["done", "done"]]
    (toy / "steerlib" / "rules.py").write_text("k = 3")
    go(toy)
    assert "kept" not in capsys.readouterr().out


def test_force_and_only_choose_what_runs(toy: Path, capsys) -> None:
    go(toy, only=["02"])
    assert capsys.readouterr().out.startswith("02_second                done")
    go(toy)
    assert "kept" not in capsys.readouterr().out  # 02 had run before 01 was there
    go(toy, only=["01"], force=True)
    assert capsys.readouterr().out.count("done") == 1
    with pytest.raises(BadInput, match="--only 07: no such notebook; there are 01_first, 02_second"):
        go(toy, only=["07"])


def test_a_failed_cell_leaves_no_done_file_and_is_run_again(toy: Path) -> None:
    bad = toy / "notebooks" / "02_second.ipynb"
    write_notebook(bad, SECOND, "1", "raise ValueError('layer 40 is not in 0..31')", "2")
    message = r"02_second failed in cell \[4\]: ValueError: layer 40 is not in 0..31; executed copy: .*failed"
    with pytest.raises(NotebookFailed, match=message):
        go(toy)
    left = sorted(path.name for path in (toy / "results" / "toy" / "notebooks").iterdir())
    assert left == ["01_first.done.json", "01_first.ipynb", "02_second.failed.ipynb"]
    write_notebook(bad, SECOND, "1")
    left = {path.name for path in (go(toy) / "notebooks").iterdir()}
    assert "02_second.done.json" in left
    assert "02_second.failed.ipynb" not in left


def test_a_dead_kernel_is_reported_as_memory(toy: Path) -> None:
    write_notebook(toy / "notebooks" / "01_first.ipynb", FIRST, "import os; os._exit(9)")
    with pytest.raises(NotebookFailed, match=r"01_first lost its kernel .* memory ran out"):
        go(toy)


def test_a_runtime_folder_too_long_for_a_socket_serves_by_tcp(toy: Path, monkeypatch) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(toy / ("long" * 30)))
    assert printed(go(toy, only=["01"]) / "notebooks" / "01_first.ipynb").startswith("toy 7")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_run_stopped_half_way_is_no_success_and_goes_on_from_there(toy: Path, sent: signal.Signals) -> None:
    slow = "import pathlib, time; pathlib.Path('started').touch(); time.sleep(60)"
    write_notebook(toy / "notebooks" / "02_second.ipynb", SECOND, slow)
    process = subprocess.Popen(
        command(toy, str(toy / "toy.yaml")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background is started with Ctrl-C ignored, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(toy / "notebooks" / "started")
    process.send_signal(sent)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[sent]
    assert errors.count("\n") == (sent is signal.SIGINT)
    folder = toy / "results" / "toy" / "notebooks"
    assert (folder / "01_first.done.json").exists()
    assert not (folder / "02_second.done.json").exists()
    assert not (folder / "02_second.ipynb").exists()
    first = (folder / "01_first.done.json").read_text()
    write_notebook(toy / "notebooks" / "02_second.ipynb", SECOND, "1")
    go(toy)
    assert (folder / "01_first.done.json").read_text() == first
    assert not list(folder.glob("*.partial*"))


def wait_for(path: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_two_runs_at_once_do_not_clash_but_the_same_run_twice_is_refused(toy: Path) -> None:
    meet = "import pathlib, time\npathlib.Path(f'{run}.here').touch()\n"
    meet += "while not pathlib.Path('go').exists(): time.sleep(0.05)"
    write_notebook(toy / "notebooks" / "01_first.ipynb", FIRST, meet)
    (toy / "other.yaml").write_text("rows: 8\n")
    both = [subprocess.Popen(command(toy, str(toy / f"{run}.yaml"))) for run in ("toy", "other")]
    for run in ("toy", "other"):
        wait_for(toy / "notebooks" / f"{run}.here")
    with pytest.raises(BadInput, match="run 'toy' is already going on"):
        go(toy)
    (toy / "notebooks" / "go").touch()
    assert [process.wait(timeout=60) for process in both] == [0, 0]


def test_an_unknown_key_is_refused_with_the_nearest_name(toy: Path) -> None:
    assert refusal(toy, "sede: 3\n") == "unknown parameter 'sede'; did you mean 'seed'?"
    assert "the notebooks take alphas, data_folder" in refusal(toy, "zzz: 3\n")


def test_all_ill_typed_values_are_named_at_once(toy: Path) -> None:
    message = refusal(toy, "rows: three\nalphas: [0.5, '1']\nrate: true\n")
    assert "rows must be int, as in 3, not 'three' (str)" in message
    assert "alphas must be list[float], as in [0.5, 1.0], not [0.5, '1'] (list)" in message
    assert "rate must be float, as in 0.5, not True (bool)" in message


def test_a_number_that_yaml_reads_as_text_is_explained(toy: Path) -> None:
    assert "YAML reads 1e-4 as text, write 1.0e-4" in refusal(toy, "rate: 1e-4\n")
    assert "YAML reads 1e-4 as text, write 1.0e-4" in refusal(toy, "alphas: [1e-4]\n")


@pytest.mark.parametrize("value", ["rate: .nan", "rate: -.inf", "alphas: [0.1, .inf]"])
def test_numbers_that_are_not_finite_are_refused(toy: Path, value: str) -> None:
    assert "must be finite" in refusal(toy, value)


@pytest.mark.parametrize("name", ["hf_token", "HF_TOKEN", "api_key", "my_secret_name", "password"])
def test_a_secret_is_refused_without_being_shown(toy: Path, name: str) -> None:
    message = refusal(toy, f"{name}: abcdefgh\n")
    assert name in message and "environment" in message and "abcdefgh" not in message


def test_a_secret_is_known_by_its_value_too(toy: Path) -> None:
    assert "hf_abcdef" not in refusal(toy, "model: hf_abcdefghijklmnopqrst\n")


def test_a_word_that_only_resembles_a_secret_is_taken(toy: Path) -> None:
    write_notebook(toy / "notebooks" / "01_first.ipynb", "max_new_tokens: int = 2\ntoken_budget: int = 1")
    (toy / "toy.yaml").write_text("max_new_tokens: 4\ntoken_budget: 5\n")
    assert plan(toy / "toy.yaml", notebooks=toy / "notebooks").stages[0].parameters["token_budget"] == 5


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ("rows: [1\n", "is not valid YAML"),
        ("rows: 1\nrows: 2\n", "'rows' is given twice"),
        ("- rows\n", "must hold lines `key: value`"),
        ("on: 3\n", "keys that are words"),
        ("run: ../up\n", "run must be a plain folder name, not '../up'"),
        ("data_folder: nowhere\n", "data folder nowhere does not exist"),
    ],
)
def test_a_broken_params_file_is_refused(toy: Path, params: str, expected: str) -> None:
    assert expected in refusal(toy, params)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("a: int = 1\nb = 2", "'b = 2' in the parameters cell is not `name: type = literal`"),
        ("a: int = max(1, 2)", "the default of 'a' is not a literal"),
        ("a: int = 'x'", "a is int, its default 'x'"),
        ("a: Path = 'x'", "a parameter cannot be annotated 'Path'"),
    ],
)
def test_a_parameters_cell_that_cannot_be_checked_is_refused(toy: Path, cell: str, expected: str) -> None:
    write_notebook(toy / "notebooks" / "01_first.ipynb", cell)
    assert expected in refusal(toy, "{}")


def test_data_and_model_given_at_the_call_reach_the_notebook(toy: Path) -> None:
    (toy / "ratings").mkdir()
    (toy / "ratings" / "a.csv").write_text("1")
    study = plan(toy / "toy.yaml", data=toy / "ratings", model="gpt2", notebooks=toy / "notebooks")
    assert study.stages[1].parameters["data_folder"] == str(toy / "ratings")
    assert study.stages[1].parameters["model"] == "gpt2"
    assert study.inputs == (toy / "ratings",)


def test_a_changed_data_folder_runs_the_notebooks_again(toy: Path, capsys) -> None:
    (toy / "ratings").mkdir()
    for text in ("1", "22"):
        (toy / "ratings" / "a.csv").write_text(text)
        run_study(plan(toy / "toy.yaml", data=toy / "ratings", notebooks=toy / "notebooks"), only=["02"])
    assert "kept" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["absent.yaml"], "params file absent.yaml does not exist"),
        (["typo.yaml"], "unknown parameter 'sede'; did you mean 'seed'?"),
        (["good.yaml", "--data", "absent"], "data folder"),
        (["good.yaml", "--only", "09"], "no such notebook"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(toy: Path, arguments: list[str], expected: str) -> None:
    (toy / "typo.yaml").write_text("sede: 3\n")
    (toy / "good.yaml").write_text("seed: 3\n")
    ended = subprocess.run(command(toy, *arguments), cwd=toy, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert expected in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (toy / "results").exists()


def test_a_failed_notebook_is_one_line_and_exit_code_1(toy: Path) -> None:
    write_notebook(toy / "notebooks" / "01_first.ipynb", FIRST, "{}['alpha']")
    ended = subprocess.run(command(toy, "toy.yaml"), cwd=toy, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == (
        "steerlib: 01_first failed in cell [3]: KeyError: 'alpha'; executed copy:"
        " results/toy/notebooks/01_first.failed.ipynb\n"
    )


def test_help_and_refusals_do_not_load_torch(toy: Path) -> None:
    code = (
        "import sys; from steerlib.__main__ import main\n"
        "assert main(['run', 'absent.yaml']) == 2\n"
        "assert not {'torch', 'transformers', 'papermill'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=toy, capture_output=True).returncode == 0


def test_stored_notebooks_carry_outputs_and_nothing_of_the_machine(toy: Path, monkeypatch) -> None:
    monkeypatch.delenv("STEERLIB_RESULTS")
    (toy / "notebooks" / "02_second.ipynb").unlink()
    figure = "from steerlib.tables import results_folder\nfigures = results_folder(run) / 'figures'\n"
    figure += "figures.mkdir()\n(figures / 'a.csv').touch()"
    write_notebook(toy / "notebooks" / "01_first.ipynb", FIRST, figure, "print(rows)")
    before = nbformat.read(toy / "notebooks" / "01_first.ipynb", as_version=4)
    figures, scratch = toy / "figures" / "quick", toy / "scratch"
    store_notebooks(toy / "notebooks", figures=figures, scratch=scratch)
    after = nbformat.read(toy / "notebooks" / "01_first.ipynb", as_version=4)
    assert [cell.id for cell in after.cells] == [cell.id for cell in before.cells]
    assert after.cells[2].outputs[0].text == "3\n"
    assert [cell.metadata for cell in after.cells] == [{"tags": ["parameters"]}, {}, {}]
    assert set(after.metadata) == {"kernelspec", "language_info"}
    assert [path.name for path in figures.iterdir()] == ["a.csv"]
    stored = (toy / "notebooks" / "01_first.ipynb").read_bytes()
    store_notebooks(toy / "notebooks", figures=figures, scratch=scratch)
    assert (toy / "notebooks" / "01_first.ipynb").read_bytes() == stored


def test_outputs_that_name_a_path_of_the_machine_are_not_stored(toy: Path) -> None:
    write_notebook(toy / "notebooks" / "02_second.ipynb", SECOND, "import os; print(os.getcwd())")
    with pytest.raises(BadInput, match=r"nothing was stored: 02_second.ipynb cell \[2\]: /"):
        store_notebooks(toy / "notebooks", figures=toy / "f", scratch=toy / "scratch")
    for file in (toy / "notebooks").iterdir():
        assert "outputs" in file.read_text() and '"outputs": []' in file.read_text()
        assert not machine_paths(nbformat.read(file, as_version=4))


def test_a_done_file_holds_no_folder_of_the_user(toy: Path) -> None:
    folder = go(toy) / "notebooks"
    for done in folder.glob("*.done.json"):
        assert set(json.loads(done.read_text())) == {"fingerprint", "seconds", "finished"}
        assert os.fspath(toy) not in done.read_text()
