import pytest
import torch
from tiny import tiny_llama
from torch import nn
from torch.testing import assert_close

from steerlib.models import PackedLinear, can_pack, pack_linears


@pytest.fixture
def model():
    model = tiny_llama().model.float()
    if not can_pack(model):
        pytest.skip("this build of torch has no packed products")
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_gives_the_layers_product(model, bias):  # noqa: ARG001
    layer = nn.Linear(48, 80, bias=bias).requires_grad_(False)
    for shape in [(48,), (1, 48), (200, 48), (3, 5, 48)]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        assert_close(PackedLinear(layer)(x), layer(x), rtol=1e-4, atol=1e-5)


def test_a_packed_model_has_the_same_logits_and_weights(model):
    ids = torch.tensor([[5, 9, 31, 2]])
    expected, weights = model(ids).logits, {name: w.clone() for name, w in model.state_dict().items()}
    pack_linears(model)
    assert not [name for name, layer in model.named_modules() if type(layer) is nn.Linear]
    assert_close(model(ids).logits, expected, rtol=1e-3, atol=1e-3)
    assert {name: torch.equal(w, weights[name]) for name, w in model.state_dict().items()} == dict.fromkeys(
        weights, True
    )


def test_other_precisions_and_large_models_are_left_alone(model, monkeypatch):
    assert not can_pack(tiny_llama().model)  # float64
    assert not can_pack(model.bfloat16())
    monkeypatch.setattr("steerlib.models.MOST_BYTES", 1000)
    assert not can_pack(model.float())
