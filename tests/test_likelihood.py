"""Likelihood of given answers: against one answer read by itself, and against what the engine says of its own."""

import pandas as pd
import pytest
import torch
from tiny import tiny_model
from transformers import GPT2Config

from steerlib.decoding import Sampling, decode, make_arms
from steerlib.evaluation import answer_likelihood
from steerlib.reading import prompt_ids
from steerlib.tables import check_table

PROMPTS = pd.DataFrame({"prompt_id": ["p0", "p1"], "prompt": ["Tell me", "The weather in October is"]})
TEXTS = [" a story.", "", " never\nas bad as it was in the spring of that year", "x", " a story."]
GENERATIONS = pd.DataFrame(
    {
        "arm_id": ["base", "base", "arm", "arm", "other"],
        "prompt_id": ["p0", "p1", "p1", "p0", "p0"],
        "seed": 0,
        "text": TEXTS,
    }
)


def plain_nll(frozen, prompt, text, style):
    """One answer, one token at a time."""
    before = list(prompt_ids(frozen, prompt, style=style))
    total = 0.0
    for token in frozen.tokenizer(text, add_special_tokens=False).input_ids:
        total -= float(frozen.model(torch.tensor([before])).logits[0, -1].log_softmax(-1)[token])
        before.append(token)
    return total


@pytest.mark.parametrize("style", ["chat", "continuation"])
@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_batched_likelihood_equals_one_token_at_a_time(tiny, style, batch_tokens):
    found = answer_likelihood(tiny, PROMPTS, GENERATIONS, style=style, batch_tokens=batch_tokens)
    check_table("fluency", found)
    prompts = PROMPTS.set_index("prompt_id")["prompt"]
    for row, given in zip(found.itertuples(), GENERATIONS.itertuples(), strict=True):
        expected = plain_nll(tiny, prompts[given.prompt_id], given.text, style)
        assert row.nll == pytest.approx(expected, abs=1e-9)
        assert row.n_tokens == len(given.text)
    assert found["scorer_model"].unique().tolist() == ["tiny llama"]
    assert (found["arm_id"] == GENERATIONS["arm_id"]).all()


def test_the_model_that_wrote_an_answer_finds_the_likelihood_that_decoding_recorded(tiny):
    prompts = PROMPTS.assign(category="insult")
    arms = pd.concat(
        [
            make_arms("base", sampling=Sampling(max_new_tokens=12)),
            make_arms("anti_expert", [1.5], profile="own", sampling=Sampling(max_new_tokens=12)),
        ]
    )
    generations = decode(tiny, prompts, arms, seeds=(0, 1))
    found = answer_likelihood(tiny, prompts, generations, style="continuation")
    again = [
        list(ids) == tiny.tokenizer(text, add_special_tokens=False).input_ids
        for ids, text in zip(generations["token_ids"], generations["text"], strict=True)
    ]
    assert sum(again) >= 4
    assert found["nll"][again].tolist() == pytest.approx(generations["nll_base"][again].tolist(), abs=1e-9)
    assert found["n_tokens"][again].tolist() == generations["n_tokens"][again].tolist()


def test_another_model_judges_differently_and_is_named(tiny):
    other = tiny_model(GPT2Config(vocab_size=98, n_embd=32, n_layer=2, n_head=2, n_positions=128))
    found = answer_likelihood(other, PROMPTS, GENERATIONS, style="continuation")
    own = answer_likelihood(tiny, PROMPTS, GENERATIONS, style="continuation")
    assert set(found["scorer_model"]) == {"tiny gpt2"}
    assert abs(found["nll"] - own["nll"]).iloc[0] > 0.1
    check_table("fluency", pd.concat([found, own]))


def test_an_unknown_prompt_or_an_answer_too_long_is_refused(tiny):
    with pytest.raises(ValueError, match="prompt 'p1' of the generations is not in the prompts"):
        answer_likelihood(tiny, PROMPTS.head(1), GENERATIONS, style="continuation")
    long = GENERATIONS.assign(text="x" * 600)
    with pytest.raises(ValueError, match="answer to prompt p0: 7 context tokens and 600 new ones"):
        answer_likelihood(tiny, PROMPTS, long, style="continuation")
