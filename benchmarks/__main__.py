"""`make bench`: a grid of alphas on the embedded model, ours beside plain loops, ratios from one run.

The plain loops take minutes a prompt, so each is timed on a sample of the same grid and stated per token; its
answers are compared with ours, since a fast decoder that writes something else is no decoder.
"""

import os
import platform
import time
from collections.abc import Callable

import pandas as pd
import torch

from benchmarks.plain import cached_loop, full_prefix_loop, library_guidance
from steerlib.generation import Sampling, decode, make_arms
from steerlib.generation.requests import Request, make_requests
from steerlib.models import FrozenModel, load_model
from steerlib.profiles import read_ratings

ALPHAS = [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.2]
PROMPTS = 8
TOKENS = 24
SAMPLE = {full_prefix_loop: 3, cached_loop: 12, library_guidance: 12}


def main() -> None:
    """Time both rules and print the table."""
    frozen = load_model(device="cpu", dtype="float32")
    ratings, _ = read_ratings("demo")
    texts = ratings.prompt.drop_duplicates().head(PROMPTS)
    prompts = pd.DataFrame(
        {"prompt_id": texts.index.astype(str), "prompt": texts.to_numpy(), "category": "insult"}
    )
    rows = [
        *compared(frozen, prompts, "expert_anti_expert", [full_prefix_loop, cached_loop]),
        *compared(frozen, prompts, "anti_expert", [library_guidance]),
    ]
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    print(f"{frozen.name}, float32, greedy, {PROMPTS} prompts x {len(ALPHAS)} alphas x {TOKENS} tokens\n")
    print(pd.DataFrame(rows).to_string(index=False))


def compared(frozen: FrozenModel, prompts: pd.DataFrame, method: str, peers: list[Callable]) -> list[dict]:
    """Seconds a token of ours over the whole grid and of each peer on a sample of it."""
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=TOKENS)
    arms = make_arms(method, ALPHAS, profile="own", sampling=sampling)
    started = time.perf_counter()
    ours = decode(frozen, prompts, arms)
    seconds = (time.perf_counter() - started) / ours.n_tokens.sum()
    rows = [
        {
            "rule": method,
            "decoder": "ours, the whole grid",
            "answers": len(ours),
            "ms a token": 1000 * seconds,
        }
    ]
    requests = make_requests(frozen, prompts, arms, seeds=[0])
    known = {(row.arm_id, row.prompt_id): list(row.token_ids) for row in ours.itertuples()}
    for peer in peers:
        rows.append(timed(frozen, peer, requests, known, method, seconds))
    for row in rows:
        row["ms a token"] = round(row["ms a token"], 1)
    return rows


def timed(
    frozen: FrozenModel, peer: Callable, requests: list[Request], known: dict, method: str, ours: float
) -> dict:
    """One peer on answers spread evenly over the grid."""
    n = SAMPLE[peer]
    sample = requests[:: max(1, len(requests) // n)][:n]
    started = time.perf_counter()
    answers = [peer(frozen, request) for request in sample]
    seconds = (time.perf_counter() - started) / sum(map(len, answers))
    same = sum(known[r.arm_id, r.prompt_id] == a for r, a in zip(sample, answers, strict=True))
    row = {"rule": method, "decoder": peer.__name__.replace("_", " "), "answers": len(sample)}
    return {
        **row,
        "ms a token": 1000 * seconds,
        "ours is faster by": f"{seconds / ours:.1f}x",
        "same": f"{same}/{n}",
    }


if __name__ == "__main__":
    main()
