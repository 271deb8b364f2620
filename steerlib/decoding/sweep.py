"""The generation sweep: every prompt under every arm and seed, in blocks that can be resumed and shared.

A block of prompts with all arms is the unit of work: it is written whole or not at all, and a lock that the system
frees when a process dies keeps two processes from doing the same block.
"""

import fcntl
import hashlib
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pandas as pd

from steerlib.decoding.contexts import BranchModels, Contexts
from steerlib.decoding.decode import decode_requests
from steerlib.decoding.requests import Request, make_requests
from steerlib.models import FrozenModel
from steerlib.residual import Factor, VectorFamily
from steerlib.tables import append_part, has_table, progress_bar, read_table

Key = tuple[str, str, int]


def run_sweep(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    folder: Path,
    seeds: Sequence[int] = (0,),
    contexts: Contexts | None = None,
    vectors: Sequence[VectorFamily] = (),
    factors: Sequence[Factor] = (),
    branch_models: BranchModels | None = None,
    prompts_per_block: int = 8,
    capacity: int | None = None,
) -> pd.DataFrame:
    """Decode what the run's generations table does not have yet, block by block.

    Stop it at any moment and call it again: finished blocks are kept, and a new arm costs its own answers alone.
    Several processes may call it on one folder; each takes blocks that no other holds.

    Args:
        frozen: the model.
        prompts: the prompts table.
        arms: the arms table.
        folder: the run's folder; parts of the generations table are written there.
        seeds: of the sampling noise.
        contexts: see `decode`.
        vectors: see `decode`.
        factors: see `decode`.
        branch_models: see `decode`.
        prompts_per_block: prompts of one block.
        capacity: rows of a forward pass at most.

    Returns:
        The answers of these prompts, arms and seeds, in the order prompts, arms, seeds.

    Raises:
        ValueError: as `decode`, before anything is decoded.
    """
    requests = make_requests(
        frozen,
        prompts,
        arms,
        seeds=seeds,
        contexts=contexts,
        vectors=vectors,
        factors=factors,
        branch_models=branch_models,
    )
    settings = {"vectors": vectors, "branch_models": branch_models, "capacity": capacity}
    decoded = partial(decode_requests, frozen, **settings)
    return finish_requests(requests, decoded, folder=folder, prompts_per_block=prompts_per_block)


def finish_requests(
    requests: Sequence[Request],
    decoded: Callable[..., pd.DataFrame],
    *,
    folder: Path,
    prompts_per_block: int = 8,
    what: str = "sweep",
) -> pd.DataFrame:
    """Answer what the run's generations table does not have yet, block by block, see `run_sweep`.

    Args:
        requests: all answers that are wanted.
        decoded: rows of the generations table for some requests; called with those and `progress`.
        folder: the run's folder.
        prompts_per_block: prompts of one block.
        what: the work, shown before the progress bar.

    Returns:
        The answers, in the order of the requests.
    """
    blocks = _blocks(requests, prompts_per_block)
    done = _done(folder)
    total = sum(_key(r) in done for r in requests)
    (folder / "locks").mkdir(exist_ok=True)
    with progress_bar(len(requests), done=total, unit="answer", what=what) as bar:
        wait = False
        while waiting := [b for b in blocks if any(_key(r) not in done for r in b)]:
            before = len(done)
            for block in waiting:
                with _lock(folder / "locks" / f"{_name(block)}.lock", wait=wait) as mine:
                    # Another process may have written the block since the table was read last.
                    done = _done(folder)
                    missing = [r for r in block if _key(r) not in done] if mine else []
                    if missing:
                        part = decoded(missing, progress=bar.update)
                        append_part(folder, "generations", part, part=_name(missing))
                        done |= {_key(r) for r in missing}
            # All that is left is held by others: wait for the first of them.
            wait = len(done) == before
    return _ordered(read_table(folder, "generations"), requests)


def _blocks(requests: Sequence[Request], prompts_per_block: int) -> list[list[Request]]:
    order = {prompt: i for i, prompt in enumerate(dict.fromkeys(r.prompt_id for r in requests))}
    blocks: list[list[Request]] = [[] for _ in range(math.ceil(len(order) / prompts_per_block))]
    for request in requests:
        blocks[order[request.prompt_id] // prompts_per_block].append(request)
    return blocks


def _key(request: Request) -> Key:
    return request.arm_id, request.prompt_id, request.seed


def _done(folder: Path) -> set[Key]:
    if not has_table(folder, "generations"):
        return set()
    table = read_table(folder, "generations")
    return set(zip(table.arm_id, table.prompt_id, table.seed, strict=True))


def _name(requests: Sequence[Request]) -> str:
    text = "\n".join(map(str, map(_key, requests)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _lock(path: Path, *, wait: bool) -> Generator[bool, None, None]:
    """Whether the lock was had; a process that dies lets go of it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _ordered(table: pd.DataFrame, requests: Sequence[Request]) -> pd.DataFrame:
    keys = pd.DataFrame([_key(r) for r in requests], columns=["arm_id", "prompt_id", "seed"])
    return keys.merge(table, on=["arm_id", "prompt_id", "seed"], how="left", validate="one_to_one")
