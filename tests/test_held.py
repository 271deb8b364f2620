import dataclasses
import functools
from typing import ClassVar

import pandas as pd
import pytest
import torch
from test_decoding import EVERY_SAMPLING, GREEDY, PROMPTS, SAMPLED, SIGNALS, answers, grid
from tiny import ALPHABET, tiny_llama, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from steerlib.generation import decode, decoding, held, make_arms
from steerlib.generation.batch import Batch
from steerlib.generation.held_rows import holds
from steerlib.generation.requests import make_requests
from steerlib.vectors.residual import ResidualDose

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


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
@pytest.mark.parametrize("sampling", EVERY_SAMPLING)
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
    compiled = dataclasses.replace(tiny_llama(), compiled=True)
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


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SIZES, num_key_value_heads=2, intermediate_size=8, sliding_window=8),
        LlamaConfig(
            **SIZES,
            intermediate_size=8,
            rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        ),
        OPTConfig(**SIZES, ffn_dim=8, word_embed_proj_dim=32),
    ],
    ids=["sliding window", "rotary embedding by length", "unknown kind"],
)
def test_rows_of_other_models_do_not_stay(config):
    assert not holds(tiny_model(config))


def test_rows_of_a_model_on_two_devices_do_not_stay(tiny, monkeypatch):
    assert holds(tiny)
    monkeypatch.setattr(tiny.model, "hf_device_map", {"model": 0, "lm_head": 1}, raising=False)
    assert not holds(tiny)


def test_an_answer_that_has_its_tokens_runs_on_without_leaving_the_positions():
    model = tiny_model(
        GPT2Config(vocab_size=len(ALPHABET) + 2, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    )
    prompts = PROMPTS.assign(prompt=["x" * 12, "y" * 61, "z" * 10])
    few, many = (make_arms("base", sampling=dataclasses.replace(SAMPLED, max_new_tokens=n)) for n in (3, 40))
    asked = [(prompts.iloc[[1]], few), (prompts.iloc[[0, 2]], many)]
    requests = [r for texts, arms in asked for r in make_requests(model, texts, arms, seeds=[0])]
    with torch.inference_mode():
        found, plain = (
            kind({"": model}, requests, [], ResidualDose()).run(lambda _: None)
            for kind in (held.HeldBatch, Batch)
        )
    assert [row["token_ids"] for row in found] == [row["token_ids"] for row in plain]
