"""The runner, on toy notebooks made on the spot."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
from stored import machine_paths, store_notebooks

from steerlib.__main__ import main
from steerlib.params import BadInput
from steerlib.runner import NotebookFailed, Stage, plan, run_study
from steerlib.runner import _contents as contents
from steerlib.tables import ROOT, SCHEMA, read_table, results_folder, write_table

FIRST = """run: str = "quick"
rows: int = 3
alphas: list[float] = [0.5, 1.0]
seed: int | None = None
top_p: float = 0.9
style: str = "chat"
methods: list[str] = ["sda"]
max_new_tokens: int = 12"""
SECOND = """run: str = "quick"
rate: float = 0.5
model: str = "embedded"
more: list[str] = []
pair_file: str = ""
judge_settings: dict = {}
settings: dict = {"tie": 5, "ties": "drop", "dtype": None}
data_folder: str | None = None"""


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


def second(toy: Path, params: str) -> Stage:
    (toy / "toy.yaml").write_text(params)
    return plan(toy / "toy.yaml", notebooks=toy / "notebooks").stages["02_second"]


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


def test_each_notebook_is_handed_only_the_keys_it_takes_and_the_run_is_named_by_its_file(toy):
    results = go(toy)
    assert results == toy / "results" / "toy"
    assert printed(results / "notebooks" / "01_first.ipynb") == "toy 7 [0.5, 1.0] None\n"
    assert printed(results / "notebooks" / "02_second.ipynb") == "2 embedded None\n"


def test_a_finished_notebook_is_kept_until_something_that_made_it_changes(toy, capsys, monkeypatch):
    monkeypatch.setattr("steerlib.runner.ROOT", toy)  # the library in its place: this one stands still
    (toy / "steerlib").mkdir()
    rules, ratings, params = toy / "steerlib" / "rules.py", toy / "ratings.csv", toy / "toy.yaml"
    steps = [
        (params, "rows: 7", "done", "done"),
        (params, "rows: 7 # a comment", "kept", "kept"),
        (params, "rows: 7\nmodel: ratings.csv", "kept", "done model, content of model changed"),
        (ratings, "u1,31", "kept", "done content of model changed"),
        (params, "rows: 8\nmodel: ratings.csv", "done rows changed", "done 01_first changed"),
        (rules, "k = 3", "done library changed", "done 01_first, library changed"),
    ]
    rules.write_text("k = 2")
    ratings.write_text("u1,30")
    for file, text, *expected in steps:
        times = file.stat().st_atime_ns, file.stat().st_mtime_ns
        file.write_text(text)
        os.utime(file, ns=times)  # changed content is seen although size and time stay
        go(toy)
        lines = capsys.readouterr().out.splitlines()[:2]
        assert [re.sub(r"^\S+ +(\w+).*?(?: again:( .*)|$)", r"\1\2", line) for line in lines] == expected


def test_large_weights_are_read_in_blocks_and_a_change_anywhere_near_them_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("steerlib.runner.LARGE", 2**20)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(2**23))
    before = contents(tmp_path)
    with weights.open("r+b") as file:
        file.seek(2**23 - 5)
        file.write(b"x")
    assert contents(tmp_path) != before


def test_force_and_only_choose_what_runs(toy, capsys):
    go(toy, only=["02"])
    assert capsys.readouterr().out.startswith("02_second                done")
    go(toy)
    assert "kept" not in capsys.readouterr().out  # 02 had run before 01 was there
    go(toy, only=["01"], force=True)
    assert capsys.readouterr().out.count("done") == 1
    with pytest.raises(BadInput, match="--only 07: no such notebook; there are 01_first, 02_second"):
        go(toy, only=["07"])


def test_a_failed_cell_leaves_no_done_file_and_is_run_again(toy):
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


def test_a_runtime_folder_too_long_for_a_socket_serves_by_tcp(toy, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(toy / ("long" * 30)))
    assert printed(go(toy, only=["01"]) / "notebooks" / "01_first.ipynb").startswith("toy 7")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_run_stopped_half_way_is_no_success_and_goes_on_from_there(toy, sent):
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


def test_two_runs_at_once_do_not_clash_but_the_same_run_twice_is_refused(toy):
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


def test_all_mistakes_are_named_at_once(toy):
    message = refusal(toy, "rows: three\nsede: 3\nrate: true\n")
    assert all(name in message for name in ("rows", "sede", "rate"))


@pytest.mark.parametrize("cell", ["a: int = 1\nb = 2", "a: int = max(1, 2)", "a: int = 'x'", "a: Path = 'x'"])
def test_a_parameters_cell_that_cannot_be_checked_is_refused(toy, cell):
    write_notebook(toy / "notebooks" / "01_first.ipynb", 'run: str = "quick"\n' + cell)
    refusal(toy, "{}")


def test_entries_of_a_dict_are_given_flat_or_as_a_dict_and_the_others_keep_their_defaults(toy):
    expected = {"run": "toy", "settings": {"tie": 7, "ties": "drop", "dtype": None}}
    for params in ("tie: 7", "settings: {tie: 7}"):
        assert second(toy, params).parameters == expected


def test_relative_paths_are_looked_for_where_the_command_was_given_then_beside_the_params_file(
    toy, monkeypatch
):
    (toy / "data").mkdir()
    for folder in (toy, toy / "data"):
        (folder / "ratings.csv").write_text("1")
    for here, found in (("notebooks", "ratings.csv"), ("data", "data/ratings.csv")):
        monkeypatch.chdir(toy / here)
        stage = second(toy, "model: ratings.csv\nmore: [embedded, 'data/ratings.csv']\ndata_folder: data")
        assert stage.parameters["model"] == str(toy / found)
        assert stage.parameters["more"] == ["embedded", str(toy / "data" / "ratings.csv")]
        assert stage.inputs["data_folder"] == [toy / "data"]


def test_a_hub_id_and_a_file_of_the_hubs_data_set_are_no_paths(toy):
    params = "model: Qwen/Qwen2.5-0.5B\npair_file: pairs.jsonl.gz\nmore: ['endpoint:a/b/c']"
    assert not second(toy, params).inputs


def test_data_and_model_given_at_the_call_reach_the_notebook(toy):
    study = plan(toy / "toy.yaml", data=toy / "notebooks", model="gpt2", notebooks=toy / "notebooks")
    parameters = study.stages["02_second"].parameters
    assert (parameters["data_folder"], parameters["model"]) == (str(toy / "notebooks"), "gpt2")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "absent.yaml"], "absent.yaml"),
        (["check", "typo.yaml"], "did you mean 'seed'"),
        (["run", "good.yaml", "--data", "absent"], "data_folder"),
        (["run", "good.yaml", "--only", "09"], "09"),
        (["compare", "one", "two"], "verdict"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(toy, arguments, expected, capsys, monkeypatch):
    monkeypatch.chdir(toy)
    (toy / "typo.yaml").write_text("sede: 3\n")
    (toy / "good.yaml").write_text("seed: 3\n")
    extra = [] if arguments[0] == "compare" else ["--notebooks", "notebooks"]
    assert main([*arguments, *extra]) == 2
    out, errors = capsys.readouterr()
    assert out == "" and expected in errors and errors.count("\n") == 1


def test_a_failed_notebook_is_one_line_and_exit_code_1(toy, capsys, monkeypatch):
    monkeypatch.chdir(toy)
    write_notebook(toy / "notebooks" / "01_first.ipynb", FIRST, "{}['alpha']")
    assert main(["run", "toy.yaml", "--notebooks", "notebooks"]) == 1
    errors = capsys.readouterr().err
    assert "01_first failed in cell [3]: KeyError: 'alpha'" in errors and errors.count("\n") == 1
    assert "results/toy/notebooks/01_first.failed.ipynb" in errors


def test_check_lists_the_inputs_and_status_the_finished_notebooks(toy, capsys, monkeypatch):
    monkeypatch.chdir(toy)
    (toy / "toy.yaml").write_text("rows: 7\ndata_folder: notebooks")
    assert main(["check", "toy.yaml", "--notebooks", "notebooks"]) == 0
    assert "data_folder" in capsys.readouterr().out
    go(toy, only=["01"])
    capsys.readouterr()
    (toy / "toy.yaml").write_text("rows: 8")
    assert main(["status", "toy.yaml", "--notebooks", "notebooks"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("01_first") and first.endswith("changed since: rows") and "not finished" in second


@pytest.mark.usefixtures("toy")
def test_compare_shows_the_verdicts_of_both_runs(capsys):
    for run, alpha in (("one", 0.5), ("two", 1.5)):
        row = dict.fromkeys(SCHEMA["verdict"].columns, 0) | {"method": "sda", "alpha": alpha}
        write_table(results_folder(run), "verdict", pd.DataFrame([row]))
    assert main(["compare", "one", "two"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["sda", "one", "0.5"], ["sda", "two", "1.5"]]


def test_help_and_refusals_do_not_load_torch(toy):
    code = (
        "import sys; from steerlib.__main__ import main\n"
        "assert main(['run', 'absent.yaml']) == 2\n"
        "assert not {'torch', 'transformers', 'papermill'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=toy, capture_output=True).returncode == 0


def test_stored_notebooks_carry_outputs_and_nothing_of_the_machine(toy, monkeypatch):
    monkeypatch.delenv("STEERLIB_RESULTS")
    (toy / "notebooks" / "02_second.ipynb").unlink()
    figure = "from steerlib.tables import results_folder\nfigures = results_folder(run) / 'figures'\n"
    figure += "figures.mkdir()\n(figures / 'a.csv').touch()"
    write_notebook(toy / "notebooks" / "01_first.ipynb", FIRST, figure, "print(rows)")
    before = nbformat.read(toy / "notebooks" / "01_first.ipynb", as_version=4)
    figures = toy / "figures" / "quick"
    store_notebooks(toy / "notebooks", figures=figures)
    after = nbformat.read(toy / "notebooks" / "01_first.ipynb", as_version=4)
    assert [cell.id for cell in after.cells] == [cell.id for cell in before.cells]
    assert after.cells[2].outputs[0].text == "3\n"
    assert [cell.metadata for cell in after.cells] == [{"tags": ["parameters"]}, {}, {}]
    assert set(after.metadata) == {"kernelspec", "language_info"}
    assert [path.name for path in figures.iterdir()] == ["a.csv"]
    stored = (toy / "notebooks" / "01_first.ipynb").read_bytes()
    store_notebooks(toy / "notebooks", figures=figures)
    assert (toy / "notebooks" / "01_first.ipynb").read_bytes() == stored


def test_outputs_that_name_a_path_of_the_machine_are_not_stored(toy):
    write_notebook(toy / "notebooks" / "02_second.ipynb", SECOND, "import os; print(os.getcwd())")
    with pytest.raises(ValueError, match=r"02_second.ipynb cell \[2\]: /"):
        store_notebooks(toy / "notebooks", figures=toy / "f")
    for file in (toy / "notebooks").iterdir():
        assert '"outputs": []' in file.read_text()
        assert not machine_paths(nbformat.read(file, as_version=4))


def test_a_done_file_holds_no_folder_of_the_user_and_a_truncated_one_is_done_again(toy, capsys):
    folder = go(toy) / "notebooks"
    for done in folder.glob("*.done.json"):
        assert os.fspath(toy) not in done.read_text()
        done.write_text(done.read_text()[:40])
    capsys.readouterr()
    go(toy)
    assert "kept" not in capsys.readouterr().out


def test_a_model_that_is_nowhere_is_refused_before_the_first_notebook_and_a_kept_run_is_not_asked(
    toy, monkeypatch
):
    asked = []

    def model_info(model: str, **_: object) -> None:
        asked.append(model)
        raise OSError("no network")

    go(toy)
    monkeypatch.setattr("huggingface_hub.model_info", model_info)
    go(toy)
    (toy / "toy.yaml").write_text("model: nobody/no-such-model")
    with pytest.raises(BadInput, match=r"^model: 'nobody/no-such-model'.*no network"):
        go(toy)
    assert asked == ["nobody/no-such-model"]


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("import os; os._exit(9)", "lost its kernel.* memory"),
        ("raise MemoryError()", "failed in cell .*max_new_tokens"),
        ("raise OSError(28, 'No space left on device')", "failed in cell .*free some space"),
    ],
)
def test_memory_and_disk_that_run_out_come_with_a_remedy(toy, cell, told):
    write_notebook(toy / "notebooks" / "01_first.ipynb", FIRST, cell)
    with pytest.raises(NotebookFailed, match=f"01_first {told}"):
        go(toy)


def test_a_folder_that_cannot_be_written_is_one_line_and_exit_code_1(toy, capsys, monkeypatch):
    (toy / "file").write_text("")
    monkeypatch.setenv("STEERLIB_RESULTS", str(toy / "file"))
    assert main(["run", str(toy / "toy.yaml"), "--notebooks", str(toy / "notebooks")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# --- killed again and again ---------------------------------------------------------------------------------

TINY = "notebooks: [01_user_profiles, 03_generation_sweep]\nprompts_per_category: 1\nmethods: [anti_expert]\n"
TINY += "controls: []\nalphas: [1.0]\nseeds: [0]\nmax_new_tokens: 3\npath_prompts: 0\n"
QUICK = (ROOT / "params" / "quick.yaml").read_text()


def run_killed(params: Path, results: Path, *, started: Path, after: float, kernel_too: bool) -> None:
    """Run `python -m steerlib run`, and kill it so many seconds after a notebook's partial copy was first written."""
    begun, process = time.time(), going(params, results)
    while process.poll() is None and not (started.exists() and started.stat().st_mtime > begun):
        time.sleep(0.02)
    time.sleep(after)
    for one in [
        process,
        *(process.children(recursive=True) if kernel_too and process.poll() is None else []),
    ]:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def going(params: Path, results: Path) -> psutil.Popen:
    words = [sys.executable, "-m", "steerlib", "run", str(params)]
    settings = {"env": os.environ | {"STEERLIB_RESULTS": str(results)}, "stdout": subprocess.DEVNULL}
    return psutil.Popen(words, **settings)


@pytest.mark.parametrize(("text", "kills"), [(TINY, 2), pytest.param(QUICK, 20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_tables_of_one_that_was_not(
    tmp_path, sockets, monkeypatch, text, kills
):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(sockets))
    params, draw = tmp_path / "torture.yaml", random.Random(0)
    params.write_text(text)
    assert going(params, tmp_path / "whole").wait() == 0
    done = {
        file.name: file.read_text() for file in sorted(tmp_path.glob("whole/torture/notebooks/*.done.json"))
    }
    copies = tmp_path / "broken" / "torture" / "notebooks"
    # Kills are spread over all notebooks, each at a random moment of it.
    for number in range(kills):
        name, record = [*done.items()][number * len(done) // kills]
        (copies / name).unlink(
            missing_ok=True
        )  # finished before its time: it, and so all after it, is done again
        moment = {"after": draw.random() * json.loads(record)["seconds"], "kernel_too": draw.random() < 0.5}
        started = copies / name.replace(".done.json", ".partial.ipynb")
        run_killed(params, tmp_path / "broken", started=started, **moment)
    assert going(params, tmp_path / "broken").wait() == 0
    whole, broken = tmp_path / "whole" / "torture", tmp_path / "broken" / "torture"
    names = {path.name for path in (whole / "tables").iterdir() if path.is_dir()}
    assert names == {path.name for path in (broken / "tables").iterdir() if path.is_dir()}
    for name in sorted(names):
        one, other = (
            read_table(folder, name).sort_values(list(SCHEMA[name].key)).reset_index(drop=True)
            for folder in (whole, broken)
        )
        # Tokens are equal; a sum of float32 logits may end otherwise when what is left is another batch.
        pd.testing.assert_frame_equal(one, other, obj=name, rtol=1e-3, atol=1e-4)
    assert not [path for path in broken.rglob("*") if "partial" in path.name]
