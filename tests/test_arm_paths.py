"""An arm's path beside the arm at single alphas."""

import pandas as pd
import pytest

from steerlib.decoding import Factor, Sampling, make_arms
from steerlib.evaluation import arm_at, arm_path, path_against_grid, path_sampling

CONTEXTS = {"toxicity": {"expert": "Be kind.", "anti": "Be vile!", "instructed": "Kindly:"}}
PROMPTS = pd.DataFrame({"prompt_id": ["p", "q"], "prompt": ["Once", "A man"], "category": "toxicity"})
OWN = {"profile": "own", "contexts": CONTEXTS}


def arm(method, alpha, **sampling):
    factor = Factor("sigmoid", {"p": 0.3}) if method == "sda" else None
    return make_arms(method, [alpha], sampling=Sampling(**sampling), factor=factor, **OWN).iloc[0]


@pytest.mark.parametrize(
    ("method", "sampling"),
    [
        ("expert_anti_expert", {"temperature": 0.7}),
        ("anti_expert", {"temperature": 0.0}),
        ("sda", {"temperature": 0.7, "js_sigma": 0.3}),
    ],
)
def test_the_path_has_the_answer_of_every_single_alpha(tiny, method, sampling):
    own = arm(method, 2.0, **sampling)
    how = {
        "sampling": path_sampling(own, min_p=0.05, max_new_tokens=5),
        "contexts": CONTEXTS,
        "seeds": [0, 1],
    }
    segments = arm_path(tiny, PROMPTS, own, **how)
    grid = arm_at(tiny, PROMPTS, own, [0.0, 0.31, 1.7, 2.0], **how)
    found = path_against_grid(segments, grid)
    assert len(found) == 4 * 2 * (2 if sampling["temperature"] else 1)
    assert found.agrees.all()
    assert found.complete.all()


def test_an_answer_that_differs_is_told():
    segment = {"prompt_id": "p", "seed": 0, "alpha_low": 0.0, "alpha_high": 1.0, "complete": True}
    segments = pd.DataFrame([segment | {"token_ids": [1, 2]}])
    grid = pd.DataFrame([{"prompt_id": "p", "seed": 0, "alpha": 0.5, "token_ids": [1, 3], "near_ties": 1}])
    assert path_against_grid(segments, grid).agrees.tolist() == [False]
    common = segments.assign(complete=False, token_ids=[[1]])
    assert path_against_grid(common, grid).agrees.tolist() == [True]
    with pytest.raises(ValueError, match=r"alpha 1\.5 of prompt 'p' is in no segment"):
        path_against_grid(segments, grid.assign(alpha=1.5))


def test_a_path_takes_its_arms_sampler_with_min_p_in_place_of_top_p():
    sampled = path_sampling(arm("sda", 2.0, js_sigma=0.3), min_p=0.05, max_new_tokens=9)
    assert (sampled.top_p, sampled.min_p, sampled.js_sigma, sampled.max_new_tokens) == (1.0, 0.05, 0.3, 9)
    assert path_sampling(arm("anti_expert", 1.0, temperature=0.0), min_p=0.05, max_new_tokens=9).min_p == 0
