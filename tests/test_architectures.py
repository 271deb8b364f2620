"""Every architecture that steering works on, as a tiny random model; what a model needs, and where its weights lie.

The list of docs/engine.md is `ARCHITECTURES`: `python tests/test_architectures.py` prints it.
"""

import re

import pandas as pd
import pytest
import torch
import transformers
from reference import reference_answer, segment_at
from test_decoding import GREEDY, PROMPTS, SIGNALS, VECTORS, answers, grid
from tiny import ARCHITECTURES, GROUPED, VOCAB, architecture, tiny_model
from torch.testing import assert_close

from steerlib import models
from steerlib.__main__ import main
from steerlib.decoding import alpha_path, decode, make_arms
from steerlib.decoding.requests import make_requests
from steerlib.models import check_architecture, load_model, needs
from steerlib.reading import prompt_ids
from steerlib.residual import add_to_residual, record_residual
from steerlib.tables import ROOT

LISTED = f"{', '.join(ARCHITECTURES)}."

every = pytest.mark.parametrize("name", ARCHITECTURES)


def some_arms() -> pd.DataFrame:
    """Logit rules, vectors and both at once, sampled in a continuation and greedy in the chat template."""
    return pd.concat([grid().iloc[[12, 23]], grid(GREEDY, "chat").iloc[[6, 11, 15, 22]]], ignore_index=True)


@every
def test_an_architecture_decodes_as_the_plain_decoder_does(name):
    frozen, arms, prompts = architecture(name), some_arms(), PROMPTS.iloc[[1]]
    check_architecture(frozen.model.config, name)
    found = answers(decode(frozen, prompts, arms, **SIGNALS))
    requests = make_requests(frozen, prompts, arms, seeds=[0], **SIGNALS)
    assert len(found) == len(requests)
    for request in requests:
        expected = reference_answer(frozen, request, VECTORS)
        assert found[request.arm_id, request.prompt_id, request.seed] == tuple(expected), request


@every
def test_the_residual_is_recorded_where_it_is_added(name):
    frozen = architecture(name)
    ids = [prompt_ids(frozen, text, style="chat") for text in ("Hm, a longer one", "Yes")]
    settings = {"layers": [0, 1], "prompt_lengths": [len(one) - 1 for one in ids], "pool": "last"}
    plain = record_residual(frozen, ids, **settings)
    states = frozen.model(torch.tensor(ids[1:]), output_hidden_states=True).hidden_states
    exact = {"rtol": 1e-5, "atol": 1e-5 if frozen.dtype == torch.float32 else 1e-9, "check_dtype": False}
    assert_close(plain[0][1], states[1][0, -1], **exact)
    vector = torch.linspace(-2, 1, 32, dtype=torch.float64)
    with add_to_residual(frozen.model, {1: vector}, alpha=0.5):
        steered = record_residual(frozen, ids, **settings)
    assert_close(steered[0], plain[0], **exact)
    assert_close(steered[1], plain[1] + 0.5 * vector, **exact)


@every
def test_an_alpha_path_has_the_answers_of_plain_decoding(name):
    frozen, prompts = architecture(name), PROMPTS.iloc[:1]
    settings = {"profile": "own", "sampling": GREEDY}
    path = alpha_path(frozen, prompts, make_arms("expert_anti_expert", [20.0], **settings))
    assert len(path) > 1
    arms = make_arms("expert_anti_expert", [0.0, 1.3, 6.0, 20.0], **settings)
    for arm, row in zip(arms.itertuples(), decode(frozen, prompts, arms).itertuples(), strict=True):
        assert row.token_ids == segment_at(path, arm.alpha).token_ids


def test_the_documented_list_is_that_of_these_tests():
    text = " ".join((ROOT / "docs" / "engine.md").read_text(encoding="utf-8").split())
    assert LISTED in text


def test_what_a_model_needs_is_counted_without_its_weights():
    config = transformers.LlamaConfig(**GROUPED)
    found = needs(config, torch.bfloat16)
    weights = sum(weight.numel() for weight in tiny_model(config).model.parameters())
    # 3 layers, keys and values, 2 heads of width 8, 2 bytes, 1,024 tokens; six copies of a row's logits in float32
    row = 3 * 2 * 2 * 8 * 2 * 1024 + 6 * 4 * VOCAB
    assert (found.parameters, found.weights, found.row) == (weights, 2 * weights, row)
    assert (found.rows(2 * weights + 7 * row), found.rows(weights)) == (3, 0)


def test_the_check_of_a_params_file_says_what_its_model_needs_and_how_long_its_answers_take(saved, capsys):
    assert main(["check", str(ROOT / "params" / "quick.yaml"), "--model", saved]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"0\.0B parameters, .* [\d,]+ answers about [\de.-]+ s on .*, at \d+ tokens", said)


def test_a_model_that_accelerate_keeps_on_disk_in_part_gives_the_same_answers(
    tiny, saved, monkeypatch, tmp_path
):
    placed = {f"model.layers.{i}": "disk" if i in (1, 2) else "cpu" for i in range(4)} | {"lm_head": "disk"}
    placed |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb"), "cpu")
    pretrained = models.pretrained

    def spread(kind, name, **settings):
        settings |= {"device_map": placed} if "device_map" in settings else {}
        return pretrained(kind, name, **settings)

    monkeypatch.setattr(models, "pretrained", spread)
    monkeypatch.setenv("STEERLIB_CACHE", str(tmp_path))
    frozen = load_model(saved, device="auto", dtype="float64")
    frozen.model.generation_config.eos_token_id = 0
    assert frozen.device.type == "cpu"
    assert {weight.device.type for weight in frozen.model.parameters()} >= {"meta"}
    found, expected = (decode(one, PROMPTS, grid()[::2], **SIGNALS) for one in (frozen, tiny))
    assert answers(found) == answers(expected)


def test_quantised_weights_are_refused_without_a_gpu(saved, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for dtype in ("4bit", "8bit"):
        with pytest.raises(ValueError, match=f"{dtype}.*GPU"):
            load_model(saved, dtype=dtype)


def test_a_gated_model_names_its_licence_and_the_token(monkeypatch):
    def gated(*_, **__):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", gated)
    with pytest.raises(FileNotFoundError, match=r"https://huggingface.co/meta/llama .*HF_TOKEN.*\Z"):
        load_model("meta/llama", device="cpu")


if __name__ == "__main__":
    print(LISTED)
