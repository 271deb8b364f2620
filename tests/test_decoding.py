import dataclasses
import gc
import math
import sys
import weakref

import pandas as pd
import psutil
import pytest
import torch
from reference import branch_logits, reference_answer
from tiny import tiny_llama

from steerlib.decoding import Factor, Sampling, VectorFamily, alpha_path, decode, make_arms
from steerlib.decoding.cache import SlotCache
from steerlib.decoding.requests import make_requests

PROMPTS = pd.DataFrame(
    [
        ("p0", "u0", "The man shouted: you", "insult", "threat"),
        ("p1", "u1", "Once upon a time there was a very small dog that", "threat", "profanity"),
        ("p2", "u0", "Hm", "profanity", "insult"),
    ],
    columns=["prompt_id", "user_id", "prompt", "category", "shuffled_category"],
)
DECODE = sys.modules["steerlib.decoding.decode"]
SAMPLED = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.15, max_new_tokens=9)
GREEDY = Sampling(temperature=0, repetition_penalty=1.15, max_new_tokens=9)
EVERY_SAMPLING = [
    (SAMPLED, "continuation"),
    (GREEDY, "chat"),
    (dataclasses.replace(SAMPLED, penalty_scope="generated_only"), "chat"),
    (dataclasses.replace(SAMPLED, top_p=1.0, min_p=0.1), "continuation"),
]
"""Each setting once, each style with two of them: the pairs add nothing of their own."""
POPULATION = VectorFamily("population", {"": {1: torch.linspace(-1, 1, 32), 2: torch.linspace(1, -2, 32)}})
OTHER = VectorFamily("other", {"": {2: torch.ones(32)}})
OF_USERS = VectorFamily(
    "family", {"u0": {1: torch.ones(32)}, "u1": {0: -torch.ones(32), 2: torch.linspace(-2, 2, 32)}}, "own"
)
VECTORS = [POPULATION, OTHER, OF_USERS]
AMPLIFICATION = Factor("F(S)", {"p0": 0.0, "p1": 0.4, "p2": 0.9})
GATE = Factor("gate", {"p0": 1.0, "p1": 0.0, "p2": 1.0})
SIGNALS = {"vectors": VECTORS, "factors": [AMPLIFICATION, GATE]}


def grid(sampling: Sampling = SAMPLED, style: str = "continuation") -> pd.DataFrame:
    common = {"sampling": sampling, "style": style}
    diverging = common | {"sampling": dataclasses.replace(sampling, js_sigma=0.1, min_temperature=0.0)}
    return pd.concat(
        [
            make_arms("base", **common),
            make_arms("anti_expert", [0, 0.5, 2.2], profile="own", **common),
            make_arms("expert_anti_expert", [0, 1.0, 2.2], profile="own", **common),
            make_arms("expert_anti_expert", [1.0], profile="shuffled", **common),
            make_arms("prompt_only", profile="own", **common),
            make_arms("caa", [0, 0.5, -1.0], family=POPULATION, **common),
            make_arms("caa", [0.5], family=POPULATION, positions="first_k:2", **common),
            make_arms("caa", [0.5], family=OTHER, positions="prompt", **common),
            make_arms("caa", [0.5], family=POPULATION, positions="generation", **common),
            make_arms("caa", [0.5], family=OF_USERS, profile="own", **common),
            make_arms("caa", [0.5], family=POPULATION, factor=GATE, **common),
            make_arms("instructed", profile="own", **common),
            make_arms("sda", [0, 2.0], factor=AMPLIFICATION, profile="own", **common),
            make_arms("sda", [2.0], profile="population", category="honesty", **diverging),
            make_arms("instructed", profile="own", **diverging),
            make_arms("expert_anti_expert", [1.0], profile="own", family=OTHER, vector_alpha=0.5, **common),
            make_arms("sda", [1.0], profile="own", family=OTHER, vector_alpha=0.5, **diverging),
        ],
        ignore_index=True,
    )


def answers(table: pd.DataFrame) -> dict:
    keys = zip(table.arm_id, table.prompt_id, table.seed, strict=True)
    return dict(zip(keys, map(tuple, table.token_ids), strict=True))


@pytest.mark.parametrize(("sampling", "style"), EVERY_SAMPLING)
def test_the_engine_writes_what_the_plain_decoder_writes(tiny, sampling, style):
    arms = grid(sampling, style)
    table = decode(tiny, PROMPTS, arms, seeds=[3], **SIGNALS)
    assert table[["nll_base", "kl_to_base"]].map(math.isfinite).all(axis=None)
    found = answers(table)
    requests = make_requests(tiny, PROMPTS, arms, seeds=[3], **SIGNALS)
    assert len(found) == len(requests)
    for request in sorted(requests, key=lambda one: one.arm_id)[::2]:  # of three prompts: every arm is there
        expected = reference_answer(tiny, request, VECTORS)
        assert found[request.arm_id, request.prompt_id, request.seed] == tuple(expected), request


def test_alpha_zero_is_the_base_token_for_token(tiny):
    arms = grid()
    table = decode(tiny, PROMPTS, arms, seeds=[0, 1], **SIGNALS).merge(arms[["arm_id", "method", "alpha"]])
    base = table[table.method == "base"].set_index(["prompt_id", "seed"])
    zero = table[(table.alpha == 0) & table.method.isin(["anti_expert", "expert_anti_expert", "caa"])]
    assert len(zero) == 3 * len(base)
    names = [arms[(arms.method == m) & (arms.alpha == 0)].arm_id.iloc[0] for m in ("instructed", "sda")]
    instructed, sda = (table[table.arm_id == name].token_ids.tolist() for name in names)
    assert sda == instructed  # of SDA the zero is its instruction
    for row in zero.itertuples():
        expected = base.loc[(row.prompt_id, row.seed)]
        assert row.token_ids == expected.token_ids
        assert row.nll_base == pytest.approx(expected.nll_base, abs=1e-9)
        assert row.kl_to_base == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("method", ["base", "anti_expert"])
def test_greedy_answers_are_those_of_the_librarys_generate_its_penalty_and_its_guidance(tiny, method):
    penalty = 1.15 if method == "base" else 1.0  # under guidance the library penalises before it combines
    sampling = Sampling(temperature=0, repetition_penalty=penalty, max_new_tokens=12)
    settings = {} if method == "base" else {"alphas": [1.5], "profile": "own"}
    arms = make_arms(method, sampling=sampling, **settings)
    requests = make_requests(tiny, PROMPTS, arms, seeds=[0])
    for request, ids in zip(requests, decode(tiny, PROMPTS, arms).token_ids, strict=True):
        context = torch.tensor([request.branches["base"].ids])
        given = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "repetition_penalty": penalty}
        if method == "anti_expert":  # scale one plus alpha
            given["negative_prompt_ids"] = torch.tensor([request.branches["anti"].ids])
            given["guidance_scale"] = 2.5
        out = tiny.model.generate(context, **given)[0, context.shape[1] :].tolist()
        assert ids == [token for token in out if token != 0]


def test_the_order_of_prompts_the_memory_for_rows_and_the_reference_do_not_matter(tiny, monkeypatch):
    arms = grid()
    table = decode(tiny, PROMPTS, arms, **SIGNALS)
    alone = decode(tiny, PROMPTS, arms, reference=False, **SIGNALS)
    assert answers(alone) == answers(table)
    assert alone[["nll_base", "kl_to_base"]].isna().all(axis=None)
    assert answers(decode(tiny, PROMPTS.iloc[::-1], arms, **SIGNALS)) == answers(table)
    monkeypatch.setattr("steerlib.decoding.streams.CPU_BYTES", 0)
    assert answers(decode(tiny, PROMPTS, arms, **SIGNALS)) == answers(table)


def test_nll_and_kl_are_those_of_the_written_answer_with_and_without_a_stop(tiny, monkeypatch):
    monkeypatch.setattr(DECODE, "NEAR_TIE", float("inf"))
    long = dataclasses.replace(SAMPLED, temperature=2.0, max_new_tokens=50)
    arms = make_arms("expert_anti_expert", [1.0], profile="own", sampling=long)
    table = decode(tiny, PROMPTS, arms, seeds=[0, 1])
    assert table.stopped.any() and not table.stopped.all()
    requests = make_requests(tiny, PROMPTS, arms, seeds=[0, 1], **SIGNALS)
    for request, row in zip(requests, table.itertuples(), strict=True):
        before = [*row.token_ids, *([0] * row.stopped)][:-1]
        z = {name: branch_logits(tiny, stream, before) for name, stream in request.branches.items()}
        base = z["base"].log_softmax(-1)
        nll = -base[torch.arange(row.n_tokens), torch.tensor(row.token_ids, dtype=torch.long)].sum()
        # The stop token has a KL and may be a near-tie, but its likelihood is none of the answer's.
        steered = (z["base"] + z["expert"] - z["anti"]).log_softmax(-1)
        kl = float((steered.exp() * (steered - base)).sum())
        assert row.nll_base == pytest.approx(float(nll), rel=1e-9)
        assert row.kl_to_base == pytest.approx(kl, rel=1e-9)
        assert row.near_ties == row.n_tokens + row.stopped


@pytest.mark.parametrize(
    ("value", "sampling"),
    [(float("nan"), GREEDY), (float("inf"), dataclasses.replace(SAMPLED, top_p=1.0, min_p=0.1))],
)
def test_a_logit_that_is_not_finite_stops_the_work_naming_arm_prompt_step_and_precision(value, sampling):
    broken, passes = tiny_llama(), []

    def later(model, inputs, output):  # noqa: ARG001
        passes.append(1)
        if len(passes) > 2:
            output.logits[..., 7] = value

    broken.model.register_forward_hook(later)
    arms = make_arms("anti_expert", [1.0], profile="own", sampling=sampling)
    named = rf"arm {arms.arm_id.item()}, prompt p1, step \d: .* torch.float64"
    for work in (decode, alpha_path):
        passes.clear()
        with pytest.raises(FloatingPointError, match=named):
            work(broken, PROMPTS.iloc[[1]], arms)
        assert 2 < len(passes) < 6


def test_caches_are_freed_with_their_batch_without_a_garbage_collection(tiny, monkeypatch):
    caches, init = [], SlotCache.__init__

    def counted(cache, *args, **settings):
        caches.append(weakref.ref(cache))
        init(cache, *args, **settings)

    monkeypatch.setattr(SlotCache, "__init__", counted)
    gc.disable()
    try:
        decode(tiny, PROMPTS, grid(), **SIGNALS)
        alpha_path(tiny, PROMPTS, make_arms("anti_expert", [1.0], profile="own", sampling=GREEDY))
        assert caches and not any(cache() for cache in caches)
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_cache_holds_what_is_written_in_any_precision_and_zeros_elsewhere(dtype):
    cache = SlotCache(2, capacity=3, columns=16)
    cache.rows, cache.length = torch.tensor([2, 0]), 4
    keys, values = torch.randn(2, 2, 1, 3, 8).to(dtype).unbind()
    for found, new in zip(cache.update(keys, values, 0), (keys, values), strict=True):
        assert found.dtype == dtype and not found[:, :, :4].any()
        assert torch.equal(found[:, :, 4:], new)


def test_rows_of_the_cache_that_no_answer_has_needed_take_no_memory():
    cache, before = SlotCache(1, capacity=4096, columns=1024), psutil.Process().memory_info().rss
    cache.rows = slice(0, 2)
    cache.update(torch.ones(2, 1, 3, 64), torch.ones(2, 1, 3, 64), 0)
    assert sum(block.nbytes for block in cache.blocks[0].stored) == 2**31
    assert psutil.Process().memory_info().rss - before < 2**26


def test_a_prompt_that_cannot_be_answered_and_an_unknown_vector_are_refused(tiny):
    for text, named in (("x" * 505, "prompt p2: 505 .* 9 .* 514.* 512"), (" ", "empty")):
        prompts = PROMPTS.assign(prompt=[*PROMPTS.prompt[:2], text])
        with pytest.raises(ValueError, match=named):
            decode(tiny, prompts, make_arms("base", sampling=SAMPLED))
    arms = make_arms("caa", [1.0], family=VectorFamily("x", {"": {1: torch.ones(32)}}))
    with pytest.raises(ValueError, match=r"'x .*population"):
        decode(tiny, PROMPTS, arms, **SIGNALS)


OWN = {"profile": "own"}


@pytest.mark.parametrize(
    ("method", "settings", "named"),
    [
        ("anti_expert", {"alphas": [float("nan")], **OWN}, "not nan"),
        ("base", {"style": "letter"}, "style 'letter'"),
        ("base", {"factor": GATE}, GATE.name),
        ("base", {"sampling": Sampling(js_sigma=0.1)}, "js_sigma 0.1"),
        ("caa", {"alphas": [1]}, "'caa': needs a vector"),
        ("caa", {"alphas": [1], "family": OTHER, "vector_alpha": 1.0}, "vector_alpha 1.0"),
        ("prompt_only", {"family": OTHER, **OWN}, "vector 'other'"),
        ("anti_expert", {"profile": "population", "category": "rudeness"}, "category 'rudeness'"),
        ("caa", {"family": OTHER, "branches": {"steered": "x"}}, "'steered'"),
        ("expert_anti_expert", {"branches": {"anti": "x"}}, "profile 'none'"),
        ("antiexpert", {}, "'antiexpert'"),
    ],
)
def test_arms_that_make_no_sense_are_refused_naming_the_setting(method, settings, named):
    with pytest.raises(ValueError, match=named):
        make_arms(method, **settings)


def test_two_threads_write_what_one_writes_and_stop_where_one_fails(tiny, monkeypatch):
    threads, settings = torch.get_num_threads(), {"seeds": [0, 1], **SIGNALS}
    # A model that was once asked for its hidden states keeps hooks of transformers' own.
    hooks = [dict(module._forward_hooks) for module in tiny.model.modules()]
    try:
        torch.set_num_threads(1)
        alone = answers(decode(tiny, PROMPTS, grid(), **settings))
        torch.set_num_threads(2)
        assert answers(decode(tiny, PROMPTS, grid(), **settings)) == alone
        monkeypatch.setattr(DECODE, "choose", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decode(tiny, PROMPTS, grid(), **settings)
        assert torch.get_num_threads() == 2
        assert [dict(module._forward_hooks) for module in tiny.model.modules()] == hooks
    finally:
        torch.set_num_threads(threads)
