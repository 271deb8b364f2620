import math

import pandas as pd
import pytest
import torch

from steerlib.decoding.contexts import branch_ids
from steerlib.evaluation.likelihood import token_divergence
from steerlib.reading import answer_ids

CONTEXTS = {"honesty": {"instructed": "Be honest."}}
PROMPTS = pd.DataFrame(
    {"prompt_id": ["p", "q", "r"], "prompt": ["Is it?", "Was it so?", "?!"], "category": "honesty"}
)
ANSWERS = pd.Series({"q": "No.", "p": "Yes, it is."})


def test_each_token_has_the_divergence_of_both_branches_read_alone(tiny):
    found = token_divergence(tiny, PROMPTS, ANSWERS, contexts=CONTEXTS)
    assert found.groupby("prompt_id", sort=False).token.agg("".join).to_dict() == {
        "p": "Yes, it is.",
        "q": "No.",
    }
    for prompt_id, rows in found.groupby("prompt_id"):
        prompt = PROMPTS.set_index("prompt_id").prompt[prompt_id]
        ids = answer_ids(tiny, ANSWERS[prompt_id], style="chat")
        p = []
        for branch in ("base", "instructed"):
            context = branch_ids(tiny, prompt, branch, category="honesty", style="chat", contexts=CONTEXTS)
            z = tiny.model(input_ids=torch.tensor([context + ids])).logits[0, len(context) - 1 : -1]
            p.append(z.softmax(-1))
        middle = (p[0] + p[1]) / 2
        js = sum((one * (one / middle).log()).sum(-1) for one in p) / 2
        torch.testing.assert_close(
            torch.tensor(rows.js.tolist(), dtype=torch.float64), js, rtol=0, atol=1e-10
        )
        own = p[1][range(len(ids)), list(ids)].log()
        torch.testing.assert_close(torch.tensor(rows.lp_instructed.tolist(), dtype=torch.float64), own)


def test_the_divergence_is_between_nought_and_ln_2_and_nought_for_equal_branches(tiny):
    found = token_divergence(tiny, PROMPTS, ANSWERS, contexts=CONTEXTS)
    assert found.js.between(0, math.log(2)).all()
    assert found.js.max() > 1e-3
    same = token_divergence(tiny, PROMPTS, ANSWERS, contexts={"honesty": {"expert": ""}}, branch="expert")
    assert same.js.max() < 1e-9
    assert (same.lp_base - same.lp_instructed).abs().max() < 1e-9


def test_empty_answers_have_no_tokens(tiny):
    found = token_divergence(tiny, PROMPTS, pd.Series({"p": "", "r": "x"}), contexts=CONTEXTS)
    assert found.prompt_id.tolist() == ["r"]


def test_an_answer_to_no_prompt_and_a_missing_context_are_refused(tiny):
    with pytest.raises(ValueError, match="answer to 'z': there is no such prompt"):
        token_divergence(tiny, PROMPTS, pd.Series({"z": "Yes"}), contexts=CONTEXTS)
    with pytest.raises(ValueError, match="no 'anti' for category 'honesty'"):
        token_divergence(tiny, PROMPTS, ANSWERS, contexts=CONTEXTS, branch="anti")
