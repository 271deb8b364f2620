"""On a GPU the engine writes what it writes on the processor (which is held against the plain decoder elsewhere).

Rotary position embeddings are computed in float32 whatever the model's precision, and differ between devices in
their last digits: so numbers are compared to within 1e-4, tokens exactly.
"""

import copy
import dataclasses

import pandas as pd
import pytest
import torch
from test_decoding import EVERY_SAMPLING, GREEDY, PROMPTS, SAMPLED, SIGNALS, answers, grid
from tiny import tiny_llama

from steerlib import SteeringVector
from steerlib.decoding import Sampling, alpha_path, decode, make_arms
from steerlib.models import FrozenModel, load_model
from steerlib.residual import record_residual

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


@pytest.fixture(scope="module")
def gpu() -> FrozenModel:
    """The tiny model of the other tests, its weights on the GPU."""
    frozen = tiny_llama()
    return dataclasses.replace(frozen, model=copy.deepcopy(frozen.model).to("cuda"))


@pytest.mark.parametrize(("sampling", "style"), EVERY_SAMPLING)
def test_every_kind_of_arm_has_the_answers_of_the_processor(tiny, gpu, sampling, style):
    arms = grid(sampling, style)
    expected = decode(tiny, PROMPTS, arms, seeds=[0, 1], **SIGNALS)
    found = decode(gpu, PROMPTS, arms, seeds=[0, 1], **SIGNALS)
    assert answers(found) == answers(expected)
    numbers = ["nll_base", "kl_to_base"]
    pd.testing.assert_frame_equal(found[numbers], expected[numbers], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_the_alpha_path_has_the_segments_of_the_processor(tiny, gpu, sampling):
    path = dataclasses.replace(sampling, top_p=1.0)
    arms = make_arms("expert_anti_expert", [2.2], profile="own", sampling=path)
    expected, found = (alpha_path(model, PROMPTS, arms) for model in (tiny, gpu))
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert found.alpha_low.tolist() == pytest.approx(expected.alpha_low.tolist(), abs=1e-4)


def test_recorded_residuals_and_vectors_made_of_them_are_the_same(tiny, gpu):
    ids = [tiny.tokenizer(text).input_ids for text in ("The man shouted", "Once upon a time")]
    expected, found = (
        record_residual(model, ids, layers=[1, 2], prompt_lengths=[3, 5]) for model in (tiny, gpu)
    )
    assert all(torch.allclose(found[layer].cpu(), expected[layer].cpu(), atol=1e-4) for layer in (1, 2))
    texts = ["a kind word", "another one"], ["a cruel word", "what a fool"]
    vectors = [SteeringVector.from_pairs(model, *texts, layers=[1, 2]) for model in (tiny, gpu)]
    one, other = (vector.steer("Hm", alpha=[-0.5, 0, 0.5]).text.tolist() for vector in vectors)
    assert one == other


def test_the_embedded_model_is_steered_alike_up_to_near_ties():
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=24)
    arms = make_arms("expert_anti_expert", [0, 1.0, 2.0], profile="own", sampling=sampling)
    one, other = (decode(load_model(device=d, dtype="float32"), PROMPTS, arms) for d in ("cpu", "cuda"))
    differ = [a != b for a, b in zip(one.token_ids, other.token_ids, strict=True)]
    assert not (pd.Series(differ) & (one.near_ties == 0)).any()


def test_in_bfloat16_alpha_zero_is_the_base_token_for_token():
    sampling = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.1, max_new_tokens=24)
    model, common = load_model(device="cuda"), {"sampling": sampling, "profile": "own"}
    arms = [make_arms("base", sampling=sampling)]
    arms += [make_arms(rule, [0, 2.0], **common) for rule in ("anti_expert", "expert_anti_expert")]
    table = decode(model, PROMPTS, pd.concat(arms, ignore_index=True), seeds=[0, 1])
    base, *others = (table[table.arm_id == arm].token_ids.tolist() for arm in pd.concat(arms).arm_id)
    assert model.dtype == torch.bfloat16
    assert [answers == base for answers in others] == [True, False, True, False]
