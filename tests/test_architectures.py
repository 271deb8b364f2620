"""Every architecture that steering works on, as a tiny random model; what a model needs, and where its weights lie.

The list of docs/engine.md is `ARCHITECTURES`: `python tests/test_architectures.py` prints it.
"""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from reference import reference_answer
from test_decoding import GREEDY, PROMPTS, SIGNALS, VECTORS, answers, grid
from tiny import ALPHABET, tiny_llama, tiny_model
from torch.testing import assert_close

from steerlib import models
from steerlib.__main__ import main
from steerlib.decoding import alpha_path, decode, make_arms
from steerlib.decoding.requests import make_requests
from steerlib.models import FrozenModel, check_architecture, load_model, needs, row_size
from steerlib.reading import prompt_ids
from steerlib.residual import add_to_residual, record_residual
from steerlib.tables import ROOT

VOCAB = len(ALPHABET) + 2
PLAIN = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
WIDE = PLAIN | {"intermediate_size": 48, "max_position_embeddings": 512}
GROUPED = WIDE | {"num_key_value_heads": 2}
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3 = {"rope_parameters": ROPE | {"original_max_position_embeddings": 64, "rope_theta": 500000.0}}
ARCHITECTURES: dict[str, tuple[str, dict]] = {
    "Llama 2": ("Llama", WIDE),
    "Llama 3": ("Llama", GROUPED | LLAMA_3),
    "Qwen 2 and 2.5": ("Qwen2", GROUPED),
    "Qwen 3": ("Qwen3", GROUPED | {"head_dim": 8}),
    "Qwen 3 MoE": (
        "Qwen3Moe",
        GROUPED | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "Gemma": ("Gemma", GROUPED | {"head_dim": 8}),
    "Gemma 2": ("Gemma2", GROUPED | {"head_dim": 8, "sliding_window": 40}),
    "Gemma 3": ("Gemma3Text", GROUPED | {"head_dim": 8, "sliding_window": 40}),
    "Mistral": ("Mistral", GROUPED | {"sliding_window": 40}),
    "Ministral": ("Ministral", GROUPED | {"head_dim": 8, "sliding_window": 40}),
    "Mixtral": ("Mixtral", GROUPED | {"num_local_experts": 4}),
    "Phi 2": ("Phi", WIDE),
    "Phi 3 and 4": ("Phi3", GROUPED | {"pad_token_id": 0}),
    "OLMo": ("Olmo", GROUPED),
    "OLMo 2": ("Olmo2", GROUPED),
    "SmolLM 3": ("SmolLM3", GROUPED | {"pad_token_id": 0}),
    "Granite": ("Granite", GROUPED | {"residual_multiplier": 0.5}),
    "Cohere": ("Cohere", GROUPED),
    "GLM 4": ("Glm4", GROUPED | {"head_dim": 8, "pad_token_id": 0}),
    "StarCoder 2": ("Starcoder2", GROUPED),
    "GPT-2": ("GPT2", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}),
    "GPT-J": ("GPTJ", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4}),
    "GPT-NeoX (Pythia)": ("GPTNeoX", WIDE),
    "Falcon": ("Falcon", PLAIN | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "StableLM": ("StableLm", GROUPED),
}
LISTED = f"{', '.join(ARCHITECTURES)}."

every = pytest.mark.parametrize("name", ARCHITECTURES)


@pytest.fixture(scope="module")
def made():
    """`made(name)`: the tiny model of an architecture, each made once."""
    known: dict[str, FrozenModel] = {}

    def make(name: str) -> FrozenModel:
        if name not in known:
            kind, settings = ARCHITECTURES[name]
            config = getattr(transformers, f"{kind}Config")(**settings)
            config._experts_implementation = "eager"  # the grouped product has no float64
            # With softcaps attention is computed plainly, and transformers' padding is not finite in float64.
            known[name] = tiny_model(config, dtype=torch.float32 if name == "Gemma 2" else torch.float64)
        return known[name]

    return make


def some_arms() -> pd.DataFrame:
    """Logit rules, vectors and both at once, sampled in a continuation and greedy in the chat template."""
    return pd.concat([grid()[2::5], grid(GREEDY, "chat")[1::5]], ignore_index=True)


@every
def test_an_architecture_decodes_as_the_plain_decoder_does(made, name):
    frozen, arms, prompts = made(name), some_arms(), PROMPTS.iloc[[1]]
    check_architecture(frozen.model.config, name)
    found = answers(decode(frozen, prompts, arms, **SIGNALS))
    requests = make_requests(frozen, prompts, arms, seeds=[0], **SIGNALS)
    assert len(found) == len(requests)
    for request in requests:
        expected = reference_answer(frozen, request, VECTORS)
        assert found[request.arm_id, request.prompt_id, request.seed] == tuple(expected), request


@every
def test_the_residual_is_recorded_where_it_is_added(made, name):
    frozen = made(name)
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
def test_an_alpha_path_has_the_answers_of_plain_decoding(made, name):
    frozen, prompts = made(name), PROMPTS.iloc[:1]
    settings = {"profile": "own", "sampling": GREEDY}
    path = alpha_path(frozen, prompts, make_arms("expert_anti_expert", [20.0], **settings))
    assert len(path) > 1
    arms = make_arms("expert_anti_expert", [0.0, 1.3, 6.0, 20.0], **settings)
    for arm, row in zip(arms.itertuples(), decode(frozen, prompts, arms).itertuples(), strict=True):
        segment = path[(path.alpha_low <= arm.alpha) & (arm.alpha <= path.alpha_high)].iloc[-1]
        assert row.token_ids == segment.token_ids


def test_the_documented_list_is_that_of_these_tests():
    text = " ".join((ROOT / "docs" / "engine.md").read_text(encoding="utf-8").split())
    assert LISTED in text


# --- memory -------------------------------------------------------------------------------------------------


def test_what_a_model_needs_is_counted_without_its_weights():
    config = transformers.LlamaConfig(**GROUPED)
    found = needs(config, torch.bfloat16, tokens=10)
    weights = sum(weight.numel() for weight in tiny_model(config).model.parameters())
    # 3 layers, keys and values, 2 heads of width 8, 2 bytes, 10 tokens; six copies of a row's logits in float32
    row = 3 * 2 * 2 * 8 * 2 * 10 + 6 * 4 * VOCAB
    assert (found.parameters, found.weights, found.row) == (weights, 2 * weights, row)
    assert row_size(config, torch.bfloat16, 10) == row
    assert (found.rows(2 * weights + 7 * row), found.rows(weights)) == (3, 0)


def test_a_large_model_is_announced_before_it_is_loaded(saved, monkeypatch, capsys):
    load_model(saved, device="cpu")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(models, "LARGE", 0)
    load_model(saved, device="cpu")
    assert f"{saved}: 0.0B parameters" in capsys.readouterr().out


def test_the_check_of_a_params_file_says_what_its_model_needs_and_how_long_its_answers_take(saved, capsys):
    assert main(["check", str(ROOT / "params" / "quick.yaml"), "--model", saved]) == 0
    assert re.search(
        r"0\.0B parameters, .* [\d,]+ answers about [\de.-]+ s on .*, at \d+ tokens", flat(capsys)
    )


def flat(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture
def saved(tiny: FrozenModel, tmp_path: Path) -> str:
    """Folder of the tiny model."""
    tiny.model.save_pretrained(tmp_path / "saved")
    tiny.tokenizer.save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")


LAYERS = {f"model.layers.{i}": "disk" if i in (1, 2) else "cpu" for i in range(4)}
PART = (
    LAYERS
    | dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb"), "cpu")
    | {"lm_head": "disk"}
)


@pytest.mark.parametrize("placed", [PART, {"": "disk"}], ids=["part on disk", "all on disk"])
def test_a_model_that_accelerate_keeps_on_disk_gives_the_same_answers(
    tiny, saved, placed, monkeypatch, tmp_path
):
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
    assert answers(decode(frozen, PROMPTS, grid(), **SIGNALS)) == answers(
        decode(tiny, PROMPTS, grid(), **SIGNALS)
    )


def test_a_model_offloaded_to_the_cpu_gives_the_same_answers(tiny):
    from accelerate import cpu_offload

    other = tiny_llama()
    cpu_offload(other.model, execution_device="cpu")
    assert answers(decode(other, PROMPTS, grid(), **SIGNALS)) == answers(
        decode(tiny, PROMPTS, grid(), **SIGNALS)
    )


@pytest.mark.parametrize("dtype", ["4bit", "8bit"])
def test_quantised_weights_are_refused_without_a_gpu(saved, dtype, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=f"{dtype}.*GPU") as failure:
        load_model(saved, dtype=dtype)
    assert "\n" not in str(failure.value)


def test_a_gated_model_names_its_licence_and_the_token(monkeypatch):
    def gated(*_, **__):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", gated)
    with pytest.raises(FileNotFoundError, match=r"https://huggingface.co/meta/llama .*HF_TOKEN") as failure:
        load_model("meta/llama", device="cpu")
    assert "\n" not in str(failure.value)


if __name__ == "__main__":
    print(LISTED)
