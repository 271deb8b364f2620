"""The public surface: steering one prompt in three lines, on strings."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from reference import segment_at
from torch.testing import assert_close

import steerlib
from steerlib import alpha_path, steer
from steerlib.decoding import Sampling, decode, make_arms
from steerlib.reading import answer_ids, answer_nll, prompt_ids

CONTEXTS = {"expert": "Be kind:", "anti": "Be cruel:"}
COLUMNS = ["alpha", "text", "kl_per_token", "perplexity", "perplexity_ratio", "collapsed"]
SHORT = {"max_new_tokens": 8}


def test_a_prompt_is_steered_by_plain_strings_as_decode_steers_it(tiny):
    table = steer(tiny, "You", **CONTEXTS, alpha=[0, 1, 2.5], **SHORT)
    assert list(table.columns) == COLUMNS and table.alpha.tolist() == [0, 1, 2.5]
    contexts = {"own": CONTEXTS}
    arms = make_arms(
        "expert_anti_expert",
        [0, 1, 2.5],
        contexts=contexts,
        profile="population",
        category="own",
        sampling=Sampling(temperature=0.0, top_p=1.0, repetition_penalty=1.0, max_new_tokens=8),
    )
    prompts = pd.DataFrame({"prompt_id": ["p"], "prompt": ["You"]})
    answers = decode(tiny, prompts, arms, contexts=contexts)
    assert table.text.tolist() == answers.text.tolist()
    assert_close(table.kl_per_token.to_numpy(), (answers.kl_to_base / answers.n_tokens).to_numpy())


def test_a_list_of_prompts_gives_a_row_per_prompt_and_alpha_in_the_order_given(tiny):
    table = steer(tiny, ["b", "a", "b"], anti="Be cruel:", alpha=[2, 0], **SHORT)
    assert list(table.columns) == ["prompt", *COLUMNS]
    assert table.prompt.tolist() == ["b", "b", "a", "a", "b", "b"]
    assert table.alpha.tolist() == [2, 0] * 3
    alone = steer(tiny, "a", anti="Be cruel:", alpha=2, **SHORT)
    assert alone.text.tolist() == [table.text[2]]


def test_the_costs_are_those_of_the_text_under_the_unsteered_model(tiny):
    table = steer(tiny, "You", **CONTEXTS, alpha=[0, 4], **SHORT)
    prompt = prompt_ids(tiny, "You", style="continuation")
    perplexities = []
    for text in table.text:
        ids = answer_ids(tiny, text, style="chat")
        perplexities.append(np.exp(answer_nll(tiny, prompt, ids) / len(ids)))
    np.testing.assert_allclose(table.perplexity, perplexities)
    np.testing.assert_allclose(table.perplexity_ratio, np.array(perplexities) / perplexities[0])
    assert table.kl_per_token[0] == 0 < table.kl_per_token[1]


def test_a_collapsed_or_empty_answer_is_flagged(tiny, monkeypatch):
    ratio = steer(tiny, "You", **CONTEXTS, alpha=[4], **SHORT).perplexity_ratio[0]
    for limit, flagged in ((ratio * 1.01, False), (ratio * 0.99, True)):
        monkeypatch.setattr("steerlib.decoding.steer.COLLAPSE_RATIO", limit)
        table = steer(tiny, "You", **CONTEXTS, alpha=4, **SHORT)
        assert table.collapsed.tolist() == [flagged]
    monkeypatch.setattr(type(tiny), "stop_ids", frozenset(range(2, 97)))
    table = steer(tiny, "You", **CONTEXTS, alpha=1)
    assert table.text.tolist() == [""] and table.perplexity.isna().all() and table.collapsed.all()


def test_one_kind_of_steering_must_be_named(tiny):
    for settings in ({}, {"expert": "Be kind:"}, {"anti": "x", "vector": {1: torch.ones(32)}}):
        with pytest.raises(ValueError, match="anti="):
            steer(tiny, "You", **settings)


def test_sampling_chat_and_a_scorer_are_settings_of_the_same_call(tiny):
    def scorer(texts):
        return pd.DataFrame({"toxicity": [len(text) / 100 for text in texts]}, index=range(5, 5 + len(texts)))

    settings = {"temperature": 1.0, "style": "chat", "scorer": scorer, **SHORT}
    first, again, other = (
        steer(tiny, "You", **CONTEXTS, alpha=[0, 1], seed=s, **settings) for s in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(first, again)
    assert first.toxicity.tolist() == [len(text) / 100 for text in first.text]
    assert first.text.tolist() != other.text.tolist()


def test_the_path_has_every_answer_of_the_grid(tiny):
    path = alpha_path(tiny, ["You", "It"], **CONTEXTS, alpha_max=3.0, **SHORT)
    assert list(path.columns) == ["prompt", "alpha_low", "alpha_high", "text", "perplexity", "complete"]
    alphas = [0.1, 0.9, 1.7, 2.6]
    grid = steer(tiny, ["You", "It"], **CONTEXTS, alpha=alphas, **SHORT)
    for row in grid.itertuples():
        at = segment_at(path, row.alpha, prompt=row.prompt)
        assert at.text == row.text
        assert at.perplexity == pytest.approx(row.perplexity)
    single = alpha_path(tiny, "You", anti="Be cruel:", alpha_max=1.0, **SHORT)
    assert single.alpha_low.iloc[0] == 0 and single.alpha_high.iloc[-1] == 1


def test_the_surface_is_imported_when_it_is_used_and_draws_nothing():
    code = (
        "import sys, steerlib; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules), 'import is not instant';"
        "from steerlib import steer, SteeringVector, alpha_path, load_model, load_scorer;"
        "heavy = {'matplotlib', 'seaborn', 'plotly', 'sklearn', 'ipywidgets', 'jupyter'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(steerlib.__all__) <= set(dir(steerlib))
    with pytest.raises(AttributeError, match="stear"):
        steerlib.stear  # noqa: B018
