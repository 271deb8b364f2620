import pandas as pd
import pytest
from test_decoding import PROMPTS, SAMPLED, SIGNALS, answers, grid

from steerlib.decoding import decode, make_arms, run_sweep
from steerlib.decoding import sweep as sweep_module
from steerlib.tables import read_table


@pytest.fixture(autouse=True)
def blocks_of_two_prompts(monkeypatch):
    monkeypatch.setattr(sweep_module, "ANSWERS_PER_BLOCK", 2 * len(grid()))


def run(folder, frozen, arms, **settings):
    return run_sweep(frozen, PROMPTS, arms, folder=folder, **SIGNALS, **settings)


def count_decoded(monkeypatch, module=sweep_module):
    counts = []
    original = module.decode_requests

    def counting(frozen, requests, **settings):
        counts.append(len(requests))
        return original(frozen, requests, **settings)

    monkeypatch.setattr(module, "decode_requests", counting)
    return counts


def test_a_finished_sweep_decodes_nothing_and_a_new_alpha_its_own_answers_alone(tiny, tmp_path, monkeypatch):
    counts = count_decoded(monkeypatch)
    run(tmp_path, tiny, grid())
    assert counts == [2 * len(grid()), len(grid())]
    counts.clear()
    run(tmp_path, tiny, grid())
    assert counts == []
    more = pd.concat([grid(), make_arms("anti_expert", [1.7], profile="own", sampling=SAMPLED)])
    table = run(tmp_path, tiny, more)
    assert counts == [2, 1]
    assert len(table) == 3 * len(more)


def test_a_block_has_no_more_prompts_than_allowed_however_few_its_arms_are(tiny, tmp_path, monkeypatch):
    counts = count_decoded(monkeypatch)
    run(tmp_path / "all", tiny, make_arms("base", sampling=SAMPLED))
    monkeypatch.setattr(sweep_module, "PROMPTS_PER_BLOCK", 2)
    run(tmp_path / "few", tiny, make_arms("base", sampling=SAMPLED))
    assert counts == [3, 2, 1]


def test_a_sweep_stopped_half_way_keeps_its_blocks_and_ends_as_decoding_does(tiny, tmp_path, monkeypatch):
    original, calls = sweep_module.decode_requests, []
    monkeypatch.setattr(sweep_module, "ANSWERS_PER_BLOCK", 2 * 2 * len(grid()))

    def failing(frozen, requests, **settings):
        calls.append(requests)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(frozen, requests, **settings)

    monkeypatch.setattr(sweep_module, "decode_requests", failing)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tiny, grid(), seeds=[0, 1])
    assert len(read_table(tmp_path, "generations")) == 2 * 2 * len(grid())
    expected = answers(decode(tiny, PROMPTS, grid(), seeds=[0, 1], **SIGNALS))
    assert answers(run(tmp_path, tiny, grid(), seeds=[0, 1])) == expected
