import pytest
import torch
from torch import nn
from torch.testing import assert_close

from steerlib.models import (
    answer_ids,
    chat_ids,
    decoder_blocks,
    last_logits,
    load_model,
    prompt_ids,
)

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]


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


def test_last_logits_are_those_of_each_context_alone(tiny):
    contexts = [[5, 6, 7, 8], [9], [10, 11]]
    found = last_logits(tiny, contexts, batch_tokens=8)
    for row, ids in zip(found, contexts, strict=True):
        assert_close(row, tiny.model(torch.tensor([ids])).logits[0, -1])


def test_blocks_that_are_not_found_are_an_error_naming_the_paths():
    with pytest.raises(ValueError, match=r"no decoder blocks in Linear; looked for model\.layers"):
        decoder_blocks(nn.Linear(2, 2))


def test_a_model_that_is_neither_here_nor_on_the_hub_is_one_clear_line(monkeypatch):
    def offline(*_, **__):
        raise OSError("We couldn't connect to the hub\nand a long explanation")

    monkeypatch.setattr("steerlib.models.AutoTokenizer.from_pretrained", offline)
    with pytest.raises(
        FileNotFoundError, match=r"'no/such' is neither a folder .*: We couldn't connect"
    ) as e:
        load_model("no/such")
    assert "\n" not in str(e.value)


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="dtype 'float7' is not a floating-point precision"):
        load_model(dtype="float7", device="cpu")


def test_the_embedded_model_is_named_for_what_runs_and_knows_the_capital_of_france():
    frozen = load_model(device="cpu")
    assert frozen.name == "SmolLM2-135M-Instruct (Q4_1, dequantised)"
    assert (frozen.n_layers, frozen.d_model, frozen.max_length) == (30, 576, 8192)
    assert not any(weight.requires_grad for weight in frozen.model.parameters())
    ids = prompt_ids(frozen, "The capital of France is", style="continuation")
    assert frozen.tokenizer.decode(last_logits(frozen, [ids])[0].argmax()) == " Paris"
