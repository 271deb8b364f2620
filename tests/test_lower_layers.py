"""Steered readings of one context share what steering cannot change; test_decoding has that they read the same."""

import pytest
import torch

from steerlib.decoding.requests import Stream
from steerlib.decoding.streams import Streams
from steerlib.residual import VectorFamily, steering_hooks

torch.manual_seed(4)
FAMILIES = {
    "upper": {2: torch.randn(32), 3: torch.randn(32)},
    "lowest": {0: torch.randn(32), 3: torch.randn(32)},
    "last": {0: torch.zeros(32), 3: torch.randn(32)},
}
FAMILIES = {name: VectorFamily(name, {"": vector}) for name, vector in FAMILIES.items()}
OPENING = tuple(range(20, 32))
CONTEXT = (*OPENING, 40, 41, 42, 43, 44)


def stream(ids, name, alpha, positions="all"):
    return Stream(ids, (FAMILIES[name].digest, ""), alpha, positions)


def prefill(frozen, streams):
    hooks = steering_hooks(frozen.model, {(f.digest, ""): f.vectors[""] for f in FAMILIES.values()})
    with hooks as dose, torch.inference_mode():
        Streams(frozen, streams, capacity=len(streams), max_new_tokens=3, dose=dose).prefill()


def tokens_read(frozen, streams):
    """Tokens that each block reads in prefill, pads included."""
    counts = [0] * frozen.n_layers

    def count(layer):
        def hook(module, args, kwargs):  # noqa: ARG001
            counts[layer] += kwargs["hidden_states"].shape[:2].numel()

        return frozen.blocks[layer].self_attn.register_forward_pre_hook(hook, with_kwargs=True)

    handles = [count(layer) for layer in range(frozen.n_layers)]
    prefill(frozen, streams)
    for handle in handles:
        handle.remove()
    return counts


def test_what_no_strength_changes_is_read_once_for_all_strengths(tiny):
    plain, *steered = Stream(CONTEXT), *(stream(CONTEXT, "upper", a) for a in (0.5, 1.0, 1.5))
    for streams, read in (
        # Blocks below the first steered one.
        ([plain, *steered], [17, 17, 4 * 17, 4 * 17]),
        (steered, [17, 17, 3 * 17, 3 * 17]),
        ([plain, *steered, stream(CONTEXT, "last", 2.0)], [17, 17, 4 * 17, 5 * 17]),
        ([plain, *(stream(CONTEXT, "lowest", a) for a in (1.0, 2.0))], [3 * 17] * 4),
        # Tokens before the first steered one.
        ([plain, *(stream(CONTEXT, "lowest", a, "generation") for a in (0.5, 1.0))], [17 + 2] * 4),
        ([plain, stream(CONTEXT, "upper", 0.5, "generation")], [17, 17, 17 + 1, 17 + 1]),
    ):
        assert tokens_read(tiny, streams) == read


def test_a_shared_opening_is_read_once_below_and_once_a_strength_above(tiny):
    contexts = [CONTEXT, (*OPENING, 50, 51, 52, 53, 54)]
    plain = [Stream(ids) for ids in contexts]
    steered = [stream(ids, "upper", a) for a in (0.5, 1.0) for ids in contexts]
    once = 12 + 2 * 5
    assert tokens_read(tiny, [*plain, *steered]) == [once, once, 3 * once, 3 * once]


def test_all_blocks_are_as_they_were_after_an_exception(tiny):
    # A model that was once asked for its hidden states keeps hooks of transformers' own.
    before, passed = [dict(block._forward_hooks) for block in tiny.blocks], []

    def refuse_the_second(block, inputs):  # noqa: ARG001
        passed.append("forward" in vars(tiny.blocks[0]))
        if passed[-1]:  # the second pass over the last block is the steered one
            raise RuntimeError("too much")

    streams = [Stream(CONTEXT), stream(CONTEXT, "upper", 1.0)]
    handle = tiny.blocks[3].register_forward_pre_hook(refuse_the_second)
    with pytest.raises(RuntimeError, match="too much"):
        prefill(tiny, streams)
    handle.remove()
    assert passed == [False, True]
    assert not any("forward" in vars(block) for block in tiny.blocks)
    assert [dict(block._forward_hooks) for block in tiny.blocks] == before
