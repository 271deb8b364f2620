"""Blocks of work over two Ray workers on this machine, on the loopback interface."""

import os
import pickle
import re
import signal
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest
from test_decoding import GREEDY, PROMPTS, SIGNALS, grid
from test_likelihood import PAIRS
from tiny import tiny_llama

from steerlib.decoding import make_arms, run_sweep
from steerlib.decoding import sweep as sweep_module
from steerlib.decoding.distributed import BlocksFailed, mapped, mapped_table
from steerlib.evaluation import likelihood_margins
from steerlib.models import load_model
from steerlib.tables import progress_bar
from steerlib.toxicity import load_scorer, score_texts

ray = pytest.importorskip("ray", reason="ray is not installed")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One start of Ray for all tests; each of them starts actors of its own."""
    settings = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(num_cpus=2, object_store_memory=2**27, _node_ip_address="127.0.0.1", **settings)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


def squares(held, block):
    return [held * i * i for i in block]


def killed_once(folder, block):
    """The worker of the first block with a 3 is killed while it works; a block of four is too large."""
    if 3 in block and not (mark := Path(folder, "killed")).exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if len(block) > 3:
        raise MemoryError(f"{len(block)} rows")
    return block


def bad_at_two(folder, block):
    with Path(folder, "tries").open("a") as file:
        file.write(f"{block[0]} ")
    if block[0] == 2:
        raise FloatingPointError("arm a, prompt p: not finite")
    if block[0] == 4:
        os._exit(1)
    return block


def test_the_sweeps_table_is_that_of_one_process_row_for_row(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "ANSWERS_PER_BLOCK", 1)
    frozen = tiny_llama()
    frozen.model.float()
    tables = [
        run_sweep(frozen, PROMPTS, grid(), folder=tmp_path / str(n), seeds=[0, 1], workers=n, **SIGNALS)
        for n in (0, 2)
    ]
    # The same words; a process's memory layout may change the last bits of a float32 sum.
    pd.testing.assert_frame_equal(*tables, rtol=1e-3, atol=1e-3)
    assert {p.name for p in (tmp_path / "0").rglob("*.parquet")} == {
        p.name for p in (tmp_path / "2").rglob("*.parquet")
    }


def test_an_interrupted_sweep_stops_its_workers(tiny, tmp_path, monkeypatch):
    workers = []

    def interrupted(*_, **__):
        workers.extend(p for p in psutil.Process().children(recursive=True) if "_Worker" in p.cmdline()[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_module, "ANSWERS_PER_BLOCK", 1)
    monkeypatch.setattr(sweep_module, "append_part", interrupted)
    # The exception is kept, as a notebook keeps its last one: nothing is stopped by its going.
    with pytest.raises(KeyboardInterrupt) as kept:
        run_sweep(tiny, PROMPTS, make_arms("base", sampling=GREEDY), folder=tmp_path, workers=2)
    assert len(workers) >= 2
    assert psutil.wait_procs(workers, timeout=20)[1] == [], kept


def test_any_table_goes_over_workers_and_comes_back_in_order(tiny):
    given = {"pairs": PAIRS, "arms": make_arms("base", style="chat")}
    expected = likelihood_margins(tiny, **given)
    for workers in (0, 2):
        found = mapped_table(likelihood_margins, tiny, over="pairs", rows=2, workers=workers, **given)
        pd.testing.assert_frame_equal(found, expected)


def test_perspective_is_asked_by_one_process(tmp_path, monkeypatch):
    def asked(*_, workers, **__):
        raise InterruptedError(f"{workers} workers")

    monkeypatch.setenv("PERSPECTIVE_API_KEY", "key")
    monkeypatch.setenv("STEERLIB_CACHE", str(tmp_path))
    monkeypatch.setattr("steerlib.toxicity.scorers.mapped_table", asked)
    with pytest.raises(InterruptedError, match="0 workers"):
        score_texts(load_scorer("perspective"), ["You are late."], tmp_path, workers=2)


def test_a_killed_workers_block_is_done_again_and_one_that_does_not_fit_is_halved(tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_PROGRESS", str(tmp_path / "progress"))
    with progress_bar(8, what="sweep", unit="answer") as bar:
        found = sorted(mapped(killed_once, tmp_path, [[0, 1, 2, 3], [4, 5], [6, 7]], workers=2, bar=bar))
    assert found == [(block, block) for block in ([0, 1], [2, 3], [4, 5], [6, 7])]
    assert (tmp_path / "killed").exists()
    assert re.search(r"8/8.*2 workers, [\d.]+/s each", (tmp_path / "progress").read_text())


def test_a_block_that_fails_three_times_is_named_when_the_others_are_done(tmp_path):
    done = []
    with pytest.raises(
        BlocksFailed, match=r"2 of 5 blocks.*block 2: FloatingPointError: arm a, prompt p"
    ) as failure:
        for block, _ in mapped(
            bad_at_two, tmp_path, [[i] for i in range(5)], workers=2, name=lambda block: f"block {block[0]}"
        ):
            done += block
    assert "block 4: ActorDiedError" in str(failure.value)
    assert sorted(done) == [0, 1, 3]
    assert sorted((tmp_path / "tries").read_text().split()) == [*"012223444"]


class Unloadable:
    def __reduce__(self):
        return load_model, ("no-such-folder/at-all",)


def test_a_model_that_workers_cannot_load_ends_the_work_at_once():
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        list(mapped(squares, Unloadable(), [[1], [2]], workers=2))


def test_a_loaded_model_travels_as_how_it_was_loaded(saved):
    frozen = load_model(saved, device="cpu", dtype="float64", template_arguments={"x": 1})
    sent = pickle.dumps(frozen)
    again = pickle.loads(sent)
    assert len(sent) < 1000
    assert (again.name, again.dtype, again.template_arguments) == (frozen.name, frozen.dtype, {"x": 1})


def test_workers_that_are_no_number_are_refused():
    for workers in (-1, "two", 1.5):
        with pytest.raises(ValueError, match=re.escape(repr(workers))):
            list(mapped(squares, 1, [[1]], workers=workers))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("steerlib.decoding.distributed.find_spec", lambda name: None)  # noqa: ARG005
    with pytest.raises(ImportError, match=r"steerlib\[ray\]"):
        list(mapped(squares, 1, [[1]], workers=2))
    assert list(mapped(squares, 2, [[1, 3]])) == [([1, 3], [2, 18])]
