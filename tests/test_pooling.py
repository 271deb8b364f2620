import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from steerlib.models import FrozenModel
from steerlib.reading import answer_ids, prompt_ids
from steerlib.residual import pooled_spans, record_residual


def with_words(tiny, words):
    """The tiny model with a tokenizer whose tokens are whole words."""
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return FrozenModel(tiny.model, PreTrainedTokenizerFast(tokenizer_object=raw), "words")


def test_the_letter_of_an_answer_is_read_and_not_its_brackets(tiny):
    prompt = prompt_ids(tiny, "Is it? (A) Yes (B) No", style="continuation")
    ids = prompt + answer_ids(tiny, "(B)", style="continuation")
    settings = {"layers": [1], "prompt_lengths": [len(prompt)]}
    letter = record_residual(tiny, [ids], pool="answer_letter", **settings)[1][0]
    hidden = tiny.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
    assert tiny.tokenizer.decode([ids[-2]]) == "B"
    assert_close(letter, hidden[-2])
    assert not torch.allclose(letter, hidden[-1])


@pytest.mark.parametrize(
    ("tokens", "place"),
    [(["(", "A", ")"], 1), (["(A", ")"], 0), (["(", "A)"], 1), (["(A)"], 0), (["A"], 0)],
)
def test_the_letter_is_found_however_a_tokenizer_cuts_the_brackets(tiny, tokens, place):
    frozen = with_words(tiny, ["word", *tokens])
    ids = [0, 0, *range(1, len(tokens) + 1)]
    assert pooled_spans(frozen, [ids], [2], "answer_letter") == [range(2 + place, 3 + place)]


def test_letters_of_a_padded_batch_are_those_read_alone(tiny):
    prompts = [prompt_ids(tiny, text, style="continuation") for text in ("Long question? ", "Q? ")]
    contexts = [p + answer_ids(tiny, a, style="continuation") for p, a in zip(prompts, "AB", strict=True)]
    lengths = [len(p) for p in prompts]
    together = record_residual(tiny, contexts, layers=[2], prompt_lengths=lengths, pool="answer_letter")[2]
    for row in (0, 1):
        settings = {"layers": [2], "prompt_lengths": lengths[row : row + 1], "pool": "answer_letter"}
        assert_close(together[row], record_residual(tiny, contexts[row : row + 1], **settings)[2][0])


@pytest.mark.parametrize("answer", ["Sure, here you are", "(a)", "42", "(AB)", "(A) Yes"])
def test_an_answer_in_free_text_has_no_letter_and_is_refused(tiny, answer):
    prompt = prompt_ids(tiny, "Well?", style="continuation")
    contexts = [prompt + answer_ids(tiny, one, style="continuation") for one in ("(A)", answer)]
    with pytest.raises(ValueError, match="sequence 1: pool 'answer_letter' reads an answer such as"):
        record_residual(tiny, contexts, layers=[1], prompt_lengths=[len(prompt)] * 2, pool="answer_letter")


def test_an_unknown_pooling_is_refused_naming_those_there_are(tiny):
    with pytest.raises(
        ValueError, match="pool 'mean' is none of answer_mean, last, prompt_last, answer_letter"
    ):
        record_residual(tiny, [[5, 6]], layers=[1], prompt_lengths=[1], pool="mean")


def test_each_pooling_reads_its_own_positions(tiny):
    ids = [5, 6, 7, 8, 9]
    spans = {pool: pooled_spans(tiny, [ids], [3], pool)[0] for pool in ("answer_mean", "last", "prompt_last")}
    assert {pool: list(span) for pool, span in spans.items()} == {
        "answer_mean": [3, 4],
        "last": [4],
        "prompt_last": [2],
    }
