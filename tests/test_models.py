import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from steerlib.models import FrozenModel, decoder_blocks, load_model
from steerlib.reading import last_logits, prompt_ids

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


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


@pytest.fixture
def saved(tiny: FrozenModel, tmp_path: Path) -> str:
    """Folder of the tiny model."""
    folder = str(tmp_path / "base")
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


def lora(saved: str, folder: Path) -> dict[str, torch.Tensor]:
    """Write a random LoRA adapter of the first block's query; its A and B."""
    from peft import LoraConfig, get_peft_model

    model = load_model(saved, device="cpu", dtype="float64").model
    settings = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], layers_to_transform=[0])
    wrapped = get_peft_model(model, settings)
    torch.manual_seed(1)
    factors = {}
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            weight.data.normal_()
            factors["A" if "lora_A" in name else "B"] = weight.detach().clone()
    wrapped.save_pretrained(str(folder))
    return factors


@needs_peft
def test_an_adapter_folder_is_its_base_with_the_change_merged_in(saved, tiny, tmp_path):
    factors = lora(saved, tmp_path / "adapter")
    frozen = load_model(str(tmp_path / "adapter"), device="cpu", dtype="float64")
    # W + (lora_alpha / r) B A
    before = tiny.blocks[0].self_attn.q_proj.weight
    expected = before + 3 * (factors["B"] @ factors["A"]).double()
    assert_close(frozen.blocks[0].self_attn.q_proj.weight, expected, rtol=1e-5, atol=1e-5)
    assert_close(frozen.blocks[1].self_attn.q_proj.weight, tiny.blocks[1].self_attn.q_proj.weight)
    assert not any("lora" in name or weight.requires_grad for name, weight in frozen.model.named_parameters())
    assert frozen.tokenizer.get_vocab() == tiny.tokenizer.get_vocab()


@needs_peft
def test_an_adapter_is_a_branch_model(saved, tiny, tmp_path):
    from steerlib.decoding import Sampling, decode, make_arms

    lora(saved, tmp_path / "adapter")
    anti = load_model(str(tmp_path / "adapter"), device="cpu", dtype="float64")
    settings = Sampling(temperature=0, max_new_tokens=8)
    arms = make_arms("anti_expert", [0, 2.0], branches={"anti": anti.name}, sampling=settings)
    prompts = pd.DataFrame({"prompt_id": ["p"], "prompt": ["Once upon"], "category": ["insult"]})
    table = decode(tiny, prompts, arms, branch_models={"anti": anti})
    assert table.kl_to_base[0] == pytest.approx(0, abs=1e-9)
    assert table.kl_to_base[1] > 0.01


@needs_peft
def test_an_adapter_takes_another_base_where_one_is_given(saved, tmp_path):
    folder = tmp_path / "adapter"
    lora(saved, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="names no base model: give it as base"):
        load_model(str(folder), device="cpu")
    assert load_model(str(folder), device="cpu", base=saved).n_layers == 4


@needs_peft
def test_an_adapter_in_a_pickle_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no adapter_model.safetensors; weights in a pickle are not"):
        load_model(str(tmp_path), device="cpu")


def test_an_adapter_without_peft_is_one_line_that_names_the_package(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setattr("steerlib.models.find_spec", lambda name: None)  # noqa: ARG005
    with pytest.raises(
        ImportError, match="is a PEFT adapter, which needs one more package: pip install peft"
    ):
        load_model(str(tmp_path), device="cpu")


def test_a_base_for_what_is_no_adapter_is_refused(saved):
    with pytest.raises(
        ValueError, match=r"base 'embedded' goes with an adapter folder; .* has no adapter_config"
    ):
        load_model(saved, device="cpu", base="embedded")
