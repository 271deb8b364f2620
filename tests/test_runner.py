"""The runner and runs side by side, on toy notebooks and tables made on the spot."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import psutil
import pytest
from filelock import FileLock

from steerlib.__main__ import main
from steerlib.evaluation.intervals import Interval, difference_of_two, paired_interval
from steerlib.params import BadInput, override
from steerlib.runner import NotebookFailed, Stage, plan, run_study
from steerlib.runner import _contents as contents
from steerlib.runs import archive, compare, grid, status
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
from steerlib.toxicity import text_sha

FIRST = """run: str = "quick"
rows: int = 3
alphas: list[float] = [0.5, 1.0]
seed: int | None = None"""
SECOND = """run: str = "quick"
rate: float = 0.5
model: str = "embedded"
more: list[str] = []
pair_file: str = ""
settings: dict = {"tie": 5, "ties": "drop", "dtype": None}
data_folder: str | None = None"""


def write_notebook(path: Path, parameters: str, *cells: str) -> None:
    code = [nbformat.v4.new_code_cell(source) for source in (parameters, *cells)]
    code[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=code), path)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two notebooks and a params file; results go beside them."""
    monkeypatch.setenv("STEERLIB_RESULTS", str(tmp_path / "results"))
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


def going(*arguments: object, **settings: Any) -> psutil.Popen:
    """`python -m steerlib run` in a process of its own."""
    return psutil.Popen([sys.executable, "-m", "steerlib", "run", *map(str, arguments)], **settings)


def test_each_notebook_gets_the_keys_it_takes_and_the_params_are_kept_with_the_command_to_run_again(
    toy, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["steerlib", "run", "my params.yaml"])
    results = go(toy)
    assert results == toy / "results" / "toy"
    assert printed(results / "notebooks" / "01_first.ipynb") == "toy 7 [0.5, 1.0] None\n"
    assert printed(results / "notebooks" / "02_second.ipynb") == "2 embedded None\n"
    text = (results / "params.yaml").read_text()
    assert text.splitlines()[0].endswith("toy.yaml: python -m steerlib run 'my params.yaml'")
    again = plan(results / "params.yaml", notebooks=toy / "notebooks")
    assert again.stages == plan(toy / "toy.yaml", notebooks=toy / "notebooks").stages
    done = results / "notebooks" / "01_first.done.json"
    assert os.fspath(toy) not in done.read_text()
    done.write_text(done.read_text()[:40])  # as a full disk leaves it
    capsys.readouterr()
    assert run_study(again) == results and "kept" not in capsys.readouterr().out
    assert (results / "params.yaml").read_text() == text


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


def test_a_failed_cell_is_one_line_and_exit_code_1_and_its_notebook_is_run_again(toy, capsys, monkeypatch):
    monkeypatch.chdir(toy)
    write_notebook(toy / "notebooks" / "02_second.ipynb", SECOND, "1", "{}['alpha']", "2")
    assert main(["run", "toy.yaml", "--notebooks", "notebooks"]) == 1
    errors = capsys.readouterr().err
    said = r"steerlib: 02_second failed in cell \[4\]: KeyError: 'alpha'; executed copy: results/toy/.*failed.*\n"
    assert re.fullmatch(said, errors)
    left = sorted(path.name for path in (toy / "results" / "toy" / "notebooks").iterdir())
    assert left == ["01_first.done.json", "01_first.ipynb", "02_second.failed.ipynb"]
    write_notebook(toy / "notebooks" / "02_second.ipynb", SECOND, "1")
    left = {path.name for path in (go(toy) / "notebooks").iterdir()}
    assert "02_second.done.json" in left and "02_second.failed.ipynb" not in left
    monkeypatch.setenv("STEERLIB_RESULTS", str(toy / "toy.yaml"))  # a folder that cannot be made
    assert main(["run", "toy.yaml", "--notebooks", "notebooks"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_stopped_half_way_is_no_success_and_goes_on_from_there(toy):
    slow = "import pathlib, time; pathlib.Path('started').touch(); time.sleep(60)"
    write_notebook(toy / "notebooks" / "02_second.ipynb", SECOND, slow)
    # A job in the background is started with Ctrl-C ignored, and its children inherit that.
    settings = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "text": True}
    process = going(toy / "toy.yaml", "--notebooks", toy / "notebooks", stderr=subprocess.PIPE, **settings)
    wait_for(toy / "notebooks" / "started")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1].count("\n") == 1 and process.returncode == 130
    folder = toy / "results" / "toy" / "notebooks"
    first = (folder / "01_first.done.json").read_text()
    assert not {"02_second.done.json", "02_second.ipynb"} & {path.name for path in folder.iterdir()}
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
    both = [going(toy / f"{run}.yaml", "--notebooks", toy / "notebooks") for run in ("toy", "other")]
    for run in ("toy", "other"):
        wait_for(toy / "notebooks" / f"{run}.here")
    with pytest.raises(BadInput, match="run 'toy' is already going on"):
        go(toy)
    (toy / "notebooks" / "go").touch()
    assert [process.wait(timeout=60) for process in both] == [0, 0]


@pytest.mark.parametrize("cell", ["a: int = 1\nb = 2", "a: int = max(1, 2)", "a: int = 'x'", "a: Path = 'x'"])
def test_a_parameters_cell_that_cannot_be_checked_is_refused(toy, cell):
    write_notebook(toy / "notebooks" / "01_first.ipynb", 'run: str = "quick"\n' + cell)
    with pytest.raises(BadInput, match=r"01_first|'Path'"):
        go(toy)
    assert not (toy / "results").exists()


def test_entries_of_a_dict_are_given_flat_and_neither_a_hub_id_nor_a_file_of_its_data_set_is_a_path(toy):
    stage = second(
        toy, "tie: 7\nmodel: Qwen/Qwen2.5-0.5B\npair_file: pairs.jsonl.gz\nmore: ['endpoint:a/b/c']"
    )
    assert stage.parameters["settings"] == {"tie": 7, "ties": "drop", "dtype": None}
    assert not stage.inputs


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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "good.yaml", "--data", "absent"], "data_folder"),
        (["compare", "one", "two"], "no run is called 'one'"),
        (["grid", "good.yaml", "--set", "seed"], "--set 'seed' is not key=value,value"),
        (["grid", "good.yaml", "--set", "seed=1,x"], "seed must be int | None"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(toy, arguments, expected, capsys, monkeypatch):
    monkeypatch.chdir(toy)
    (toy / "good.yaml").write_text("seed: 3\n")
    extra = [] if arguments[0] == "compare" else ["--notebooks", "notebooks"]
    assert main([*arguments, *extra]) == 2
    out, errors = capsys.readouterr()
    assert out == "" and expected in errors and errors.count("\n") == 1


@pytest.mark.parametrize("name", ["run", "check", "status", "list", "compare", "grid", "archive", "fetch"])
def test_every_command_has_a_help(name):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])


def test_a_refusal_does_not_load_torch(toy):
    code = "import sys; from steerlib.__main__ import main; assert main(['run', 'absent.yaml']) == 2\n"
    code += "assert not {'torch', 'transformers', 'papermill'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=toy, capture_output=True).returncode == 0


def test_a_model_that_is_nowhere_is_refused_before_the_first_notebook_and_a_kept_run_is_not_asked(
    toy, monkeypatch
):
    asked = []
    monkeypatch.setattr("huggingface_hub.model_info", lambda model, **_: asked.append(model))
    (toy / "toy.yaml").write_text("model: nobody/no-such-model")
    for _ in range(2):
        folder = go(toy)
    assert asked == ["nobody/no-such-model"]
    shutil.rmtree(folder / "notebooks")
    monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: 1 / 0)
    with pytest.raises(BadInput, match=r"^model: 'nobody/no-such-model'.*by zero"):
        go(toy)
    assert not (folder / "notebooks").exists()


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


# --- side by side -------------------------------------------------------------------------------------------

BASE = dict.fromkeys(SCHEMA["arms"].columns, "") | {"temperature": 0.7, "alpha": 0.0, "profile": "none"}
STEERED = BASE | {"method": "anti_expert", "profile": "own"}
ARMS = [BASE | {"arm_id": "b", "method": "base", "control": "base"}]
ARMS += [STEERED | {"arm_id": f"a{x}", "alpha": x} for x in (1.0, 2.0)]
PROMPTS, USERS = [f"p{i}" for i in range(6)], [f"u{i // 2}" for i in range(6)]


def write_run(run: str, toxicity: dict[tuple[str, str, int], float], *, alphas: str = "[1.0, 2.0]") -> Path:
    """A run whose answers, by arm, prompt and seed, are as toxic as said; two prompts a user."""
    folder = results_folder(run)
    (folder / "params.yaml").write_text(f"# mine.yaml: python -m steerlib run mine.yaml\nalphas: {alphas}\n")
    write_table(folder, "arms", pd.DataFrame(ARMS))
    asked = {"prompt_id": PROMPTS, "prompt": PROMPTS, "user_id": USERS, "split": "test"}
    write_table(folder, "prompts", table("prompts", asked))
    answers = pd.DataFrame([*toxicity], columns=["arm_id", "prompt_id", "seed"])
    answers["text"] = [f"{run} {key}" for key in toxicity]
    write_table(folder, "generations", table("generations", answers))
    scores = dict.fromkeys(ATTRIBUTE_COLUMNS, toxicity.values())
    scores |= {"text_sha": answers.text.map(text_sha), "scorer": "s"}
    write_table(folder, "scores", table("scores", scores))
    write_manifest(folder, "04_evaluation", {"scorer": "s"}, seconds=1.0)
    return folder


def table(name: str, values: Mapping | pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(values).reindex(columns=SCHEMA[name].columns, fill_value="")


def drawn(seeds: list[int], rng: random.Random) -> dict[tuple[str, str, int], float]:
    return {(arm["arm_id"], p, seed): rng.random() for arm in ARMS for p in PROMPTS for seed in seeds}


@pytest.mark.usefixtures("toy")
def test_runs_are_compared_prompt_by_prompt_where_seeds_are_shared_and_as_two_samples_else() -> None:
    rng = random.Random(0)
    one, other = drawn([0, 1], rng), drawn([1, 2], rng)
    write_run("one", one)
    write_run("other", other, alphas="[2.0, 1.0]")
    write_run("far", {(arm, p, seed + 5): x for (arm, p, seed), x in other.items()})
    settings, arms, folder = compare("one", "other")
    assert settings.set_index("setting").loc["alphas"].tolist() == [[1.0, 2.0], [2.0, 1.0]]
    effects = [[run["a1.0", p, 1] - run["b", p, 1] for p in PROMPTS] for run in (one, other)]
    expected = paired_interval(*effects, USERS, within=(-2, 2))
    found = arms.set_index("alpha").loc[1.0]
    assert found[["value", "low", "high"]].tolist() == pytest.approx(expected[:3])
    assert (found["how"], found["n"], found["n_clusters"]) == ("paired", 6, 3)
    assert {"settings.csv", "compare.png", "compare.csv"} <= {path.name for path in folder.rglob("*")}
    (apart,) = compare("one", "far")[1].query("alpha == 1").to_dict("records")
    means = [
        sum(run["a1.0", p, seed] - run["b", p, seed] for p in PROMPTS for seed in own) / 12
        for run, own in ((one, (0, 1)), (other, (1, 2)))
    ]
    assert (apart["how"], apart["value"]) == ("two samples", pytest.approx(means[1] - means[0]))


@pytest.mark.usefixtures("toy")
def test_equal_answers_have_no_interval_and_runs_without_a_common_arm_show_their_settings(capsys) -> None:
    same = drawn([0], random.Random(1))
    for run in ("one", "other"):
        write_run(run, same)
    arms = compare("one", "other")[1]
    assert (arms["how"] == "equal").all() and (arms["difference"] == "+0.000").all()
    folder = write_run("far", {key: x for key, x in same.items() if key[0] == "b"})
    row = dict.fromkeys(SCHEMA["verdict"].columns, 0) | {"method": "sda", "alpha": 1.5, "change": -0.25}
    write_table(folder, "verdict", pd.DataFrame([row]))
    assert main(["compare", "one", "far"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"far +sda +1.5 +-0.25", out) and "two samples" not in out
    assert main(["list"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "  far  " in line]
    assert re.match(r"20\d\d-\S+  far  mine.yaml  04_evaluation  sda at 1.5: toxicity -0.250", line)


def test_two_samples_differ_by_less_than_their_intervals_laid_end_to_end() -> None:
    one, other = Interval(1.0, 0.7, 1.3, 9, 5, ""), Interval(3.0, 2.6, 3.8, 8, 6, "")
    found = difference_of_two(one, other)
    assert found[:3] == pytest.approx((2, 1.5, 2 + 0.73**0.5))
    assert found[3:] == (8, 5, "two samples")


def test_status_counts_answers_and_names_what_changed_and_the_last_error(toy: Path, capsys) -> None:
    folder = write_run("toy", drawn([0, 1], random.Random(2)))
    answers = read_table(folder, "generations")
    (folder / "tables" / "generations" / "all.parquet").unlink()
    for i in range(3):  # of six prompts
        part = append_part(folder, "generations", answers[answers.prompt_id == f"p{i}"], part=str(i))
        os.utime(part, (1000 + 6 * i,) * 2)
    write_notebook(toy / "notebooks" / "02_second.ipynb", SECOND, "raise ValueError('not in 0..31')")
    with pytest.raises(NotebookFailed):
        go(toy)
    (toy / "toy.yaml").write_text("rows: 8\nrate: 2\nseed: null\n")
    capsys.readouterr()
    with FileLock(folder / ".lock"):
        assert main(["status", "toy", "--notebooks", str(toy / "notebooks")]) == 0
    heading, first, other, answers, error = capsys.readouterr().out.splitlines()[:5]
    assert heading == "run toy: going on"
    assert re.fullmatch(r"01_first +done +[\d.]+ s", first) and "not finished" in other
    assert answers.split(maxsplit=1) == ["answers", "18 of 36, 1.00 per second, 0.3 minutes left"]
    assert error.endswith("02_second: ValueError: not in 0..31")
    assert main(["status", str(toy / "toy.yaml"), "--notebooks", str(toy / "notebooks")]) == 0
    heading, first = capsys.readouterr().out.splitlines()[:2]
    assert heading == "run toy: not going on" and first.endswith("s, changed since: rows")
    write_notebook(toy / "notebooks" / "02_second.ipynb", SECOND)
    *_, answers = status(plan(go(toy) / "params.yaml", notebooks=toy / "notebooks"))
    assert answers.split() == ["answers", "18"]  # all is done, so the other 18 were never wanted


def test_a_grid_is_one_run_a_cell_goes_on_where_it_stopped_and_names_the_cell_that_failed(
    toy: Path, capsys
) -> None:
    first, given = toy / "notebooks" / "01_first.ipynb", ["rows=1,2", "alphas=[0.5],[1.0, 2.0]"]
    study = {"params_file": toy / "toy.yaml", "values": dict(map(override, given))}
    write_notebook(first, FIRST, "if rows == 2 and alphas == [0.5]: raise ValueError('not this one')")
    message = r"1 of 4 failed; toy\.rows-2-alphas-0\.5\.\w{6}: .*not this one"
    with pytest.raises(NotebookFailed, match=message):
        grid(**study, notebooks=toy / "notebooks")
    assert len(pd.read_csv(toy / "results" / "toy-grid" / "grid.csv")) == 4
    write_notebook(first, FIRST, "print(run, rows, alphas)")
    before, _ = grid(**study, notebooks=toy / "notebooks")
    capsys.readouterr()
    table, path = grid(**study, notebooks=toy / "notebooks")
    assert capsys.readouterr().out.count("kept") == 8
    cells = [[rows, alphas] for rows in (1, 2) for alphas in ([0.5], [1.0, 2.0])]
    assert table[["rows", "alphas"]].to_numpy().tolist() == cells
    last = table["run"].iloc[3]
    assert table["run"].is_unique and table["run"].equals(before["run"])
    assert printed(path.parents[1] / last / "notebooks" / first.name) == f"{last} 2 [1.0, 2.0]\n"


@pytest.mark.usefixtures("toy")
def test_an_archive_holds_tables_scores_and_params_but_no_vectors_and_nobodys_choices(tmp_path: Path) -> None:
    folder = write_run("mine", drawn([0], random.Random(3)))
    for name in ("vectors/all.safetensors", "preferences/anna.csv", "figures/a.png", "figures/b.corrupt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    for stage in ("05_figures", "06_alpha_explorer"):
        write_manifest(folder, stage, {}, seconds=1)
    assert archive("mine", tmp_path / "mine.zip") == 9
    shutil.unpack_archive(tmp_path / "mine.zip", tmp_path / "elsewhere")
    there = tmp_path / "elsewhere" / "mine"
    held = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    tables = {f"tables/{name}/all.parquet" for name in ("arms", "generations", "prompts", "scores")}
    assert held == tables | {"manifest.json", "params.yaml", "replay.yaml", "scores.csv", "figures/a.png"}
    study = plan(there / "replay.yaml")
    assert [*study.stages] == ["05_figures", "06_alpha_explorer"]
    scorer = f"replay:{there / 'scores.csv'}"
    assert {"model": "none", "scorer": scorer}.items() <= study.stages["06_alpha_explorer"].given.items()


@pytest.mark.slow
def test_a_run_is_shown_again_from_its_archive_where_no_model_is(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STEERLIB_RESULTS", str(tmp_path / "here"))
    stages = "02_steering_vectors, 03_generation_sweep, 04_evaluation, 05_figures, 06_alpha_explorer"
    smaller = "path_tokens: 4\nn_questions: 2\nexplorer_tokens: 6\n"
    (tmp_path / "small.yaml").write_text(TINY.replace("03_generation_sweep", stages) + smaller)
    assert main(["run", str(tmp_path / "small.yaml")]) == 0
    assert main(["archive", "small", str(tmp_path / "small.zip")]) == 0
    shutil.unpack_archive(tmp_path / "small.zip", tmp_path / "there")
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


@pytest.mark.parametrize(("text", "kills"), [(TINY, 2), pytest.param(QUICK, 20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_tables_of_one_that_was_not(
    tmp_path, monkeypatch, text, kills
):
    monkeypatch.setenv("STEERLIB_RESULTS", str(tmp_path / "whole"))
    params, draw = tmp_path / "torture.yaml", random.Random(0)
    params.write_text(text)
    assert going(params).wait() == 0
    whole, broken = tmp_path / "whole" / "torture", tmp_path / "broken" / "torture"
    done = sorted((whole / "notebooks").glob("*.done.json"))
    monkeypatch.setenv("STEERLIB_RESULTS", str(tmp_path / "broken"))
    # Kills are spread over all notebooks, each at a random moment after its partial copy was first written.
    for number in range(kills):
        file = done[number * len(done) // kills]
        ended = broken / "notebooks" / file.name
        ended.unlink(missing_ok=True)  # before its time: it, and so all after it, is done again
        partial = ended.with_name(file.name.replace(".done.json", ".partial.ipynb"))
        begun, process = time.time(), going(params)
        while process.poll() is None and not (partial.exists() and partial.stat().st_mtime > begun):
            time.sleep(0.02)
        time.sleep(draw.random() * json.loads(file.read_text())["seconds"])
        with suppress(psutil.NoSuchProcess):
            kernels = process.children(recursive=True) if draw.random() < 0.5 else []
            for one in (process, *kernels):
                one.kill()
        process.wait()
    assert going(params).wait() == 0
    names = sorted(path.name for path in (whole / "tables").iterdir())
    assert names == sorted(path.name for path in (broken / "tables").iterdir())
    for name in names:
        tables = (read_table(folder, name) for folder in (whole, broken))
        one, other = (table.sort_values([*SCHEMA[name].key], ignore_index=True) for table in tables)
        # Tokens are equal; a sum of float32 logits may end otherwise when what is left is another batch.
        pd.testing.assert_frame_equal(one, other, obj=name, rtol=1e-3, atol=1e-4)
    assert not [path for path in broken.rglob("*") if "partial" in path.name]
