"""The generation sweep: every prompt under every arm and seed, in blocks that can be resumed.

A block of prompts with all arms is the unit of work: it is written whole or not at all.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Unpack

import pandas as pd
from filelock import FileLock, Timeout

from steerlib.decoding.decode import decode_requests
from steerlib.decoding.requests import Inputs, Request, make_requests
from steerlib.models import FrozenModel
from steerlib.tables import append_part, has_table, progress_bar, read_table

PROMPTS_PER_BLOCK = 8
KEY = ["arm_id", "prompt_id", "seed"]


def run_sweep(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    folder: Path,
    seeds: Sequence[int] = (0,),
    **inputs: Unpack[Inputs],
) -> pd.DataFrame:
    """The answers of these prompts, arms and seeds, in that order; those that the run lacks are decoded first.

    Stop it at any moment and call it again: finished blocks are kept, and a new arm costs its own answers alone.

    Args:
        frozen, prompts, arms, seeds, inputs: see `decode`.
        folder: the run's folder; parts of the generations table are written there.

    Raises:
        ValueError: as `make_requests`, before anything is decoded.
        RuntimeError: another process sweeps this folder.
    """
    requests = make_requests(frozen, prompts, arms, seeds=seeds, **inputs)
    decoded = partial(decode_requests, frozen, **inputs)
    return finish_requests(requests, decoded, folder=folder, what="sweep")


def finish_requests(
    requests: Sequence[Request], decoded: Callable[..., pd.DataFrame], *, folder: Path, what: str
) -> pd.DataFrame:
    """The answers to the requests, in their order; those that the run's generations table lacks are made first.

    Args:
        requests: all answers that are wanted.
        decoded: rows of the generations table for some requests; called with those and `progress`.
        folder: the run's folder.
        what: the work, shown before the progress bar.
    """
    if not requests:
        raise ValueError("no prompts, arms or seeds: there is nothing to decode")
    wanted = pd.DataFrame([_key(request) for request in requests], columns=KEY)
    try:
        with FileLock(folder / "sweep.lock", timeout=0):
            parts = [read_table(folder, "generations")] if has_table(folder, "generations") else []
            done = {key for part in parts for key in part[KEY].itertuples(index=False, name=None)}
            missing = [request for request in requests if _key(request) not in done]
            total = len(requests)
            with progress_bar(total, done=total - len(missing), unit="answer", what=what) as bar:
                for block in _blocks(requests, missing):
                    parts.append(decoded(block, progress=bar.update))
                    append_part(folder, "generations", parts[-1], part=_name(block))
    except Timeout:
        raise RuntimeError(f"another process sweeps {folder}: wait for it, or name another run") from None
    return wanted.merge(pd.concat(parts, ignore_index=True), on=KEY, how="left", validate="one_to_one")


def _key(request: Request) -> tuple[str, str, int]:
    return request.arm_id, request.prompt_id, request.seed


def _blocks(requests: Sequence[Request], missing: Sequence[Request]) -> list[list[Request]]:
    """The missing requests by block; a prompt's block depends on all requests, so that a resumed block is the same."""
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(r.prompt_id for r in requests))}
    block = {prompt: i // PROMPTS_PER_BLOCK for prompt, i in prompts.items()}
    ordered = sorted(missing, key=lambda r: block[r.prompt_id])
    return [list(group) for _, group in groupby(ordered, key=lambda r: block[r.prompt_id])]


def _name(requests: Sequence[Request]) -> str:
    text = "\n".join(map(str, map(_key, requests)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
