import pytest

from steerlib.reading import answer_ids, chat_ids, prompt_ids, read_history

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
HISTORY = '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]'


def test_the_chat_template_is_rendered_once_without_a_second_opening_token(tiny):
    assert tiny.tokenizer.decode(chat_ids(tiny, MESSAGES)) == "<system>Be kind.\n<user>Hi\n<assistant>"


def test_a_template_without_system_role_gets_it_at_the_head_of_the_user_turn(tiny, monkeypatch):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    monkeypatch.setattr(tiny.tokenizer, "chat_template", refusing + tiny.tokenizer.chat_template)
    assert tiny.tokenizer.decode(chat_ids(tiny, MESSAGES)) == "<user>Be kind.\n\nHi\n<assistant>"


def test_a_model_without_a_chat_template_is_refused_with_the_way_out(tiny, monkeypatch):
    monkeypatch.setattr(tiny.tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match="'tiny llama' has no chat template; use style='continuation'"):
        chat_ids(tiny, MESSAGES)


def test_a_continuation_reads_the_context_before_the_prompt(tiny):
    ids = prompt_ids(tiny, "Once", style="continuation", context="Kind text:")
    assert tiny.tokenizer.decode(ids) == "Kind text:\n\nOnce"
    with pytest.raises(ValueError, match="style 'letter' is neither"):
        prompt_ids(tiny, "Once", style="letter")


def test_a_continuation_is_joined_by_a_space_unless_punctuation_opens_it(tiny):
    assert tiny.tokenizer.decode(answer_ids(tiny, "upon", style="continuation")) == " upon"
    assert tiny.tokenizer.decode(answer_ids(tiny, ", upon", style="continuation")) == ", upon"
    assert tiny.tokenizer.decode(answer_ids(tiny, "upon", style="chat")) == "upon"


def test_earlier_turns_stand_between_context_and_prompt(tiny):
    turns = read_history(HISTORY)
    chat = prompt_ids(tiny, "And?", style="chat", context="Be kind.", history=turns)
    assert tiny.tokenizer.decode(chat) == "<system>Be kind.\n<user>Hi\n<assistant>Ho\n<user>And?\n<assistant>"
    plain = prompt_ids(tiny, "And?", style="continuation", context="Be kind.", history=turns)
    assert tiny.tokenizer.decode(plain) == "Be kind.\n\nHi\n\nHo\n\nAnd?"
    assert prompt_ids(tiny, "And?", style="chat", history=read_history("")) == prompt_ids(
        tiny, "And?", style="chat"
    )


@pytest.mark.parametrize("text", ["nonsense", "{}", '["Hi"]', '[{"role": "system", "content": "x"}]', "[1]"])
def test_a_history_that_is_no_list_of_turns_is_refused(text):
    with pytest.raises(ValueError, match="history must be a JSON list of turns"):
        read_history(text)
