"""Token ids of prompts, conversations and answers; logits of many contexts at once."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from steerlib.reading import (
    answer_ids,
    chat_ids,
    check_length,
    last_logits,
    prompt_ids,
    read_history,
)

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
HISTORY = '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]'
IS_SYSTEM = "messages[0]['role'] == 'system'"


def test_the_chat_template_is_rendered_once_without_a_second_opening_token(tiny):
    assert tiny.tokenizer.decode(chat_ids(tiny, MESSAGES)) == "<system>Be kind.\n<user>Hi\n<assistant>"


TEMPLATES = {
    "raises": f"{{% if {IS_SYSTEM} %}}{{{{ raise_exception('no system') }}}}{{% endif %}}",
    "drops it silently": f"{{% if {IS_SYSTEM} %}}{{% set messages = messages[1:] %}}{{% endif %}}",
}


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("user", ["Hi", "I said: Be kind. Hi"])
def test_a_template_without_system_role_gets_it_at_the_head_of_the_user_turn(tiny, monkeypatch, kind, user):
    monkeypatch.setattr(tiny.tokenizer, "chat_template", TEMPLATES[kind] + tiny.tokenizer.chat_template)
    turns = [MESSAGES[0], {"role": "user", "content": user}]
    assert tiny.tokenizer.decode(chat_ids(tiny, turns)) == f"<user>Be kind.\n\n{user}\n<assistant>"
    turns = read_history(HISTORY)
    ids = prompt_ids(tiny, user, style="chat", context="Be kind.", history=turns)
    expected = f"<user>Be kind.\n\nHi\n<assistant>Ho\n<user>{user}\n<assistant>"
    assert tiny.tokenizer.decode(ids) == expected


@pytest.mark.parametrize(
    ("template", "named"), [("{{ messages[0]['content'] }}", "'And you"), (None, "style='continuation'")]
)
def test_no_template_or_one_that_drops_the_prompt_is_refused(tiny, monkeypatch, template, named):
    monkeypatch.setattr(tiny.tokenizer, "chat_template", template)
    with pytest.raises(ValueError, match=f"'tiny llama'.*{named}"):
        prompt_ids(tiny, "And you", style="chat", context="Be kind.")


def test_a_model_that_can_think_first_is_told_not_to_unless_it_shall(tiny, monkeypatch):
    thinking = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    monkeypatch.setattr(tiny.tokenizer, "chat_template", tiny.tokenizer.chat_template + thinking)
    assert tiny.tokenizer.decode(chat_ids(tiny, MESSAGES[1:])) == "<user>Hi\n<assistant>"
    thinker = dataclasses.replace(tiny, template_arguments={"enable_thinking": True})
    assert tiny.tokenizer.decode(chat_ids(thinker, MESSAGES[1:])) == "<user>Hi\n<assistant><think>"


def test_a_continuation_reads_the_context_before_the_prompt(tiny):
    ids = prompt_ids(tiny, "Once", style="continuation", context="Kind text:", history=read_history(HISTORY))
    assert tiny.tokenizer.decode(ids) == "Kind text:\n\nHi\n\nHo\n\nOnce"


def test_a_continuation_is_joined_by_a_space_unless_punctuation_opens_it(tiny):
    assert tiny.tokenizer.decode(answer_ids(tiny, "upon", style="continuation")) == " upon"
    assert tiny.tokenizer.decode(answer_ids(tiny, ", upon", style="continuation")) == ", upon"
    assert tiny.tokenizer.decode(answer_ids(tiny, "upon", style="chat")) == "upon"


@pytest.mark.parametrize(
    ("prompt", "style", "named"),
    [("Once", "letter", "'letter'"), ("", "chat", "empty"), (" \n", "continuation", "empty")],
)
def test_an_unknown_style_or_an_empty_prompt_is_refused(tiny, prompt, style, named):
    with pytest.raises(ValueError, match=named):
        prompt_ids(tiny, prompt, style=style)


def test_a_history_that_is_no_list_of_turns_is_refused():
    turns = ['{"role": "system", "content": "x"}', '{"role": "user"}', '{"role": "user", "content": 1}', "1"]
    for text in ("nonsense", "{}", '["Hi"]', "[" * 100_000, *(f"[{turn}]" for turn in turns)):
        with pytest.raises(ValueError, match="history"):
            read_history(text)


def test_an_answer_that_does_not_fit_is_refused_showing_both_lengths(tiny):
    check_length(tiny, range(500), 12, what="it")
    with pytest.raises(ValueError, match=r"it: 500 .* 513.* 512"):
        check_length(tiny, range(500), 13, what="it")


def test_last_logits_are_those_of_each_context_alone(tiny):
    contexts = [[5, 6, 7, 8], [9], [10, 11]]
    found = last_logits(tiny, contexts, batch_tokens=8)
    for row, ids in zip(found, contexts, strict=True):
        assert_close(row, tiny.model(torch.tensor([ids])).logits[0, -1])
