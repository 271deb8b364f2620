"""An arm's exact path over alpha beside the arm decoded at single alphas."""

import pandas as pd
import pytest

from steerlib.decoding import Sampling, decode, make_arms
from steerlib.evaluation import arm_path

CONTEXTS = {"toxicity": {"expert": "Be kind.", "anti": "Be vile!", "instructed": "Kindly:"}}
PROMPTS = pd.DataFrame({"prompt_id": ["p", "q"], "prompt": ["Once", "A man"], "category": "toxicity"})
OWN = {"profile": "own", "contexts": CONTEXTS}


@pytest.mark.parametrize(
    ("method", "choice"),
    [
        ("expert_anti_expert", {"temperature": 0.7}),
        ("anti_expert", {"temperature": 0.0}),
        ("sda", {"temperature": 0.7, "js_sigma": 0.3}),
    ],
)
def test_the_path_has_the_answer_of_every_single_alpha(tiny, method, choice):
    arm = make_arms(method, [2.0], sampling=Sampling(**choice), **OWN).iloc[0]
    how = {"contexts": CONTEXTS}
    segments = arm_path(tiny, PROMPTS, arm, min_p=0.05, max_new_tokens=5, **how)
    assert segments.complete.all()
    nucleus = {"top_p": 1.0, "min_p": 0.05 if choice["temperature"] else 0.0, "max_new_tokens": 5}
    arms = make_arms(method, [0.0, 0.31, 1.7, 2.0], sampling=Sampling(**choice, **nucleus), **OWN)
    answers = decode(tiny, PROMPTS, arms, seeds=[0], **how).merge(arms[["arm_id", "alpha"]], on="arm_id")
    assert len(answers) == 4 * 2
    for row in answers.itertuples():
        path = segments[segments.prompt_id == row.prompt_id]
        path = path[(path.alpha_low <= row.alpha) & (row.alpha <= path.alpha_high)]
        assert list(path.sort_values("alpha_low").token_ids.iloc[-1]) == list(row.token_ids)  # closed below
