"""The benchmark measures what it says: peers write what ours writes, samples and ratios are computed right."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks.__main__ import PARTS, main
from benchmarks.batches import UnmergedBatch, decode_as
from benchmarks.choices import asked
from benchmarks.growth import growth_figure
from benchmarks.paths import _shared
from benchmarks.plain import cached_batch, cached_loop, full_prefix_loop, library_guidance, nucleus_draw
from benchmarks.rules import by_arm, spread
from benchmarks.setting import RESULTS, SMALL, Setting
from benchmarks.timing import Decoder, Timed, compared, race, row_counter, write
from benchmarks.vectors import _sweep, peers, random_vector
from steerlib.decoding import Sampling, VectorFamily, decode, make_arms
from steerlib.decoding.requests import make_requests
from steerlib.models import FrozenModel
from steerlib.reading import last_logits, prompt_ids
from steerlib.tables import ROOT

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


@pytest.mark.parametrize("name", ["steering-vectors", "repeng"])
def test_a_package_steers_as_ours_does_and_leaves_the_model_as_it_was(tiny: FrozenModel, name: str) -> None:
    if name not in peers():
        pytest.skip(f"{name} is not installed; see benchmarks/peers.txt")
    prompts, vector = Setting(tiny, SMALL).prompts(2), {k: v.double() for k, v in random_vector(tiny).items()}
    family = VectorFamily("random", {"": vector})
    arms = make_arms("caa", ALPHAS, family=family, sampling=GREEDY)
    contexts = {p.prompt_id: prompt_ids(tiny, p.prompt, style="continuation") for p in prompts.itertuples()}
    before = last_logits(tiny, [*contexts.values()])
    theirs = _sweep(tiny, peers()[name](tiny, vector), arms, contexts, GREEDY.max_new_tokens)
    assert theirs == by_arm(decode(tiny, prompts, arms, vectors=[family]))
    assert torch.equal(last_logits(tiny, [*contexts.values()]), before)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_plain_grid_writes_the_same_with_three_rows_for_every_answer(
    tiny: FrozenModel, temperature: float
) -> None:
    sampling = Sampling(
        temperature=temperature, top_p=1.0, min_p=0.1, repetition_penalty=1.1, max_new_tokens=6
    )
    prompts, arms, requests = grid(tiny, "expert_anti_expert", sampling)
    with row_counter(tiny) as merged:
        ours = decode(tiny, prompts, arms)
    with row_counter(tiny) as plain:
        found = decode_as(UnmergedBatch, tiny, requests, capacity=9)
    assert by_arm(pd.DataFrame(found)) == by_arm(ours)
    assert plain["steps"] == 3 * sum(min(n, 5) for n in ours.n_tokens)
    assert merged["steps"] < plain["steps"]


def test_a_draw_never_leaves_the_nucleus() -> None:
    torch.manual_seed(0)
    z = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(500, -1)
    drawn = nucleus_draw(z, temperature=1.0, top_p=0.75)
    assert set(drawn.tolist()) == {0, 1}
    assert (drawn == 0).float().mean() == pytest.approx(0.5 / 0.8, abs=0.07)


def test_a_sample_is_compared_by_time_per_token_and_stands_for_the_whole_grid() -> None:
    ours = Timed(Decoder("ours", "all", dict), {"a": [1, 2], "b": [3, 4], "c": [5, 6]}, 3.0, 1.5, 12)
    peer = Timed(Decoder("peer", "1", dict), {"b": [3, 5]}, 4.0, 4.0, 0)
    first, second = compared([ours, peer], setting="x")
    assert (first["ms a token"], first["whole grid, s"], first["same answers"]) == (500, 3, "3/3")
    assert (second["ms a token"], second["whole grid, s"], second["same answers"]) == (2000, 12, "0/1")
    assert (second["ours is faster by"], second["by processor time"]) == (4, 8)
    assert (second["answers timed"], second["of"]) == (1, 3)


def test_the_shortest_of_several_runs_counts(tiny: FrozenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 5.0, 5.0, 6.0, 6.0, 8.0])
    monkeypatch.setattr("benchmarks.timing.clock", lambda device: next(times))  # noqa: ARG005
    (timed,) = race([tiny], [Decoder("x", "all", dict)], repeats=3)
    assert timed.seconds == 1


def test_a_sample_is_spread_from_the_first_to_the_last() -> None:
    assert spread(range(9), 3) == [0, 4, 8]
    assert spread("ab", 5) == ["a", "b"]


def test_an_answer_of_the_grid_is_looked_for_in_the_segment_of_its_alpha() -> None:
    plain = Timed(Decoder("plain", "", dict), {("p", 0.5): [1], ("p", 2.0): [2], ("q", 2.0): [2]}, 1, 1, 1)
    segments = {("p", 0.0, 1.0, True): [1], ("p", 1.0, 2.2, True): [3], ("q", 0.0, 2.2, True): [2]}
    assert _shared(plain, Timed(Decoder("path", "", dict), segments, 1, 1, 1)) == 2


def test_rotated_questions_are_different_and_keep_their_right_answer() -> None:
    questions = asked("demo", 10**6)
    texts = questions.groupby("question").apply(
        lambda part: {row[row["answer"]] for _, row in part.iterrows()}, include_groups=False
    )
    assert questions["question_id"].is_unique
    assert (questions.groupby("question").size() == 4).all()
    assert texts.map(len).eq(1).all()
    assert len(asked("demo", 200)) == 200


def test_an_unknown_part_is_refused_before_anything_is_timed(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["rules", "speed"])
    assert "speed" in capsys.readouterr().err


def test_a_table_is_kept_with_what_it_was_measured_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write("x", [{"seconds": 1.5, "same answers": ""}], about={"threads": 2}, folder=tmp_path)
    kept = json.loads((tmp_path / "x.json").read_text())
    assert kept["measured_on"] == {"threads": 2}
    assert kept["rows"] == [{"seconds": 1.5, "same answers": ""}]
    assert "threads: 2" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_kept_table_states_the_machine_and_how_busy_it_was(path: Path) -> None:
    kept = json.loads(path.read_text())
    assert {"hardware", "cores", "threads", "load_at_start", "torch"} <= set(kept["measured_on"])
    assert kept["rows"]


def test_the_figure_shows_every_size_of_what_grows() -> None:
    sizes = {"alphas": (1, 2, 4), "prompts": (1, 2), "tokens": (2, 4)}
    rows = [
        {"grows": name, "manner": manner, name: n, "processor seconds": n**0.5, "rows decoded": n**0.8}
        for manner in ("greedy", "sampled")
        for name, values in sizes.items()
        for n in values
    ]
    figure = growth_figure(pd.DataFrame(rows), dict.fromkeys(sizes, 2))
    assert [len(ax.lines) for ax in figure.axes] == [5, 5, 5]
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2, 4]


def test_the_peers_are_pinned_exactly() -> None:
    pins = re.findall(r"^[^#\n]+$", (ROOT / "benchmarks" / "peers.txt").read_text(), flags=re.MULTILINE)
    assert len(pins) == 2
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", pin) for pin in pins)


def test_the_parts_are_those_of_the_help_text() -> None:
    assert PARTS == ("rules", "vectors", "path", "choices", "growth", "precision")


def test_peers_decode_the_model_as_its_own_library_loads_it(tiny: FrozenModel) -> None:
    other = FrozenModel(tiny.model, tiny.tokenizer, "plainly loaded")
    assert Setting(tiny).peer is tiny
    assert Setting(tiny, plain=other).peer is other
    assert Setting(tiny, plain=other).models == [tiny, other]
