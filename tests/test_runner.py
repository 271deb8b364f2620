"""The runner and runs side by side, on toy notebooks and tables made on the spot."""

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
from zipfile import ZipFile

import nbformat
import pandas as pd
import psutil
import pytest
from filelock import FileLock
from stored import machine_paths, store_notebooks

from steerlib.__main__ import main
from steerlib.evaluation.intervals import Interval, cluster_interval, difference_of_two, paired_interval
from steerlib.params import BadInput, override
from steerlib.runner import NotebookFailed, Stage, plan, run_study
from steerlib.runner import _contents as contents
from steerlib.runs import archive, compare, grid
from steerlib.tables import (
    ATTRIBUTE_COLUMNS,
    ROOT,
    SCHEMA,
    append_part,
    read_table,
    results_folder,
    write_manifest,
    write_table,
)
from steerlib.toxicity import load_scorer, text_sha

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
    figures = results_folder("toy") / "figures"
    figures.mkdir(exist_ok=True)
    for name in ("01_old.png", "02_other.png"):
        (figures / name).touch()
    go(toy, only=["01"], force=True)
    assert [path.name for path in figures.iterdir()] == ["02_other.png"]  # a stage's old figures go with it
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
    study = plan(
        toy / "toy.yaml", notebooks=toy / "notebooks", data_folder=str(toy / "notebooks"), model="gpt2"
    )
    parameters = study.stages["02_second"].parameters
    assert (parameters["data_folder"], parameters["model"]) == (str(toy / "notebooks"), "gpt2")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "absent.yaml"], "absent.yaml"),
        (["check", "typo.yaml"], "did you mean 'seed'"),
        (["run", "good.yaml", "--data", "absent"], "data_folder"),
        (["run", "good.yaml", "--only", "09"], "09"),
        (["compare", "one", "two"], "no run is called 'one'"),
        (["archive", "one", "one.zip"], "no run is called 'one'"),
        (["status", "one"], "no run is called 'one'"),
        (["grid", "good.yaml", "--set", "seed"], "--set 'seed' is not key=value,value"),
        (["grid", "good.yaml", "--set", "seed=[1"], "--set seed=[1"),
        (["grid", "good.yaml", "--set", "seed=1,x"], "seed must be int | None"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(toy, arguments, expected, capsys, monkeypatch):
    monkeypatch.chdir(toy)
    (toy / "typo.yaml").write_text("sede: 3\n")
    (toy / "good.yaml").write_text("seed: 3\n")
    extra = [] if arguments[0] in ("compare", "archive") else ["--notebooks", "notebooks"]
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
    head, first, second = capsys.readouterr().out.splitlines()
    assert head == "run toy: not going on"
    assert first.startswith("01_first") and first.endswith("changed since: rows") and "not finished" in second


def test_every_command_shows_an_example(capsys):
    for name in ("run", "check", "status", "list", "compare", "grid", "archive", "fetch"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert f"example:  python -m steerlib {name}" in capsys.readouterr().out


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


# --- side by side -------------------------------------------------------------------------------------------

BASE = dict.fromkeys(SCHEMA["arms"].columns, "") | {"temperature": 0.7, "alpha": 0.0, "profile": "none"}
ARMS = [BASE | {"arm_id": "b", "method": "base", "control": "base"}]
ARMS += [
    BASE | {"arm_id": f"a{x}", "method": "anti_expert", "profile": "own", "alpha": x} for x in (1.0, 2.0)
]
PROMPTS = [f"p{i}" for i in range(6)]


def write_run(run: str, toxicity: dict[tuple[str, str, int], float], *, alphas: str = "[1.0, 2.0]") -> Path:
    """A run whose answers, by arm, prompt and seed, are as toxic as said; two prompts a user."""
    folder = results_folder(run)
    (folder / "params.yaml").write_text(f"# mine.yaml: python -m steerlib run mine.yaml\nalphas: {alphas}\n")
    write_table(folder, "arms", pd.DataFrame(ARMS))
    asked = [
        {"prompt_id": p, "prompt": p, "user_id": f"u{i // 2}", "split": "test"} for i, p in enumerate(PROMPTS)
    ]
    write_table(folder, "prompts", table("prompts", asked))
    keys = [dict(zip(("arm_id", "prompt_id", "seed"), key, strict=True)) for key in toxicity]
    answers = [key | {"text": f"{run} {list(key.values())}"} for key in keys]
    write_table(folder, "generations", table("generations", answers))
    scored = [{"text_sha": text_sha(row["text"]), "scorer": "s"} for row in answers]
    scored = [
        row | dict.fromkeys(ATTRIBUTE_COLUMNS, x) for row, x in zip(scored, toxicity.values(), strict=True)
    ]
    write_table(folder, "scores", table("scores", scored))
    write_manifest(folder, "04_evaluation", {"scorer": "s"}, seconds=1.0)
    return folder


def table(name: str, rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame([dict.fromkeys(SCHEMA[name].columns, "") | row for row in rows])


def drawn(seeds: list[int], rng: random.Random) -> dict[tuple[str, str, int], float]:
    return {(arm["arm_id"], p, seed): rng.random() for arm in ARMS for p in PROMPTS for seed in seeds}


@pytest.mark.usefixtures("toy")
def test_runs_are_compared_prompt_by_prompt_where_seeds_are_shared_and_as_two_samples_else() -> None:
    rng, users = random.Random(0), [f"u{i // 2}" for i in range(6)]
    one, other = drawn([0, 1], rng), drawn([1, 2], rng)
    write_run("one", one)
    write_run("other", other, alphas="[2.0, 1.0]")
    write_run("far", {(arm, p, seed + 5): x for (arm, p, seed), x in other.items()})
    settings, arms, folder = compare("one", "other")
    assert settings.set_index("setting").loc["alphas"].tolist() == [[1.0, 2.0], [2.0, 1.0]]
    effects = [[run["a1.0", p, 1] - run["b", p, 1] for p in PROMPTS] for run in (one, other)]
    expected = paired_interval(*effects, users, within=(-2, 2))
    found = arms.set_index("alpha").loc[1.0]
    assert found[["value", "low", "high"]].tolist() == pytest.approx(expected[:3])
    assert (found["how"], found["n"], found["n_clusters"]) == ("paired", 6, 3)
    assert {"settings.csv", "compare.png", "compare.csv"} <= {path.name for path in folder.rglob("*")}
    (apart,) = compare("one", "far")[1].query("alpha == 1").to_dict("records")
    means = [
        cluster_interval([sum(run["a1.0", p, s] - run["b", p, s] for s in own) / 2 for p in PROMPTS], users)
        for run, own in ((one, (0, 1)), (other, (1, 2)))
    ]
    assert apart["how"] == "two samples"
    assert [apart[end] for end in ("value", "low", "high")] == pytest.approx(difference_of_two(*means)[:3])


@pytest.mark.usefixtures("toy")
def test_equal_answers_have_no_interval_and_runs_without_a_common_arm_show_their_settings(
    capsys, monkeypatch
) -> None:
    same = drawn([0], random.Random(1))
    for run in ("one", "other"):
        write_run(run, same)
    arms = compare("one", "other")[1]
    assert (arms["how"] == "equal").all() and (arms["value"] == 0).all() and arms["low"].isna().all()
    folder = write_run("far", {key: x for key, x in same.items() if key[0] == "b"})
    row = dict.fromkeys(SCHEMA["verdict"].columns, 0) | {"method": "sda", "alpha": 1.5, "change": -0.25}
    write_table(folder, "verdict", pd.DataFrame([row]))
    assert main(["compare", "one", "far"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"far +sda +1.5 +-0.25", out) and "two samples" not in out
    assert main(["list"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "  far  " in line]
    assert re.match(r"20\d\d-\S+  far  mine.yaml  04_evaluation  sda at 1.5: toxicity -0.250", line)
    newer = SCHEMA["verdict"]._replace(columns=(*SCHEMA["verdict"].columns, "newer"))
    monkeypatch.setitem(SCHEMA, "verdict", newer)  # the run's table is of an older edition
    assert main(["list"]) == 0
    assert re.search(r"  far  mine.yaml  04_evaluation$", capsys.readouterr().out, flags=re.M)


def test_two_samples_differ_by_less_than_their_intervals_laid_end_to_end() -> None:
    one, other = Interval(1.0, 0.7, 1.3, 9, 5, ""), Interval(3.0, 2.6, 3.8, 8, 6, "")
    assert difference_of_two(one, other) == (
        2.0,
        pytest.approx(1.5),
        pytest.approx(2 + 0.73**0.5),
        8,
        5,
        "two samples",
    )


def test_status_counts_answers_and_names_the_last_error(toy: Path, capsys) -> None:
    folder = write_run("toy", drawn([0, 1], random.Random(2)))
    answers = read_table(folder, "generations")
    (folder / "tables" / "generations" / "all.parquet").unlink()
    for i in range(3):  # of six prompts
        part = append_part(folder, "generations", answers[answers.prompt_id == f"p{i}"], part=str(i))
        os.utime(part, (1000 + 6 * i,) * 2)
    write_notebook(
        toy / "notebooks" / "02_second.ipynb", SECOND, "raise ValueError('layer 40 is not in 0..31')"
    )
    with pytest.raises(NotebookFailed):
        go(toy)
    capsys.readouterr()
    assert main(["status", "toy", "--notebooks", str(toy / "notebooks")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split(maxsplit=1) == ["answers", "18 of 36, 1.00 per second, 0.3 minutes left"]
    assert lines[-1].endswith("02_second: ValueError: layer 40 is not in 0..31")
    with FileLock(folder / ".lock"):
        assert main(["status", "toy", "--notebooks", str(toy / "notebooks")]) == 0
    assert capsys.readouterr().out.startswith("run toy: going on\n")


def test_a_grid_is_one_run_a_cell_goes_on_where_it_stopped_and_names_the_cell_that_failed(
    toy: Path, capsys
) -> None:
    both, file = {"rows": [1, 2], "alphas": [[0.5], [1.0, 2.0]]}, toy / "toy.yaml"
    bad = "if rows == 2 and alphas == [0.5]: raise ValueError('not this one')"
    write_notebook(toy / "notebooks" / "01_first.ipynb", FIRST, bad)
    with pytest.raises(
        NotebookFailed, match=r"1 of 4 failed; toy\.rows-2-alphas-0\.5\.\w{6}: .*not this one"
    ):
        grid(file, both, notebooks=toy / "notebooks")
    assert len(pd.read_csv(toy / "results" / "toy-grid" / "grid.csv")) == 4
    write_notebook(toy / "notebooks" / "01_first.ipynb", FIRST, "print(run, rows, alphas)")
    first, _ = grid(file, both, notebooks=toy / "notebooks")
    capsys.readouterr()
    table, path = grid(file, both, notebooks=toy / "notebooks")
    assert capsys.readouterr().out.count("kept") == 8
    assert table[["rows", "alphas"]].to_numpy().tolist() == [
        [1, [0.5]],
        [1, [1.0, 2.0]],
        [2, [0.5]],
        [2, [1.0, 2.0]],
    ]
    assert table["run"].is_unique and table["run"].tolist() == first["run"].tolist()
    copy = path.parents[1] / table["run"].iloc[3] / "notebooks" / "01_first.ipynb"
    assert printed(copy) == f"{table['run'].iloc[3]} 2 [1.0, 2.0]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alphas=[0.5, 1],[2]", ("alphas", [[0.5, 1], [2]])),
        ("model=embedded,Qwen/Qwen2.5-0.5B", ("model", ["embedded", "Qwen/Qwen2.5-0.5B"])),
        ("seed=0", ("seed", [0])),
    ],
)
def test_values_of_a_grid_are_yaml_between_commas(text: str, expected: tuple) -> None:
    assert override(text) == expected


def test_the_params_of_a_run_lie_in_its_folder_with_its_command_and_run_again(toy: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["steerlib", "run", "my params.yaml"])
    kept = go(toy) / "params.yaml"
    assert kept.read_text().splitlines()[0].endswith("toy.yaml: python -m steerlib run 'my params.yaml'")
    again, study = (
        plan(kept, notebooks=toy / "notebooks"),
        plan(toy / "toy.yaml", notebooks=toy / "notebooks"),
    )
    assert (again.run, again.stages) == (study.run, study.stages)
    before = kept.read_text()
    run_study(again)
    assert kept.read_text() == before


@pytest.mark.usefixtures("toy")
def test_an_archive_holds_tables_scores_and_params_but_no_vectors_and_nobodys_choices(tmp_path: Path) -> None:
    folder = write_run("mine", drawn([0], random.Random(3)))
    for name in (
        "vectors/population.safetensors",
        "preferences/anna.csv",
        "figures/a.png",
        "figures/b.corrupt",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    for stage in ("05_figures", "06_alpha_explorer"):
        write_manifest(folder, stage, {}, seconds=1)
    assert archive("mine", tmp_path / "mine.zip") == 9
    with ZipFile(tmp_path / "mine.zip") as packed:
        packed.extractall(tmp_path / "elsewhere")
    there = tmp_path / "elsewhere" / "mine"
    held = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    plain = {"manifest.json", "params.yaml", "replay.yaml", "scores.csv", "figures/a.png"}
    assert held == plain | {
        f"tables/{name}/all.parquet" for name in ("arms", "generations", "prompts", "scores")
    }
    study = plan(there / "replay.yaml")
    assert [*study.stages] == ["05_figures", "06_alpha_explorer"]
    assert study.stages["06_alpha_explorer"].given["model"] == "none"
    assert study.stages["06_alpha_explorer"].given["scorer"] == f"replay:{there / 'scores.csv'}"
    text = read_table(there, "generations")["text"].iloc[0]
    assert load_scorer(f"replay:{there / 'scores.csv'}")([text])["toxicity"].item() < 1


@pytest.mark.slow
def test_a_run_is_shown_again_from_its_archive_where_no_model_is(
    tmp_path: Path, sockets: Path, monkeypatch
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(sockets))
    monkeypatch.setenv("STEERLIB_RESULTS", str(tmp_path / "here"))
    stages = "02_steering_vectors, 03_generation_sweep, 04_evaluation, 05_figures, 06_alpha_explorer"
    smaller = "path_tokens: 4\nn_questions: 2\nexplorer_tokens: 6\n"
    (tmp_path / "small.yaml").write_text(TINY.replace("03_generation_sweep", stages) + smaller)
    assert main(["run", str(tmp_path / "small.yaml")]) == 0
    assert main(["archive", "small", str(tmp_path / "small.zip")]) == 0
    with ZipFile(tmp_path / "small.zip") as packed:
        packed.extractall(tmp_path / "there")
    (tmp_path / "no cache").write_text("")
    monkeypatch.setenv("STEERLIB_CACHE", str(tmp_path / "no cache"))
    monkeypatch.setenv("STEERLIB_RESULTS", str(tmp_path / "there"))
    there = tmp_path / "there" / "small"
    (there / "report.html").unlink()
    assert main(["run", str(there / "replay.yaml")]) == 0
    report = (there / "report.html").read_text()
    assert "python -m steerlib" in report and "max_new_tokens: 3" in report
    assert "Notebook 06 of this run puts it here" not in report  # it did


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
