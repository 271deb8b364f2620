import pytest
import torch
from torch.testing import assert_close

from steerlib.vectors import (
    add_to_residual,
    cosine,
    default_layers,
    describe_vectors,
    mean_difference,
    random_vectors,
    record_residual,
    steered_positions,
)

IDS = torch.tensor([[5, 9, 20, 31, 7]])
VECTOR = torch.linspace(-1, 1, 32, dtype=torch.float64)


def input_of_block(frozen, layer, ids=IDS):
    seen = []
    handle = frozen.blocks[layer].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    frozen.model(ids)
    handle.remove()
    return seen[0]


def n_hooks(frozen):
    modules = [frozen.model, *frozen.blocks]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_the_next_block_receives_the_residual_plus_alpha_v(tiny):
    before = input_of_block(tiny, 2)
    with add_to_residual(tiny.model, {1: VECTOR}, alpha=0.5):
        during = input_of_block(tiny, 2)
    assert_close(during, before + 0.5 * VECTOR)
    assert torch.equal(input_of_block(tiny, 2), before)


def test_alpha_zero_leaves_the_model_as_it_is(tiny):
    with add_to_residual(tiny.model, {0: VECTOR, 3: VECTOR}, alpha=0.0):
        steered = tiny.model(IDS).logits
    assert torch.equal(steered, tiny.model(IDS).logits)


def test_each_row_has_its_own_alpha(tiny):
    ids = IDS.repeat(2, 1)
    with add_to_residual(tiny.model, {1: VECTOR}, alpha=torch.tensor([0.0, 2.0])):
        rows = tiny.model(ids).logits
    with add_to_residual(tiny.model, {1: VECTOR}, alpha=2.0):
        alone = tiny.model(IDS).logits
    assert_close(rows[0], tiny.model(IDS).logits[0])
    assert_close(rows[1], alone[0])


def test_nothing_is_left_behind_after_an_exception(tiny):
    hooks = n_hooks(tiny)
    with pytest.raises(RuntimeError), add_to_residual(tiny.model, {1: VECTOR}):
        raise RuntimeError
    assert n_hooks(tiny) == hooks


def test_adding_and_subtracting_the_same_vector_cancels(tiny):
    with add_to_residual(tiny.model, {1: VECTOR}), add_to_residual(tiny.model, {1: -VECTOR}):
        both = tiny.model(IDS).logits
    assert_close(both, tiny.model(IDS).logits)


@pytest.mark.parametrize(
    "positions", ["all", "prompt", "generation", "first_k:2", "from:3", "prompt+first_k:1"]
)
def test_positions_are_counted_alike_with_the_cache_without_it_and_under_left_padding(tiny, positions):
    prompt, answer = IDS, torch.tensor([[40, 41, 42]])
    full = torch.cat([prompt, answer], 1)
    lengths = torch.tensor([prompt.shape[1]])
    settings = {"alpha": 1.5, "positions": positions}
    with add_to_residual(tiny.model, {1: VECTOR}, prompt_lengths=lengths, **settings):
        plain = tiny.model(full).logits[0, -3:]
    with add_to_residual(tiny.model, {1: VECTOR}, **settings):
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


def test_what_the_words_for_positions_mean():
    position, length = torch.arange(7)[None], torch.tensor([[4]])
    expected = {
        "all": [0, 1, 2, 3, 4, 5, 6],
        "prompt": [0, 1, 2],
        "generation": [3, 4, 5, 6],
        "first_k:2": [3, 4],
        "from:5": [5, 6],
        "prompt+first_k:1": [0, 1, 2, 3],
    }
    for spec, positions in expected.items():
        assert steered_positions(spec, position, length)[0].nonzero()[:, 0].tolist() == positions, spec


@pytest.mark.parametrize("spec", ["answers", "first_k", "from:x"])
def test_positions_that_are_not_understood_are_refused(spec):
    with pytest.raises(ValueError, match=f"positions '{spec}'"):
        steered_positions(spec, torch.zeros(1, 1), torch.ones(1, 1))


def test_recorded_residuals_are_the_hidden_states_one_further_on(tiny):
    recorded = record_residual(tiny, [IDS[0].tolist()], layers=[0, 1, 2], prompt_lengths=[2], pool="last")
    hidden = tiny.model(IDS, output_hidden_states=True).hidden_states
    for layer in (0, 1, 2):
        assert_close(recorded[layer][0], hidden[layer + 1][0, -1])


def test_the_last_blocks_residual_is_taken_before_the_final_norm(tiny):
    recorded = record_residual(tiny, [IDS[0].tolist()], layers=[3], prompt_lengths=[2], pool="last")[3][0]
    hidden = tiny.model(IDS, output_hidden_states=True).hidden_states[-1][0, -1]
    assert_close(tiny.model.model.norm(recorded), hidden)
    assert not torch.allclose(recorded, hidden)


def test_pooling_reads_the_answer_and_not_the_pads(tiny):
    long, short = IDS[0].tolist(), [5, 9, 20]
    together = record_residual(tiny, [long, short], layers=[1], prompt_lengths=[2, 1])[1]
    hidden = tiny.model(IDS, output_hidden_states=True).hidden_states[2][0]
    assert_close(together[0], hidden[2:].mean(0))
    alone = record_residual(tiny, [short], layers=[1], prompt_lengths=[1])[1]
    assert_close(together[1], alone[0])
    prompt_last = record_residual(tiny, [long], layers=[1], prompt_lengths=[2], pool="prompt_last")[1]
    assert_close(prompt_last[0], hidden[1])


def test_a_layer_that_the_model_lacks_is_refused_naming_the_range(tiny):
    with pytest.raises(IndexError, match=r"layer 4 is not in 0\.\.3"):
        record_residual(tiny, [[5, 6]], layers=[4], prompt_lengths=[1])
    with (
        pytest.raises(IndexError, match=r"layer -1 is not in 0\.\.3"),
        add_to_residual(tiny.model, {-1: VECTOR}),
    ):
        pass


def test_a_sequence_without_an_answer_is_refused(tiny):
    with pytest.raises(ValueError, match="sequence 1 has 2 tokens, 2 of them prompt"):
        record_residual(tiny, [[5, 6], [5, 6]], layers=[0], prompt_lengths=[1, 2])


def test_mean_difference_by_hand():
    preferred = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    dispreferred = torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    assert_close(mean_difference(preferred, dispreferred), torch.tensor([1.0, 2.0]))


def test_mean_difference_of_equal_sides_is_zero_and_changes_sign_with_them():
    a, b = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    assert_close(mean_difference(a, a), torch.zeros(8))
    assert_close(mean_difference(a, b), -mean_difference(b, a))


def test_the_papers_layers_are_16_to_22_of_32_and_scaled_elsewhere():
    assert default_layers(32) == list(range(16, 23))
    assert default_layers(30) == list(range(15, 22))
    assert default_layers(4) == [2, 3]


def test_random_vectors_have_the_norm_of_the_vector_and_another_direction():
    like = {3: torch.randn(500, generator=torch.Generator().manual_seed(5))}
    drawn = random_vectors(like, seed=0)
    assert_close(drawn[3].norm(), like[3].norm())
    assert abs(cosine(drawn[3], like[3])) < 0.2
    assert not torch.equal(drawn[3], random_vectors(like, seed=1)[3])


def test_a_clean_contrast_is_stable_between_halves_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 200, 64, generator=generator)
    clean = describe_vectors({0: noise[0] + 2}, {0: noise[1]}, seed=0).split_half_cosine[0]
    none = describe_vectors({0: noise[0]}, {0: noise[1]}, seed=0).split_half_cosine[0]
    assert clean > 0.95 > 0.5 > abs(none)
