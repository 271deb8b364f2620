import pytest
import torch
from torch.testing import assert_close

from steerlib.vectors import (
    LayerVectors,
    VectorFamily,
    add_to_residual,
    load_family,
    mean_differences,
    random_vectors,
    save_family,
)


def drawn(seed, layers=(1, 2)):
    generator = torch.Generator().manual_seed(seed)
    return LayerVectors(
        {layer: torch.randn(32, generator=generator, dtype=torch.float64) for layer in layers}
    )


def assert_same(left, right):
    assert list(left) == list(right)
    for layer in left:
        assert_close(left[layer], right[layer])


def test_vectors_obey_the_rules_of_linear_algebra():
    a, b = drawn(0), drawn(1)
    assert_same(a + b, b + a)
    assert_same(a - b, -(b - a))
    assert_same(2 * (a + b), a * 2 + 2 * b)
    assert_same((a + b) - b, a)
    assert_same(a / 4, 0.25 * a)
    assert_same(a - a, 0 * a)
    assert isinstance(0.6 * a - b / 2, LayerVectors)


def test_a_sum_by_hand():
    total = LayerVectors({0: torch.tensor([1.0, 2.0])}) + {0: torch.tensor([3.0, -1.0])}
    assert total[0].tolist() == [4.0, 1.0]


def test_vectors_of_other_layers_are_refused_naming_both():
    with pytest.raises(ValueError, match=r"layers differ: \[1, 2\] and \[2, 3\]"):
        drawn(0) + drawn(1, layers=(2, 3))
    with pytest.raises(ValueError, match=r"layers differ: \[1, 2\] and \[1\]"):
        drawn(0) - drawn(1, layers=(1,))


def test_vectors_of_another_width_are_refused_naming_layer_and_widths():
    with pytest.raises(ValueError, match="layer 1: widths differ, 32 and 8"):
        drawn(0) + LayerVectors({1: torch.zeros(8), 2: torch.zeros(8)})


def test_what_makes_and_loads_vectors_gives_ones_that_can_be_added(tmp_path):
    made = mean_differences({1: torch.ones(2, 8)}, {1: torch.zeros(2, 8)})
    save_family(tmp_path / "v.safetensors", VectorFamily("v", {"": made}), {})
    loaded = load_family(tmp_path / "v.safetensors")[0].of("")
    assert_same(loaded + made - 2 * made, 0 * made)
    assert isinstance(random_vectors(made, seed=0) + made, LayerVectors)


def test_adding_a_sum_to_the_residual_is_adding_both(tiny):
    ids, a, b = torch.tensor([[5, 9, 20]]), drawn(0), drawn(1)
    with add_to_residual(tiny.model, a), add_to_residual(tiny.model, b, alpha=0.5):
        apart = tiny.model(ids).logits
    with add_to_residual(tiny.model, a + 0.5 * b):
        together = tiny.model(ids).logits
    assert_close(apart, together)
