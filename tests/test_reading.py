"""Token ids of prompts, conversations and answers; logits of many contexts at once."""

import dataclasses
import sys

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from steerlib import reading
from steerlib.decoding import Sampling, alpha_path, decode, make_arms
from steerlib.decoding.sampling import Pieces

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
HISTORY = '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]'
IS_SYSTEM = "messages[0]['role'] == 'system'"


def test_the_chat_template_is_rendered_once_without_a_second_opening_token(tiny):
    ids = reading.chat_ids(tiny, MESSAGES)
    assert tiny.tokenizer.decode(ids) == "<system>Be kind.\n<user>Hi\n<assistant>"


TEMPLATES = {
    "raises": f"{{% if {IS_SYSTEM} %}}{{{{ raise_exception('no system') }}}}{{% endif %}}",
    "drops it silently": f"{{% if {IS_SYSTEM} %}}{{% set messages = messages[1:] %}}{{% endif %}}",
}


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("user", ["Hi", "I said: Be kind. Hi"])
def test_a_template_without_system_role_gets_it_at_the_head_of_the_user_turn(tiny, monkeypatch, kind, user):
    monkeypatch.setattr(tiny.tokenizer, "chat_template", TEMPLATES[kind] + tiny.tokenizer.chat_template)
    turns = [MESSAGES[0], {"role": "user", "content": user}]
    assert tiny.tokenizer.decode(reading.chat_ids(tiny, turns)) == f"<user>Be kind.\n\n{user}\n<assistant>"
    ids = reading.prompt_ids(tiny, user, style="chat", context="Be kind.", history=HISTORY)
    expected = f"<user>Be kind.\n\nHi\n<assistant>Ho\n<user>{user}\n<assistant>"
    assert tiny.tokenizer.decode(ids) == expected


@pytest.mark.parametrize(
    ("template", "prompt", "style", "named"),
    [
        ("{{ messages[0]['content'] }}", "And you", "chat", "'tiny llama'.*'And you"),
        (None, "And you", "chat", "'tiny llama'.*style='continuation'"),
        (None, "Once", "letter", "'letter'"),
        (None, " \n", "continuation", "empty"),
    ],
)
def test_a_prompt_that_would_not_reach_the_model_as_meant_is_refused(
    tiny, monkeypatch, template, prompt, style, named
):
    monkeypatch.setattr(tiny.tokenizer, "chat_template", template)
    with pytest.raises(ValueError, match=named):
        reading.prompt_ids(tiny, prompt, style=style, context="Be kind.")


def test_a_model_that_can_think_first_is_told_not_to_unless_it_shall(tiny, monkeypatch):
    thinking = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    monkeypatch.setattr(tiny.tokenizer, "chat_template", tiny.tokenizer.chat_template + thinking)
    assert tiny.tokenizer.decode(reading.chat_ids(tiny, MESSAGES[1:])) == "<user>Hi\n<assistant>"
    thinker = dataclasses.replace(tiny, template_arguments={"enable_thinking": True})
    assert tiny.tokenizer.decode(reading.chat_ids(thinker, MESSAGES[1:])) == "<user>Hi\n<assistant><think>"


def test_a_continuation_reads_the_context_before_the_prompt_and_is_joined_unless_punctuation_opens_it(tiny):
    ids = reading.prompt_ids(tiny, "Once", style="continuation", context="Kind text:", history=HISTORY)
    assert tiny.tokenizer.decode(ids) == "Kind text:\n\nHi\n\nHo\n\nOnce"
    assert tiny.tokenizer.decode(reading.answer_ids(tiny, "upon", style="continuation")) == " upon"
    assert tiny.tokenizer.decode(reading.answer_ids(tiny, ", upon", style="continuation")) == ", upon"
    assert tiny.tokenizer.decode(reading.answer_ids(tiny, "upon", style="chat")) == "upon"


def test_a_history_that_is_no_list_of_turns_is_refused():
    turns = ['{"role": "system", "content": "x"}', '{"role": "user"}', '{"role": "user", "content": 1}', "1"]
    for text in ("nonsense", "{}", '["Hi"]', "[" * 100_000, *(f"[{turn}]" for turn in turns)):
        with pytest.raises(ValueError, match="history"):
            reading.read_history(text)


def test_an_answer_that_does_not_fit_is_refused_showing_both_lengths(tiny):
    reading.check_length(tiny, range(500), 12, what="it")
    with pytest.raises(ValueError, match=r"it: 500 .* 513.* 512"):
        reading.check_length(tiny, range(500), 13, what="it")


def test_last_logits_are_those_of_each_context_alone(tiny, monkeypatch):
    contexts = [[5, 6, 7, 8], [9], [10, 11]]
    monkeypatch.setattr(reading, "CPU_TOKENS", 4)
    found = reading.last_logits(tiny, contexts)
    for row, ids in zip(found, contexts, strict=True):
        assert_close(row, tiny.model(torch.tensor([ids])).logits[0, -1])


THOUGHTS = [
    ("Yes", "", 0),
    ("<think>hm</think>Yes", "", len("<think>hm</think>")),
    ("hm</think>Yes</thin", "<think>", len("hm</think>")),
    ("hm", "<think>\n", 2),
]


@pytest.mark.parametrize(("answer", "opening", "n"), THOUGHTS)
def test_thoughts_count_in_no_number_of_an_answer_by_decoding_or_along_a_path(
    tiny, monkeypatch, answer, opening, n
):
    monkeypatch.setattr(tiny.tokenizer, "chat_template", tiny.tokenizer.chat_template + opening)
    written = [*reading.answer_ids(tiny, answer, style="chat"), 0]

    def choose(z, *_):
        return torch.full((len(z),), next(step)), torch.ones(len(z))

    def envelope(_, low, high, **__):
        return Pieces(torch.arange(len(low)), low, high, torch.full((len(low),), next(step)))

    engines = [sys.modules[f"steerlib.decoding.{name}"] for name in ("decode", "alpha_path")]
    monkeypatch.setattr(engines[0], "choose", choose)
    monkeypatch.setattr(engines[1], "upper_envelope", envelope)
    prompts = pd.DataFrame({"prompt_id": ["p"], "prompt": ["Hi"], "category": ["insult"]})
    sampling = Sampling(0, max_new_tokens=40)
    arm = make_arms("anti_expert", [1.0], profile="own", style="chat", sampling=sampling)
    context = reading.prompt_ids(tiny, "Hi", style="chat")
    before, own = tuple(written[:n]), tuple(written[n:-1])
    for engine in (decode, alpha_path):
        step = iter(written)
        (row,) = engine(tiny, prompts, arm).to_dict("records")
        assert row["token_ids"] == written[:-1] and row["n_tokens"] == len(own)
        assert row["nll_base"] == pytest.approx(reading.answer_nll(tiny, context + before, own))
        assert reading.after_thinking(row["text"]) == tiny.tokenizer.decode(own)
        assert row["text"].startswith(opening.strip())
        if engine is decode:
            step = iter(written)
            monkeypatch.setattr(engines[0], "with_thoughts", lambda *_: ("", 0))
            whole = decode(tiny, prompts, arm).kl_to_base.item()
            assert 0 < row["kl_to_base"] <= whole and (row["kl_to_base"] == whole) == (n == 0)
