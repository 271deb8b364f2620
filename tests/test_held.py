import contextlib
import dataclasses
import functools
from typing import ClassVar

import pandas as pd
import pytest
import torch
from test_decoding import GREEDY, PROMPTS, SAMPLED, SIGNALS, answers, grid
from tiny import ALPHABET, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from steerlib.generation import decode, decoding, held, make_arms
from steerlib.generation.captured import Captured
from steerlib.generation.held_rows import holds


@pytest.fixture
def held_decode(monkeypatch):
    """`decode` with rows that stay, as on a GPU."""

    def run(frozen, *args, **kwargs) -> pd.DataFrame:
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "can_hold", lambda *_: True)
            patch.setattr(held, "LOOK", 3)
            return decode(frozen, *args, **kwargs)

    return run


WAITING = (
    "_local_scalar_dense",
    "item.default",
    "nonzero",
    "unique",
    "masked_select",
    "equal.default",
    "lift_fresh",
)
"""Operators whose result the host must wait for, or that bring numbers from the host."""


class Tape(TorchDispatchMode):
    """Operators in the order of their calls, with the tensors that they read and wrote: what a CUDA graph holds."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        masks = [
            x for x in tree_leaves(args[1:2]) if "index" in str(operator) and isinstance(x, torch.Tensor)
        ]
        waits = any(name in str(operator) for name in WAITING) or any(m.dtype == torch.bool for m in masks)
        assert not waits, f"{operator} makes a GPU wait"
        out = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """The same operators on the same memory, without the program that called them."""
        for operator, args, kwargs, out in self.calls:
            again = operator(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Taped:
    """A stand-in for `Captured`: the step on its first call, a tape of it on its second, the tape from then on."""

    tapes: ClassVar[list[int]] = []

    def __init__(self, step, device) -> None:  # noqa: ARG002
        self.step, self.tape = step, None
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == 1:
            self.step()
        elif self.tape is None:
            with Tape() as self.tape:
                self.step()
        else:
            self.tape.replay()
            self.tapes.append(len(self.tape.calls))


@pytest.mark.parametrize("sampling", [SAMPLED, GREEDY, dataclasses.replace(SAMPLED, top_p=1.0, min_p=0.1)])
def test_a_recorded_step_waits_for_nothing_and_repeated_without_its_program_writes_the_same(
    tiny, held_decode, monkeypatch, sampling
):
    monkeypatch.setattr(held, "Captured", Taped)
    Taped.tapes.clear()
    arms = grid(dataclasses.replace(sampling, max_new_tokens=20))
    found = held_decode(tiny, PROMPTS, arms, seeds=[3], **SIGNALS)
    assert answers(found) == answers(decode(tiny, PROMPTS, arms, seeds=[3], **SIGNALS))
    assert len(Taped.tapes) > 5


@pytest.mark.parametrize("style", ["continuation", "chat"])
@pytest.mark.parametrize(
    "sampling",
    [
        SAMPLED,
        GREEDY,
        dataclasses.replace(SAMPLED, penalty_scope="generated_only"),
        dataclasses.replace(SAMPLED, top_p=1.0, min_p=0.1),
    ],
)
def test_rows_that_stay_write_what_merged_rows_write(tiny, held_decode, sampling, style):
    arms = grid(sampling, style)
    merged = decode(tiny, PROMPTS, arms, seeds=[3], **SIGNALS)
    found = held_decode(tiny, PROMPTS, arms, seeds=[3], **SIGNALS)
    assert answers(found) == answers(merged)
    numbers = ["nll_base", "kl_to_base", "n_tokens", "stopped"]
    pd.testing.assert_frame_equal(found[numbers], merged[numbers], check_exact=False, rtol=1e-9)
    # `sampling.choose` also counts a rival that lies outside the nucleus.
    assert (found.near_ties <= merged.near_ties).all()


def test_a_compiled_step_writes_the_same_and_forgets_no_vector(tiny, held_decode, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    compiled = dataclasses.replace(tiny, compiled=True)
    rules = make_arms("expert_anti_expert", [0, 2.2], profile="own", sampling=SAMPLED)
    vectors = make_arms("caa", [0.5, 1.0], vector="population", sampling=SAMPLED)
    for arms in (rules, vectors, rules):
        found = held_decode(compiled, PROMPTS, arms, seeds=[0, 1], **SIGNALS)
        assert answers(found) == answers(decode(tiny, PROMPTS, arms, seeds=[0, 1], **SIGNALS))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


def test_rows_stay_on_a_gpu_alone_and_no_batch_has_more_than_may_stay(tiny, monkeypatch):
    assert not held.can_hold({"": tiny})
    sizes = []

    class Counted(held.HeldBatch):
        def __init__(self, models, requests, *args, **kwargs) -> None:
            sizes.append(sum(len(r.branches) for r in requests))
            super().__init__(models, requests, *args, **kwargs)

    monkeypatch.setattr(decoding, "can_hold", lambda _: True)
    monkeypatch.setattr(decoding, "HeldBatch", Counted)
    monkeypatch.setattr(decoding, "HELD_ROWS", 10)
    arms = make_arms("expert_anti_expert", [0.5, 1.0, 2.0], profile="own", sampling=SAMPLED)
    assert answers(decode(tiny, PROMPTS, arms)) == answers(decode(tiny, PROMPTS, arms, capacity=9))
    assert max(sizes) == 9
    assert sum(sizes) == 2 * 27


def test_answers_of_different_length_let_each_other_go(tiny, held_decode):
    arms = pd.concat(
        [
            make_arms(
                "anti_expert", [0.5], profile="own", sampling=dataclasses.replace(SAMPLED, max_new_tokens=n)
            )
            for n in (1, 2, 9, 30)
        ],
        ignore_index=True,
    )
    merged, found = (run(tiny, PROMPTS, arms, seeds=[0, 1]) for run in (decode, held_decode))
    assert answers(found) == answers(merged)
    assert set(found.n_tokens) >= {1, 2, 9}


def test_without_the_base_beside_them_steered_answers_are_the_same(tiny, held_decode):
    arms = make_arms("caa", [0.5, 1.0], vector="population", sampling=SAMPLED)
    found = held_decode(tiny, PROMPTS, arms, reference=False, **SIGNALS)
    assert answers(found) == answers(decode(tiny, PROMPTS, arms, **SIGNALS))
    assert found.nll_base.isna().all()


@pytest.mark.parametrize(
    "config", [GemmaConfig, GPT2Config, GPTNeoXConfig, MistralConfig, Qwen2Config, Qwen3Config]
)
def test_rows_stay_in_every_architecture_that_is_said_to_hold(config, held_decode):
    sizes = {
        "vocab_size": len(ALPHABET) + 2,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    extra = {} if config in (GPT2Config, GPTNeoXConfig) else {"num_key_value_heads": 2, "head_dim": 8}
    extra |= {"sliding_window": None} if config is MistralConfig else {}
    model = tiny_model(config(**sizes, intermediate_size=64, **extra))
    assert holds(model)
    arms = make_arms("expert_anti_expert", [0.5, 2.0], profile="own", sampling=SAMPLED)
    assert answers(held_decode(model, PROMPTS, arms)) == answers(decode(model, PROMPTS, arms))


def test_rows_of_a_model_with_a_sliding_window_of_an_unknown_kind_or_on_two_devices_do_not_stay(
    tiny, monkeypatch
):
    assert not holds(
        tiny_model(
            MistralConfig(
                hidden_size=32,
                num_attention_heads=4,
                num_hidden_layers=1,
                num_key_value_heads=2,
                intermediate_size=8,
                vocab_size=97,
                sliding_window=8,
            )
        )
    )
    assert not holds(
        tiny_model(
            OPTConfig(
                hidden_size=32,
                num_attention_heads=4,
                num_hidden_layers=1,
                ffn_dim=8,
                vocab_size=97,
                word_embed_proj_dim=32,
            )
        )
    )
    assert holds(tiny)
    monkeypatch.setattr(tiny.model, "hf_device_map", {"model": 0, "lm_head": 1}, raising=False)
    assert not holds(tiny)


class FakeCuda:
    """As much of torch.cuda as `Captured` uses; a graph's recording runs the step unless told to fail."""

    def __init__(self, log: list[str], failure: Exception | None = None) -> None:
        self.log, self.failure = log, failure

    def install(self, monkeypatch) -> None:
        log, failure = self.log, self.failure

        class Stream:
            def __init__(self, device=None) -> None:
                pass

            def wait_stream(self, _) -> None:
                log.append("waits")

        class Graph:
            def replay(self) -> None:
                log.append("replay")

        @contextlib.contextmanager
        def graph(_):
            log.append("record")
            yield
            if failure:
                raise failure

        for name, fake in {
            "Stream": Stream,
            "stream": lambda _: contextlib.nullcontext(),
            "current_stream": Stream,
            "CUDAGraph": Graph,
            "graph": graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)


def test_a_step_is_run_once_then_recorded_and_from_then_on_replayed(monkeypatch):
    log: list[str] = []
    FakeCuda(log).install(monkeypatch)
    step = Captured(lambda: log.append("step"), torch.device("cuda"))
    for _ in range(4):
        step()
    assert log == ["waits", "step", "waits", "record", "step", "replay", "replay", "replay"]


def test_a_step_that_cannot_be_recorded_goes_on_plainly_and_says_why(monkeypatch):
    log: list[str] = []
    FakeCuda(log, RuntimeError("operation not permitted when stream is capturing")).install(monkeypatch)
    step = Captured(lambda: log.append("step"), torch.device("cuda"))
    step()
    with pytest.warns(RuntimeWarning, match="without a CUDA graph: operation not permitted"):
        step()
    step()
    assert log.count("record") == 1
    assert log[-2:] == ["step", "step"]


def test_memory_that_runs_out_while_recording_is_passed_on(monkeypatch):
    FakeCuda([], torch.OutOfMemoryError("too much")).install(monkeypatch)
    step = Captured(lambda: None, torch.device("cuda"))
    step()
    with pytest.raises(torch.OutOfMemoryError):
        step()
