"""Blocks of work over Ray actors, on this machine or a cluster: each holds the models, the caller alone writes results.

A worker that dies has its block done again by another, a block that does not fit the memory is halved, and one that
fails three times is named at the end, when all others are done.
"""

import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

import pandas as pd
import torch
from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")
Workers = int | str | None

ATTEMPTS = 3
OBJECT_STORE = 2**29
"""Bytes that Ray keeps for what is sent to workers of this machine; models are not sent, see `FrozenModel`."""


class BlocksFailed(RuntimeError):
    """Some blocks failed three times each; the message names them, and all others are done."""


@dataclass
class Block(Generic[Item]):
    """Items that one worker does at a time, and how often they failed."""

    items: Sequence[Item]
    failures: int = 0


def mapped(
    function: Callable[..., Result],
    held: Any,
    blocks: Sequence[Sequence[Item]],
    *,
    workers: Workers = 0,
    bar: tqdm | None = None,
    name: Callable[[Sequence[Item]], str] = str,
) -> Generator[tuple[Sequence[Item], Result]]:
    """Each block with `function(held, block)`, as they are finished; close it to stop the workers.

    Args:
        function: importable in a worker; in this process it is called with `progress` too, where there is a bar.
        held: what every worker holds for all blocks: models, vectors, a scorer. A model that `load_model` loaded is
            loaded by each worker for itself, on its own device.
        workers: 0 or None for this process, N for as many Ray actors, "auto" for one a GPU of the cluster (without
            GPUs: one a machine). The cluster is that of the environment variable RAY_ADDRESS, else this machine.
        bar: counts finished items and shows the throughput of a worker.
        name: what a block is called in an error.

    Yields:
        The items done together, a block or a half of it, and what the function made of them.

    Raises:
        ValueError: workers that are no number and not "auto", or more than the cluster has GPUs.
        ImportError: ray is not installed.
        BlocksFailed: after all other blocks were yielded.
        Exception: what a worker raised while it loaded the models.
    """
    workers = workers or 0
    if not (workers == "auto" or (isinstance(workers, int) and workers >= 0)):
        raise ValueError(f"workers must be 0, a number of Ray actors or 'auto', not {workers!r}")
    if not blocks:
        return
    if workers == 0:
        settings = {"progress": bar.update} if bar is not None else {}
        for block in blocks:
            yield block, function(held, block, **settings)
        return
    with _cluster(workers) as (ray, pool):
        pool.load(held)
        waiting, lost, started, done = deque(map(Block, blocks)), [], time.monotonic(), 0
        while waiting or pool.running:
            while waiting and pool.idle:
                pool.start(function, waiting.popleft())
            block, outcome = pool.finished()
            if not isinstance(outcome, Exception):
                yield block.items, outcome
                done += len(block.items)
                if bar is not None:
                    bar.update(len(block.items))
                    each = done / (time.monotonic() - started) / pool.size
                    bar.set_postfix_str(f"{pool.size} workers, {each:.2f}/s each")
                continue
            half = len(block.items) // 2
            if half and isinstance(
                outcome, MemoryError | torch.OutOfMemoryError | ray.exceptions.OutOfMemoryError
            ):
                waiting.extendleft([Block(block.items[half:]), Block(block.items[:half])])
                continue
            block.failures += 1
            if block.failures < ATTEMPTS:
                waiting.append(block)
            else:
                lost.append(f"{name(block.items)}: {_reason(outcome)}")
    if lost:
        raise BlocksFailed(
            f"{len(lost)} of {len(blocks)} blocks failed {ATTEMPTS} times each, the others are done; {'; '.join(lost)}"
        )


def mapped_table(
    function: Callable[..., pd.DataFrame],
    held: Any,
    *,
    over: str,
    workers: Workers = 0,
    rows: int = 64,
    **settings: Any,
) -> pd.DataFrame:
    """`function(held, **settings)`, with workers over blocks of one of its settings, the results joined in order.

    For functions that treat each row by itself: `likelihood_margins` over pairs, `ask_questions` over questions,
    `checked_scores` over texts.

    Args:
        function, held, workers: as for `mapped`; 0 workers: one call, of all rows.
        over: the setting that is cut into blocks, a DataFrame or a list.
        rows: of a block.
        settings: of the function; each worker gets them once.
    """
    if not workers:
        return function(held, **settings)
    n = len(settings[over])
    blocks = [range(start, min(start + rows, n)) for start in range(0, n, rows)]
    given = (function, held, over, settings)
    done = mapped(_on_rows, given, blocks, workers=workers, name=lambda b: f"rows {b[0]} to {b[-1]}")
    with closing(done):
        found = {block[0]: result for block, result in done}
    return pd.concat([found[start] for start in sorted(found)], ignore_index=True)


def _on_rows(given: tuple[Callable[..., Result], Any, str, dict[str, Any]], block: range, **_: Any) -> Result:
    function, held, over, settings = given
    return function(held, **settings | {over: settings[over][block.start : block.stop]})


class _Worker:
    """What runs in an actor. What it unpickles comes from the process that started it, never from a file."""

    def load(self, held: bytes) -> None:
        self.held = pickle.loads(held)  # here, so that what a model's loading raises is raised as it is

    def work(self, held: bytes, function: Callable, items: Sequence) -> Any:
        if not hasattr(self, "held"):  # in place of a worker that died
            self.load(held)
        return function(self.held, items)


class _Pool:
    """Actors: those that are idle, and what each of the others does."""

    def __init__(self, ray: Any, size: int, resources: dict[str, float]) -> None:
        self.ray, self.size = ray, size
        self.actor = ray.remote(_Worker).options(**resources)
        self.idle = [self.actor.remote() for _ in range(size)]
        self.running: dict[Any, tuple[Any, Block]] = {}

    def load(self, held: Any) -> None:
        self.held = self.ray.put(self.ray.cloudpickle.dumps(held))
        try:
            self.ray.get([actor.load.remote(self.held) for actor in self.idle])
        except self.ray.exceptions.RayTaskError as failure:
            raise failure.cause from None

    def start(self, function: Callable, block: Block) -> None:
        actor = self.idle.pop()
        self.running[actor.work.remote(self.held, function, block.items)] = (actor, block)

    def finished(self) -> tuple[Block, Any]:
        """The next block that is done, and its result or failure; another actor takes the place of a dead one."""
        (ref,), _ = self.ray.wait([*self.running], num_returns=1)
        actor, block = self.running.pop(ref)
        try:
            outcome = self.ray.get(ref)
        except self.ray.exceptions.RayError as failure:
            outcome = failure
        died = isinstance(outcome, self.ray.exceptions.RayActorError)
        self.idle.append(self.actor.remote() if died else actor)
        return block, outcome

    def stop(self) -> None:
        for actor in [*self.idle, *(actor for actor, _ in self.running.values())]:
            self.ray.kill(actor)


@contextmanager
def _cluster(workers: Workers) -> Generator[tuple[Any, _Pool]]:
    """Ray and its actors; a cluster that was not there before is shut down at the end."""
    if find_spec("ray") is None:
        raise ImportError(f"workers: {workers} needs one more package: pip install 'steerlib[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray: Any = import_module("ray")
    ours = not ray.is_initialized()
    if ours:
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        cpus = max(os.cpu_count() or 1, workers if isinstance(workers, int) else 1)
        here = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        loopback = {"_node_ip_address": "127.0.0.1"}
        ray.init(**quiet, **({} if os.environ.get("RAY_ADDRESS") else here | loopback))
    pool = None
    try:
        pool = _Pool(ray, *_shares(ray, workers))
        yield ray, pool
    finally:
        if pool is not None:
            pool.stop()
        if ours:
            ray.shutdown()


def _shares(ray: Any, workers: Workers) -> tuple[int, dict[str, float]]:
    """Number of actors, and the processors and GPUs of each."""
    there = ray.cluster_resources()
    cpus, gpus, machines = int(there.get("CPU", 1)), int(there.get("GPU", 0)), len(ray.nodes())
    size = workers if isinstance(workers, int) else gpus or machines
    if 0 < gpus < size:
        raise ValueError(
            f"workers: {size} need a GPU each, and there are {gpus}; choose 'auto' or at most {gpus}"
        )
    return size, {"num_cpus": max(1, cpus // size), "num_gpus": 1 if gpus else 0}


def _reason(failure: Exception) -> str:
    failure = getattr(failure, "cause", None) or failure
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {lines[0] if lines else ''}"
