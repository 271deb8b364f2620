"""The benchmark measures what it says: peers write what ours writes, samples and ratios are computed right."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import tables
from benchmarks.paths import UnmergedBatch, decode_as
from benchmarks.plain import cached_batch, cached_loop, full_prefix_loop, library_guidance
from benchmarks.rules import by_arm
from benchmarks.setting import SMALL, Setting
from benchmarks.timing import Decoder, Timed, compared, measured, row_counter, unfinished, write
from steerlib.decoding import Sampling, decode, make_arms
from steerlib.decoding.requests import make_requests
from steerlib.models import FrozenModel

ALPHAS = (0.5, 2.0)
GREEDY = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=6)


def grid(tiny: FrozenModel, method: str, sampling: Sampling = GREEDY) -> tuple:
    prompts = Setting(tiny, SMALL).prompts(2)
    arms = make_arms(method, ALPHAS, profile="own", sampling=sampling)
    return prompts, arms, make_requests(tiny, prompts, arms, seeds=[0])


@pytest.mark.parametrize("loop", [full_prefix_loop, cached_loop])
def test_the_loops_write_what_ours_writes(tiny: FrozenModel, loop) -> None:
    prompts, arms, requests = grid(tiny, "expert_anti_expert")
    ours = by_arm(decode(tiny, prompts, arms))
    assert {(r.arm_id, r.prompt_id): loop(tiny, r) for r in requests} == ours


@pytest.mark.parametrize(
    ("method", "peer"), [("expert_anti_expert", cached_batch), ("anti_expert", library_guidance)]
)
def test_a_padded_batch_of_a_peer_writes_what_ours_writes(tiny: FrozenModel, method: str, peer) -> None:
    prompts, arms, requests = grid(tiny, method)
    ours = by_arm(decode(tiny, prompts, arms))
    for alpha in ALPHAS:
        block = [r for r in requests if r.alpha == alpha]
        assert peer(tiny, block) == [ours[r.arm_id, r.prompt_id] for r in block]


def test_the_plain_grid_writes_the_same_with_three_rows_for_every_answer(tiny: FrozenModel) -> None:
    sampling = Sampling(temperature=0.7, top_p=1.0, min_p=0.1, repetition_penalty=1.1, max_new_tokens=6)
    prompts, arms, requests = grid(tiny, "expert_anti_expert", sampling)
    with row_counter(tiny) as merged:
        ours = decode(tiny, prompts, arms)
    with row_counter(tiny) as plain:
        found = decode_as(UnmergedBatch, tiny, requests, capacity=9)
    assert by_arm(pd.DataFrame(found)) == by_arm(ours)
    assert plain["steps"] == 3 * sum(min(n, 5) for n in ours.n_tokens)
    assert merged["steps"] < plain["steps"]


def test_a_sample_is_compared_by_time_per_token_and_stands_for_the_whole_grid() -> None:
    ours = Timed(Decoder("ours", "all", dict), {"a": [1, 2], "b": [3, 4], "c": [5, 6]}, 3.0, 1.5, 12)
    peer = Timed(Decoder("peer", "1", dict), {"b": [3, 5]}, 4.0, 4.0, 0)
    first, second = compared([ours, peer], setting="x")
    assert (first["ms per token"], first["whole grid, s"], first["same answers"]) == (500, 3, "3/3")
    assert (second["ms per token"], second["whole grid, s"], second["same answers"]) == (2000, 12, "0/1")
    assert (second["ours is faster by"], second["by processor time"]) == (4, 8)
    assert (second["answers timed"], second["of"]) == (1, 3)


def test_the_shortest_of_several_runs_counts_and_a_stopped_benchmark_goes_on_where_it_was(
    tiny: FrozenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, setting = [], Setting(tiny, replace(SMALL, repeats=2), folder=tmp_path)

    def decoder(name: str) -> Decoder:
        return Decoder(name, "all", lambda: ran.append(name) or {("p", 0.5): [len(ran)]})

    def run(times: Iterable[float], **about: int) -> list[Timed]:
        clock = iter(times)
        monkeypatch.setattr("benchmarks.timing.clock", lambda device: next(clock))  # noqa: ARG005
        groups = {"grid": [decoder("ours"), decoder("peer")]}
        return measured("x", groups, setting=setting, about=about)["grid"]

    with pytest.raises(StopIteration):
        run([0, 5, 5, 6, 6, 9], load_at_start=1)
    assert ran == ["ours", "peer", "ours"]
    with unfinished(tmp_path, "x").open("a") as torn:
        torn.write('{"repeat": 1, "sett')
    ours, peer = run([0, 0.5], load_at_start=7)
    assert ran[3:] == ["peer"]
    assert (ours.seconds, peer.seconds) == (3.0, 0.5)
    assert (ours.answers, peer.answers) == ({("p", 0.5): [3]}, {("p", 0.5): [4]})
    run(range(8), threads=3)
    assert len(ran) == 8  # another setting: nothing of the old one counts
    write("x", [{"seconds": 1.5}], about={"threads": 2}, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_the_documents_tables_are_those_of_the_kept_results() -> None:
    text = tables.DOCUMENT.read_text(encoding="utf-8")
    for made in (tables.tables(), tables.gpu_table(), tables.memory_table()):
        assert f"-->\n{made}<!-- /" in text
