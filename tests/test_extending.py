"""A rule that the library does not know: registered, decoded, drawn as a path and asked, without touching a file."""

import re

import pandas as pd
import pytest
from reference import FORMULAS, reference_answer, segment_at
from test_decoding import GREEDY, PROMPTS
from test_grid import arms as arms_of_study

from steerlib import rules
from steerlib.decoding import Sampling, alpha_path, decode, make_arms
from steerlib.decoding.requests import make_requests
from steerlib.evaluation import likelihood_margins
from steerlib.rules import RULES, Rule
from steerlib.tables import ROOT

CONTEXTS = {
    category: {"formal": f"Formal, no {category}:", "short": f"In short, {category}:"}
    for category in ("insult", "threat", "profanity")
}


def made_up(z, alpha):
    """z_B + alpha (3 z_F - z_S - 2 z_B), written out for the reference."""
    return z["base"] + alpha * (3 * z["formal"] - z["short"] - 2 * z["base"])


@pytest.fixture
def rule(monkeypatch):
    made = Rule(
        "made_up",
        ("formal", "short"),
        lambda z, a: z["base"] + a[:, None] * (3 * z["formal"] - z["short"] - 2 * z["base"]),
        "Made up",
        "#332288",
        control="shuffled_profile",
    )
    monkeypatch.setitem(RULES, "made_up", made)
    monkeypatch.setitem(FORMULAS, "made_up", made_up)


def arms_of(alphas, profile="own"):
    return make_arms("made_up", alphas, profile=profile, contexts=CONTEXTS, sampling=GREEDY)


@pytest.mark.usefixtures("rule")
def test_a_made_up_rule_decodes_as_its_formula_says_and_has_an_alpha_path(tiny):
    arms = pd.concat([arms_of([0, 0.4, 1.3]), arms_of([1.3], profile="shuffled")])
    found = decode(tiny, PROMPTS, arms, contexts=CONTEXTS).set_index(["arm_id", "prompt_id"]).token_ids
    path = alpha_path(tiny, PROMPTS, arms_of([1.5]), contexts=CONTEXTS)
    for request in make_requests(tiny, PROMPTS, arms, seeds=[0], contexts=CONTEXTS):
        expected = reference_answer(tiny, request)
        assert found[request.arm_id, request.prompt_id] == expected, request
        if "own" in request.arm_id:
            at = segment_at(path, request.alpha, prompt_id=request.prompt_id)
            assert at.token_ids == expected, request
    assert len(path) > 4


@pytest.mark.usefixtures("rule")
def test_likelihood_and_grid_take_a_made_up_rule(tiny):
    pairs = pd.DataFrame({"pair_id": ["a"], "user_id": ["u"], "prompt": ["Why?"], "category": ["insult"]})
    pairs = pairs.assign(shuffled_category="threat", preferred="so", dispreferred="no way")
    margins = likelihood_margins(tiny, pairs, arms_of([0.0, 1.0]), contexts=CONTEXTS)["margin"]
    base = likelihood_margins(tiny, pairs, make_arms("base", sampling=GREEDY))["margin"]
    assert margins[0] == pytest.approx(base[0], abs=1e-9) != margins[1]
    study = arms_of_study(["made_up"], ["shuffled"], vectors=[])
    assert study["method"].tolist() == ["base", "made_up", "made_up"]
    assert study["profile"].tolist() == ["none", "own", "shuffled"]


@pytest.mark.parametrize("name", ["expert_anti_expert", "anti_expert", "sda"])
def test_the_published_function_is_what_the_decoder_combines_with(tiny, monkeypatch, name):
    profile = {"profile": "own", "sampling": Sampling(temperature=0, max_new_tokens=6)}
    arms = make_arms(name, [1.0], **profile)
    before = decode(tiny, PROMPTS, arms).token_ids.tolist()
    right = getattr(rules, name)
    monkeypatch.setattr(rules, name, lambda *z, **k: -right(*z, **k))
    assert decode(tiny, PROMPTS, arms).token_ids.tolist() != before
    path = alpha_path(tiny, PROMPTS, arms)
    wrong = decode(tiny, PROMPTS, make_arms(name, [0.999999], **profile))
    assert path.groupby("prompt_id").token_ids.last().tolist() == wrong.token_ids.tolist()


def test_the_page_on_extending_does_what_it_says(monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), flags=re.S)
    monkeypatch.setattr(rules, "RULES", RULES)
    names: dict = {}
    try:
        for block in blocks:
            exec(compile(block, "docs/extending.md", "exec"), names)
    finally:
        RULES.pop("two_voices", None)
    path = names["path"]
    assert path.alpha_low.iloc[0] == 0 and path.alpha_high.iloc[-1] == 1.5
    assert len(names["answers"]) == 1
