"""The residual stream: what is added where, what is read where, and in which unit."""

import pytest
import torch
from torch.testing import assert_close

from steerlib.reading import prompt_ids
from steerlib.residual import (
    add_to_residual,
    in_unit,
    record_residual,
    steered_range,
    typical_norms,
)

IDS = torch.tensor([[5, 9, 20, 31, 7]])
VECTOR = torch.linspace(-1, 1, 32, dtype=torch.float64)


def input_of_block(frozen, layer, ids=IDS):
    seen = []
    handle = frozen.blocks[layer].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    frozen.model(ids)
    handle.remove()
    return seen[0]


def test_the_next_block_receives_the_residual_plus_alpha_v(tiny):
    before = input_of_block(tiny, 2)
    with add_to_residual(tiny.model, {1: VECTOR}, alpha=0.5):
        during = input_of_block(tiny, 2)
    assert_close(during, before + 0.5 * VECTOR)
    assert torch.equal(input_of_block(tiny, 2), before)


def test_an_exception_while_steering_leaves_the_model_as_it_was(tiny):
    before, hooks = tiny.model(IDS).logits, len(tiny.model._forward_pre_hooks)
    with pytest.raises(KeyError), add_to_residual(tiny.model, {1: VECTOR}):
        assert not torch.equal(tiny.model(IDS).logits, before)
        raise KeyError
    assert torch.equal(tiny.model(IDS).logits, before)
    assert len(tiny.model._forward_pre_hooks) == hooks


def test_each_row_has_its_own_alpha(tiny):
    with add_to_residual(tiny.model, {1: VECTOR}, alpha=torch.tensor([0.0, 2.0])):
        rows = tiny.model(IDS.repeat(2, 1)).logits
        with pytest.raises(ValueError, match="alpha has 2 rows"):
            tiny.model(IDS.repeat(3, 1))
    with add_to_residual(tiny.model, {1: VECTOR}, alpha=2.0):
        alone = tiny.model(IDS).logits
    assert_close(rows[0], tiny.model(IDS).logits[0])
    assert_close(rows[1], alone[0])


@pytest.mark.parametrize("positions", ["all", "prompt", "generation", "first_k:2"])
def test_positions_are_counted_alike_with_the_cache_and_under_left_padding(tiny, positions):
    prompt, answer = IDS, torch.tensor([[40, 41, 42]])
    full = torch.cat([prompt, answer], 1)
    lengths = torch.tensor([prompt.shape[1]])
    settings = {"alpha": 1.5, "positions": positions}
    with add_to_residual(tiny.model, {1: VECTOR}, prompt_lengths=lengths, **settings):
        plain = tiny.model(full).logits[0, -3:]
    with add_to_residual(tiny.model, {1: VECTOR}, **settings):
        for _ in range(2):  # a second prompt in the same block is a prompt of its own
            cache = tiny.model(prompt, use_cache=True).past_key_values
            cached = [
                tiny.model(input_ids=answer[:, [i]], past_key_values=cache, use_cache=True).logits[0, -1]
                for i in range(3)
            ]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), full], 1)
    mask = torch.cat([torch.zeros(1, 4, dtype=torch.long), torch.ones_like(full)], 1)
    position = (mask.cumsum(-1) - 1).clamp_min(0)
    with add_to_residual(tiny.model, {1: VECTOR}, prompt_lengths=lengths, **settings):
        left = tiny.model(input_ids=padded, attention_mask=mask, position_ids=position).logits[0, -3:]
    assert_close(torch.stack(cached), plain)
    assert_close(left, plain)


def test_what_the_words_for_positions_mean_and_that_others_are_refused():
    expected = {"all": range(7), "prompt": range(3), "generation": range(3, 7), "first_k:2": range(3, 5)}
    for positions, steered in expected.items():
        start, stop = steered_range(positions, 4)
        assert range(start, min(stop, 7)) == steered, positions
    for wrong in ("answers", "first_k", "first_k:x", "all:1"):
        with pytest.raises(ValueError, match=f"positions '{wrong}'"):
            steered_range(wrong, 4)


def test_a_layer_a_width_or_an_alpha_that_does_not_fit_is_refused_by_name(tiny):
    with pytest.raises(IndexError, match=r"layer 4 is not in 0\.\.3"):
        record_residual(tiny, [[5, 6]], layers=[4], prompt_lengths=[1])
    for error, vectors, alpha, named in (
        (IndexError, {-1: VECTOR}, 1.0, r"layer -1 is not in 0\.\.3"),
        (ValueError, {1: VECTOR[:8]}, 1.0, "layer 1: .* 8 .* 32"),
        (ValueError, {1: VECTOR}, float("nan"), "alpha .* nan"),
    ):
        with pytest.raises(error, match=named), add_to_residual(tiny.model, vectors, alpha=alpha):
            pass


def test_recorded_residuals_are_the_hidden_states_one_further_on(tiny):
    settings = {"layers": [0, 1, 2, 3], "prompt_lengths": [2], "pool": "last"}
    recorded = record_residual(tiny, [IDS[0].tolist()], **settings)
    hidden = tiny.model(IDS, output_hidden_states=True).hidden_states
    for layer in (0, 1, 2):
        assert_close(recorded[layer][0], hidden[layer + 1][0, -1])
    # The last block's is taken before the final norm.
    assert_close(tiny.model.model.norm(recorded[3][0]), hidden[-1][0, -1])
    assert not torch.allclose(recorded[3][0], hidden[-1][0, -1])


def test_each_pooling_reads_its_own_positions_and_no_pads(tiny):
    long, short = IDS[0].tolist(), [5, 9, 20]
    hidden = tiny.model(IDS, output_hidden_states=True).hidden_states[2][0]
    for pool, positions in (("answer_mean", [2, 3, 4]), ("last", [4]), ("prompt_last", [1])):
        both = record_residual(tiny, [long, short], layers=[1], prompt_lengths=[2, 1], pool=pool)[1]
        assert_close(both[0], hidden[positions].mean(0))
        assert_close(both[1], record_residual(tiny, [short], layers=[1], prompt_lengths=[1], pool=pool)[1][0])
    with pytest.raises(ValueError, match="pool 'mean'"):
        record_residual(tiny, [long], layers=[1], prompt_lengths=[2], pool="mean")
    with pytest.raises(ValueError, match="sequence 1"):
        record_residual(tiny, [[5, 6], [5, 6]], layers=[0], prompt_lengths=[1, 2])


def test_typical_norms_are_those_of_tokens_that_open_no_sequence(tiny):
    norms = typical_norms(tiny, [1])
    ids = prompt_ids(tiny, "She put the letter", style="continuation")
    hidden = tiny.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, 1:]
    assert norms[1] == pytest.approx(float(hidden.norm(dim=-1).mean()), rel=0.2)


def test_in_units_of_the_residual_a_vector_has_its_norm_and_keeps_its_direction(tiny):
    vectors = {1: VECTOR, 2: -3 * VECTOR}
    assert in_unit(tiny, vectors, "vector") is vectors
    scaled, norms = in_unit(tiny, vectors, "residual"), typical_norms(tiny, [1, 2])
    for layer, vector in vectors.items():
        assert_close(scaled[layer], vector / vector.norm() * norms[layer])
    with pytest.raises(ValueError, match="layer 2"):
        in_unit(tiny, {1: VECTOR, 2: 0 * VECTOR}, "residual")
    with pytest.raises(ValueError, match="unit 'norm'"):
        in_unit(tiny, vectors, "norm")
