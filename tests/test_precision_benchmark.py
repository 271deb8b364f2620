"""What the benchmark of bfloat16 compares, on the tiny model."""

import pandas as pd
import pytest
import torch
from tiny import tiny_llama
from torch.nn.functional import kl_div

from benchmarks.precision import common, divergence
from steerlib.decoding import Sampling, make_arms
from steerlib.decoding.requests import make_requests
from steerlib.models import FrozenModel

PROMPTS = pd.DataFrame({"prompt_id": ["p"], "prompt": ["Once"], "category": ["insult"]})
ANSWER = [5, 9, 7]


def requests(frozen: FrozenModel, method: str, alpha: float):
    sampling = Sampling(temperature=0, max_new_tokens=3)
    profile = "none" if method == "base" else "own"
    return make_requests(
        frozen, PROMPTS, make_arms(method, [alpha], profile=profile, sampling=sampling), seeds=[0]
    )


@pytest.fixture
def rounded():
    other = tiny_llama()
    other.model.bfloat16().double()
    return other


def test_a_model_does_not_diverge_from_itself(tiny):
    (request,) = requests(tiny, "expert_anti_expert", 1.0)
    assert divergence(tiny, tiny, request, ANSWER) == pytest.approx(0, abs=1e-12)


def test_divergence_is_the_mean_kl_over_the_steps_of_the_answer(tiny, rounded):
    (request,) = requests(tiny, "base", 0.0)
    ids = torch.tensor([[*request.branches["base"].ids, *ANSWER]])
    p, q = (frozen.model(ids).logits[0, -4:].log_softmax(-1) for frozen in (tiny, rounded))
    expected = float(kl_div(q, p, log_target=True, reduction="none").sum() / 4)
    assert divergence(tiny, rounded, request, ANSWER) == pytest.approx(expected, rel=1e-9)
    assert expected > 1e-7


def test_a_rule_at_alpha_zero_diverges_as_the_base_does(tiny, rounded):
    found = [
        divergence(tiny, rounded, *requests(tiny, method, 0.0), ANSWER)
        for method in ("base", "expert_anti_expert")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_tokens_in_common_end_at_the_first_that_differs():
    assert common([1, 2, 3], [1, 2, 4]) == 2
    assert common([1, 2], [1, 2, 4]) == 2
    assert common([], [1]) == 0
    assert common([2, 1], [1, 1]) == 0
