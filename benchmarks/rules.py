"""Logit rules: a grid of alphas against loops over the branches and against the library's guidance."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import pandas as pd
import torch

from benchmarks.plain import (
    cached_batch,
    cached_loop,
    full_prefix_loop,
    generated,
    library_guidance,
    nucleus_draw,
)
from benchmarks.setting import Setting, stated
from benchmarks.timing import Answers, Decoder, compared, measured, write
from steerlib.decoding import RULES, Sampling, decode, make_arms
from steerlib.decoding.requests import Request, make_requests

Item = TypeVar("Item")
OURS = "ours, the whole grid"


def run(setting: Setting) -> pd.DataFrame:
    """Time Expert-Anti-Expert, greedy and sampled, and Anti-Expert; keep the table."""
    about, size = stated(setting), setting.size
    greedy = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=size.tokens)
    sampled = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.0, max_new_tokens=size.tokens)
    grid = f"{size.prompts} prompts x {len(size.alphas)} alphas x {size.tokens} tokens"
    kinds = [("expert_anti_expert", greedy, "greedy"), ("expert_anti_expert", sampled, "sampled")]
    groups = {
        f"{method.replace('_', '-')}, {manner}, {grid}": _decoders(setting, method, sampling)
        for method, sampling, manner in [*kinds, ("anti_expert", greedy, "greedy")]
    }
    timed = measured("rules", groups, setting=setting, about=about)
    rows = [row for name, found in timed.items() for row in compared(found, setting=name)]
    return write("rules", rows, about=about, folder=setting.folder)


def _decoders(setting: Setting, method: str, sampling: Sampling) -> list[Decoder]:
    frozen, size = setting.frozen, setting.size
    prompts, arms = setting.prompts(), make_arms(method, size.alphas, profile="own", sampling=sampling)
    requests = make_requests(frozen, prompts, arms, seeds=[0])
    some, alphas = spread(requests, size.loop_answers), spread(size.alphas, size.batched_alphas)
    blocks = [[r for r in requests if r.alpha == alpha] for alpha in alphas]
    everything, one = "all prompts and alphas", "1 answer"
    many = f"{size.prompts} prompts, 1 alpha"
    ours = Decoder(OURS, everything, lambda: by_arm(decode(frozen, prompts, arms)))
    if "expert" not in RULES[method].branches:
        guidance = partial(library_guidance, setting.peer)
        single = [[request] for request in some]
        return [
            ours,
            Decoder("(c) generate(guidance_scale=1 + alpha)", one, lambda: _batched(guidance, single)),
            Decoder("(c) the same, prompts batched", many, lambda: _batched(guidance, blocks)),
        ]
    choice = {"choice": nucleus_draw} if sampling.temperature else {}
    same = not choice
    loop, batch = partial(cached_loop, setting.peer, **choice), partial(cached_batch, setting.peer, **choice)
    cached = [
        Decoder("(b) three forwards, caches", one, lambda: _each(loop, some), comparable=same),
        Decoder("(b) the same, prompts batched", many, lambda: _batched(batch, blocks), comparable=same),
    ]
    if choice:
        return [ours, *cached]
    few = spread(requests, size.full_prefix_answers)
    full = partial(full_prefix_loop, setting.peer)
    slow = Decoder("(a) three forwards, no cache (DExperts)", one, lambda: _each(full, few))
    return [ours, slow, *cached, *_yardsticks(setting, requests)]


def _yardsticks(setting: Setting, requests: Sequence[Request]) -> list[Decoder]:
    """The base's own `generate`: what any answer costs without steering."""
    first = [r for r in requests if r.alpha == requests[0].alpha]
    settings = {"max_new_tokens": setting.size.tokens, "do_sample": False}

    def base(blocks: Sequence[Sequence[Request]]) -> Answers:
        found = {}
        for block in blocks:
            answers = generated(setting.peer, [r.branches["base"].ids for r in block], **settings)
            found |= {r.prompt_id: answer for r, answer in zip(block, answers, strict=True)}
        return found

    some = [[request] for request in spread(first, setting.size.loop_answers)]
    many = f"{len(first)} prompts"
    return [
        Decoder("(e) base, generate", "1 answer", lambda: base(some), comparable=False),
        Decoder("(e) base, generate, prompts batched", many, lambda: base([first]), comparable=False),
    ]


def spread(items: Sequence[Item], n: int) -> list[Item]:
    """n items spread evenly from the first to the last, or all of them."""
    places = np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int)
    return [items[i] for i in places]


def by_arm(generations: pd.DataFrame) -> Answers:
    """Token ids by arm and prompt."""
    return {(row.arm_id, row.prompt_id): list(row.token_ids) for row in generations.itertuples()}


def _each(decoder: Callable[[Request], list[int]], requests: Sequence[Request]) -> Answers:
    torch.manual_seed(0)
    return {(r.arm_id, r.prompt_id): decoder(r) for r in requests}


def _batched(
    decoder: Callable[[Sequence[Request]], list[list[int]]], blocks: Sequence[Sequence[Request]]
) -> Answers:
    torch.manual_seed(0)
    return {
        (r.arm_id, r.prompt_id): answer
        for block in blocks
        for r, answer in zip(block, decoder(block), strict=True)
    }
