"""Loading a model, what is refused at once, adapters, and the packed linear layers."""

import importlib.util
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import tiny_llama
from torch import nn
from torch.testing import assert_close

from steerlib import embedded
from steerlib.models import PackedLinear, can_pack, decoder_blocks, hub_answers, load_model, pack_linears
from steerlib.reading import last_logits, prompt_ids

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


def test_the_embedded_model_is_named_for_what_runs_and_knows_the_capital_of_france():
    frozen = load_model(device="cpu")
    assert frozen.name == "SmolLM2-135M-Instruct (Q4_1, dequantised)"
    assert (frozen.n_layers, frozen.d_model, frozen.max_length) == (30, 576, 8192)
    assert not any(weight.requires_grad for weight in frozen.model.parameters())
    ids = prompt_ids(frozen, "The capital of France is", style="continuation")
    assert frozen.tokenizer.decode(last_logits(frozen, [ids])[0].argmax()) == " Paris"
    pieces = ["ĊĊ", "1", ".", "Ġin", "Ġ", "2", "0", "2", "4"]  # each digit by itself, as llama.cpp does
    assert frozen.tokenizer.tokenize("\n\n1. in 2024") == pieces


def test_a_damaged_copy_of_the_embedded_model_is_not_taken(tmp_path):
    file, sums = tmp_path / "config.json", tmp_path / embedded.SUMS
    file.write_text("{}")
    sums.write_text(json.dumps({file.name: embedded._sha256(file)}))
    assert embedded._intact(tmp_path)
    for damage in (lambda: file.write_text("[}"), file.unlink, sums.unlink):
        damage()
        assert not embedded._intact(tmp_path)


def test_blocks_that_are_not_found_are_an_error_naming_the_paths():
    with pytest.raises(ValueError, match=r"Linear; looked for model\.layers"):
        decoder_blocks(nn.Linear(2, 2))


def test_without_a_network_the_hub_is_asked_once_and_the_error_is_one_line(monkeypatch):
    asked = []

    class Session:
        def head(self, url: str, **_: object) -> None:
            asked.append(url)
            raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr("steerlib.models.hub_answers", cache(hub_answers.__wrapped__))
    for name in ("nobody/no-such-model", "./no-such-folder"):
        with pytest.raises(FileNotFoundError, match=rf"{name}.*\Z"):  # on one line
            load_model(name, device="cpu")
    assert len(asked) == 1


def test_a_precision_that_is_none_and_weights_in_a_pickle_are_refused(saved):
    with pytest.raises(ValueError, match="nn"):  # a name within torch
        load_model(saved, dtype="nn", device="cpu")
    (Path(saved) / "model.safetensors").unlink()
    torch.save({}, Path(saved) / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=saved):
        load_model(saved, device="cpu")


@needs_peft
def test_an_adapter_folder_is_its_base_with_the_change_merged_in(saved, tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    folder = str(tmp_path / "adapter")
    settings = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], layers_to_transform=[0])
    wrapped = get_peft_model(load_model(saved, device="cpu", dtype="float64").model, settings)
    torch.manual_seed(1)
    a, b = [weight for name, weight in wrapped.named_parameters() if "lora_" in name]
    b.data.normal_()  # it is 0 at first
    wrapped.save_pretrained(folder)
    frozen = load_model(folder, device="cpu", dtype="float64")
    # W + (lora_alpha / r) B A
    expected = tiny.blocks[0].self_attn.q_proj.weight + 3 * (b @ a).detach().double()
    assert_close(frozen.blocks[0].self_attn.q_proj.weight, expected, rtol=1e-5, atol=1e-5)
    assert not any("lora" in name or weight.requires_grad for name, weight in frozen.model.named_parameters())


@needs_peft
def test_an_adapter_that_cannot_be_merged_is_refused_naming_what_it_lacks(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        load_model(str(tmp_path), device="cpu")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    monkeypatch.setattr("steerlib.models.find_spec", {}.get)
    with pytest.raises(ImportError, match="peft"):
        load_model(str(tmp_path), device="cpu")


@pytest.mark.skipif(
    not can_pack(tiny_llama().model.float()), reason="this build of torch has no packed products"
)
def test_a_packed_model_has_the_same_logits_and_weights_and_a_bias_is_kept():
    layer, x = nn.Linear(48, 80).requires_grad_(False), torch.linspace(-1, 1, 720).view(3, 5, 48)
    assert_close(PackedLinear(layer)(x), layer(x), rtol=1e-4, atol=1e-5)
    model, ids = tiny_llama().model.float(), torch.tensor([[5, 9, 31, 2]])
    expected, names = model(ids).logits, model.state_dict().keys()
    pack_linears(model)
    assert not [name for name, layer in model.named_modules() if type(layer) is nn.Linear]
    assert_close(model(ids).logits, expected, rtol=1e-3, atol=1e-3)
    assert model.state_dict().keys() == names
    assert not can_pack(tiny_llama().model)  # float64
    assert not can_pack(model.bfloat16())
