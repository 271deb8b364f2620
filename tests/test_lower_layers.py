"""Steered readings of one context share what steering cannot change, and read what they would read alone."""

import pytest
import torch
from reference import branch_logits
from torch.testing import assert_close

from steerlib.decoding.requests import Stream
from steerlib.decoding.streams import Streams
from steerlib.residual import VectorFamily, steering_hooks

torch.manual_seed(4)
FAMILIES = {
    "upper": {2: torch.randn(32), 3: torch.randn(32)},
    "middle": {1: torch.randn(32), 2: torch.zeros(32)},
    "lowest": {0: torch.randn(32), 3: torch.randn(32)},
    "last": {0: torch.zeros(32), 3: torch.randn(32)},
}
FAMILIES = {name: VectorFamily(name, {"": vector}) for name, vector in FAMILIES.items()}
ALL = tuple(FAMILIES.values())
OPENING = tuple(range(20, 32))
CONTEXTS = [(*OPENING, 40, 41, 42, 43, 44), (*OPENING, 50), (*OPENING, 50, 51, 52), (60, 61, 62), (70,)]
STEERING = [
    ("upper", 0.5, "all"),
    ("upper", -1.5, "all"),
    ("upper", 1.0, "generation"),
    ("upper", 1.0, "first_k:2"),
    ("upper", 1.0, "prompt"),
    ("upper", 1.0, "from:14"),
    ("upper", 1.0, "from:100"),
    ("middle", 1.0, "all"),
    ("middle", 1.0, "generation"),
    ("lowest", 1.0, "all"),
    ("lowest", 1.0, "generation"),
    ("last", 1.0, "all"),
]
PLAIN = [Stream(ids) for ids in CONTEXTS]


def stream(ids, name, alpha, positions="all"):
    return Stream(ids, (FAMILIES[name].digest, ""), alpha, positions)


STEERED = [stream(ids, *steering) for ids in CONTEXTS for steering in STEERING]


def opened(frozen, streams, dose):
    return Streams(frozen, streams, capacity=len(streams), max_new_tokens=3, dose=dose)


def hooks(frozen):
    return steering_hooks(frozen.model, {(f.digest, ""): f.vectors[""] for f in ALL})


def check_all(frozen, streams):
    """Logits of the prompt and of three tokens behind it against one stream at a time without a cache."""
    n, answers = len(streams), [[]] * len(streams)
    with hooks(frozen) as dose, torch.inference_mode():
        open_streams = opened(frozen, streams, dose)
        found = [open_streams.prefill()]
        for step in range(3):
            tokens = 5 + (torch.arange(n) + step) % 7
            found.append(open_streams.advance(torch.arange(n), tokens)[1])
            answers = [[*a, t] for a, t in zip(answers, tokens.tolist(), strict=True)]
    with torch.inference_mode():
        for step, z in enumerate(found):
            for stream, answer, row in zip(streams, answers, z, strict=True):
                expected = branch_logits(frozen, stream, answer[:step], ALL)[0]
                assert_close(row, expected, rtol=1e-8, atol=1e-8, msg=lambda m, s=stream: f"{s}: {m}")


@pytest.mark.parametrize(
    "streams",
    [
        [*PLAIN, *STEERED],
        STEERED[::-1],
        [s for s in STEERED if s.vector == (FAMILIES["lowest"].digest, "")],
        [*STEERED[::3], *PLAIN[1:]],
    ],
    ids=["all", "no unsteered stream", "nothing below", "some unsteered streams"],
)
def test_whichever_streams_share_each_reads_what_it_reads_alone(tiny, streams):
    check_all(tiny, streams)


def tokens_read(frozen, streams):
    """Tokens that each block reads in prefill, pads included."""
    counts = [0] * frozen.n_layers

    def count(layer):
        def hook(module, args, kwargs):  # noqa: ARG001
            counts[layer] += kwargs["hidden_states"].shape[:2].numel()

        return frozen.blocks[layer].self_attn.register_forward_pre_hook(hook, with_kwargs=True)

    handles = [count(layer) for layer in range(frozen.n_layers)]
    with hooks(frozen) as dose, torch.inference_mode():
        opened(frozen, streams, dose).prefill()
    for handle in handles:
        handle.remove()
    return counts


def test_blocks_below_the_first_steered_one_read_a_context_once_for_all_strengths(tiny):
    ids = CONTEXTS[0]
    alphas = [stream(ids, "upper", a) for a in (0.5, 1.0, 1.5)]
    assert tokens_read(tiny, [Stream(ids), *alphas]) == [17, 17, 4 * 17, 4 * 17]
    assert tokens_read(tiny, alphas) == [17, 17, 3 * 17, 3 * 17]
    assert tokens_read(tiny, [Stream(ids), *alphas, stream(ids, "last", 2.0)]) == [17, 17, 4 * 17, 5 * 17]
    lowest = [stream(ids, "lowest", a) for a in (1.0, 2.0)]
    assert tokens_read(tiny, [Stream(ids), *lowest]) == [3 * 17] * 4


def test_tokens_before_the_first_steered_one_are_read_once_for_all_strengths(tiny):
    ids = CONTEXTS[0]
    answers = [stream(ids, "lowest", a, "generation") for a in (0.5, 1.0)]
    assert tokens_read(tiny, [Stream(ids), *answers]) == [17 + 2] * 4
    later = [stream(ids, "upper", a, "from:14") for a in (0.5, 1.0)]
    assert tokens_read(tiny, [Stream(ids), *later]) == [17, 17, 17 + 2 * 3, 17 + 2 * 3]


def test_a_shared_opening_is_read_once_below_and_once_a_strength_above(tiny):
    contexts = [CONTEXTS[0], (*OPENING, 50, 51, 52, 53, 54)]
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

    streams = [Stream(CONTEXTS[0]), stream(CONTEXTS[0], "upper", 1.0)]
    handle = tiny.blocks[3].register_forward_pre_hook(refuse_the_second)
    with hooks(tiny) as dose, torch.inference_mode(), pytest.raises(RuntimeError, match="too much"):
        opened(tiny, streams, dose).prefill()
    handle.remove()
    assert passed == [False, True]
    assert not any("forward" in vars(block) for block in tiny.blocks)
    assert [dict(block._forward_hooks) for block in tiny.blocks] == before
