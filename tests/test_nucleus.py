import dataclasses
import math

import pandas as pd
import pytest
import torch
from reference import reference_answer
from test_decoding import GREEDY, PROMPTS, SAMPLED, SIGNALS, answers, grid

from steerlib.decoding import Sampling, alpha_path, decode, make_arms
from steerlib.decoding.requests import make_requests


def nucleus_grid(sampling: Sampling, base_top_p: float) -> pd.DataFrame:
    common = {"profile": "own", "sampling": sampling, "base_top_p": base_top_p}
    return pd.concat(
        [
            make_arms("base", sampling=sampling),
            make_arms("anti_expert", [0, 0.5, 2.2], **common),
            make_arms("expert_anti_expert", [0, 1.0, 2.2], **common),
        ],
        ignore_index=True,
    )


@pytest.mark.parametrize("sampling", [SAMPLED, GREEDY, dataclasses.replace(SAMPLED, top_p=1.0, min_p=0.1)])
@pytest.mark.parametrize("base_top_p", [0.05, 0.6])
def test_within_the_bases_nucleus_the_engine_writes_what_the_plain_decoder_writes(tiny, sampling, base_top_p):
    arms = nucleus_grid(sampling, base_top_p)
    table = decode(tiny, PROMPTS, arms, seeds=[3])
    assert table[["nll_base", "kl_to_base"]].map(math.isfinite).all(axis=None)
    found = answers(table)
    for request in make_requests(tiny, PROMPTS, arms, seeds=[3], **SIGNALS):
        expected = reference_answer(tiny, request)
        assert found[request.arm_id, request.prompt_id, request.seed] == tuple(expected), request


def test_a_nucleus_of_one_token_is_the_greedy_base_and_a_whole_one_changes_nothing(tiny):
    plain = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=12)
    narrow = decode(
        tiny, PROMPTS, make_arms("anti_expert", [2.2], profile="own", sampling=plain, base_top_p=1e-9)
    )
    base = decode(tiny, PROMPTS, make_arms("base", sampling=plain))
    assert narrow.token_ids.tolist() == base.token_ids.tolist()
    one, other = (
        decode(tiny, PROMPTS, make_arms("anti_expert", [2.2], profile="own", sampling=SAMPLED, **settings))
        for settings in ({}, {"base_top_p": 1.0})
    )
    pd.testing.assert_frame_equal(one, other)


def test_beside_limited_arms_the_others_are_bit_identical(tiny):
    arms = grid()
    limited = make_arms("anti_expert", [1.0], profile="own", sampling=SAMPLED, base_top_p=0.5)
    alone = decode(tiny, PROMPTS, arms, **SIGNALS)
    beside = decode(tiny, PROMPTS, pd.concat([arms, limited]), **SIGNALS)
    assert answers(alone).items() < answers(beside).items()


def test_alpha_zero_within_the_nucleus_is_the_base_within_its_nucleus(tiny):
    sampling = Sampling(temperature=1.0, top_p=1.0, repetition_penalty=1.0, max_new_tokens=12)
    settings = {"profile": "own", "sampling": sampling, "base_top_p": 0.7}
    zero = decode(tiny, PROMPTS, make_arms("anti_expert", [0], **settings), seeds=[0, 1])
    # At temperature 1 and without penalty the nucleus of sampling is the base's own.
    base = make_arms("base", sampling=dataclasses.replace(sampling, top_p=0.7))
    assert zero.token_ids.tolist() == decode(tiny, PROMPTS, base, seeds=[0, 1]).token_ids.tolist()


def test_kl_within_the_nucleus_is_that_of_the_filtered_distribution(tiny):
    arms = make_arms("expert_anti_expert", [1.0], profile="own", sampling=SAMPLED, base_top_p=0.6)
    table = decode(tiny, PROMPTS, arms)
    for request, row in zip(
        make_requests(tiny, PROMPTS, arms, seeds=[0], **SIGNALS), table.itertuples(), strict=True
    ):
        written = [*row.token_ids, *([0] * row.stopped)]
        z = {
            name: tiny.model(torch.tensor([[*stream.ids, *written]])).logits[0, len(stream.ids) - 1 : -1]
            for name, stream in request.branches.items()
        }
        expected = 0.0
        for base, steered in zip(z["base"], z["base"] + z["expert"] - z["anti"], strict=True):
            order = base.softmax(-1).argsort(descending=True)
            size = 1 + int((base.softmax(-1)[order].cumsum(-1) < 0.6).sum())
            kept = order[:size]
            p, q = steered[kept].softmax(-1), base.softmax(-1)[kept]
            expected += float((p * (p / q).log()).sum())
        assert row.kl_to_base == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", ["anti_expert", "expert_anti_expert"])
def test_the_alpha_path_keeps_to_the_bases_nucleus(tiny, method):
    sampling = dataclasses.replace(SAMPLED, top_p=1.0, min_p=0.05)
    settings = {"sampling": sampling, "base_top_p": 0.7}
    arm = make_arms(method, [2.2], profile="own", **settings)
    segments = alpha_path(tiny, PROMPTS, arm, seeds=[0, 1])
    arms = make_arms(method, [0, 0.21, 0.5, 0.93, 1.4, 1.81, 2.19], profile="own", **settings)
    plain = decode(tiny, PROMPTS, arms, seeds=[0, 1]).merge(arms[["arm_id", "alpha"]])
    for row in plain.itertuples():
        tree = segments[(segments.prompt_id == row.prompt_id) & (segments.seed == row.seed)]
        mine = tree[(tree.alpha_low <= row.alpha) & (row.alpha < tree.alpha_high)].iloc[0]
        assert mine.token_ids == row.token_ids, row.alpha
