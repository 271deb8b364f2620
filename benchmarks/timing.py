"""Timing decoders in turn, comparing what they wrote, and putting the result down as a table."""

import json
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from steerlib.models import FrozenModel
from steerlib.tables import atomic_path

Answers = Mapping[Hashable, Sequence[int]]
"""Token ids by what was asked for."""


@dataclass(frozen=True)
class Decoder:
    """One way to write answers.

    Attributes:
        name: what it is, as the table says it.
        batch: what it decodes at one time.
        run: writes its answers.
        comparable: whether its answers should be those of the reference.
    """

    name: str
    batch: str
    run: Callable[[], Answers]
    comparable: bool = True


@dataclass(frozen=True)
class Timed:
    """The shortest run of a decoder.

    Attributes:
        decoder: which.
        answers: what it wrote.
        seconds: by the clock.
        processor_seconds: of this process alone, all threads together: what a busy machine disturbs less.
        row_steps: rows of its decoding steps; 0 where it reads whole prefixes.
    """

    decoder: Decoder
    answers: Answers
    seconds: float
    processor_seconds: float
    row_steps: int

    @property
    def tokens(self) -> int:
        """Tokens written."""
        return sum(map(len, self.answers.values()))


def race(
    models: Sequence[FrozenModel], decoders: Sequence[Decoder], *, repeats: int, counted: bool = True
) -> list[Timed]:
    """Run the decoders of some models in turn, all of them `repeats` times, and keep each one's shortest time.

    Args:
        models: those that the decoders use, the first one's device being waited for.
        decoders: what is run.
        repeats: times.
        counted: count rows by a hook; a compiled model would be compiled anew at each of its calls.
    """
    device = models[0].device
    best: dict[str, Timed] = {}
    for _ in range(repeats):
        for decoder in decoders:
            with row_counter(*(models if counted else ())) as rows:
                started, started_processor = clock(device), time.process_time()
                answers = decoder.run()
                seconds, processor = clock(device) - started, time.process_time() - started_processor
            if decoder.name not in best or seconds < best[decoder.name].seconds:
                best[decoder.name] = Timed(decoder, answers, seconds, processor, rows["steps"])
    return [best[decoder.name] for decoder in decoders]


def clock(device: torch.device) -> float:
    """Seconds, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def row_counter(*models: FrozenModel) -> Generator[dict[str, int], None, None]:
    """Count the rows that pass the last block one token at a time: the steps of decoding, without prefill."""
    count = {"steps": 0}

    def hook(block: nn.Module, args: tuple, kwargs: dict) -> None:  # noqa: ARG001
        residual = args[0] if args else kwargs["hidden_states"]
        count["steps"] += residual.shape[0] if residual.shape[1] == 1 else 0

    with ExitStack() as stack:
        for model in models:
            handle = model.blocks[-1].register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield count


def compared(timed: Sequence[Timed], *, setting: str, unit: str = "token") -> list[dict]:
    """Rows of the table: each decoder beside the first, time per token, so that a sample stands for the whole.

    Args:
        timed: the reference first; its answers are the whole grid.
        setting: what they all did.
        unit: what an answer's ids are.
    """
    ours = timed[0]
    rows = []
    for found in timed:
        per_token = found.seconds / max(1, found.tokens)
        processor = found.processor_seconds / max(1, found.tokens)
        same = sum(list(ours.answers.get(key, ())) == list(ids) for key, ids in found.answers.items())
        rows.append(
            {
                "setting": setting,
                "decoder": found.decoder.name,
                "batch": found.decoder.batch,
                "answers timed": len(found.answers),
                "of": len(ours.answers),
                "seconds": round(found.seconds, 2),
                f"ms a {unit}": round(1000 * per_token, 2),
                "whole grid, s": round(per_token * ours.tokens, 1),
                "rows decoded": found.row_steps or None,
                "ours is faster by": round(per_token / (ours.seconds / ours.tokens), 2),
                "by processor time": round(processor / (ours.processor_seconds / ours.tokens), 2),
                "same answers": f"{same}/{len(found.answers)}" if found.decoder.comparable else "",
            }
        )
    return rows


def write(name: str, rows: Sequence[dict], *, about: Mapping, folder: Path) -> pd.DataFrame:
    """Print a table and keep it as JSON with what it was measured on."""
    table = pd.DataFrame(rows)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        "benchmark": name,
        "measured_on": dict(about),
        "rows": json.loads(table.to_json(orient="records")),
    }
    with atomic_path(folder / f"{name}.json") as partial:
        partial.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    with pd.option_context("display.width", 250, "display.max_columns", 30, "display.max_colwidth", 60):
        print(f"\n== {name}", *(f"{key}: {value}" for key, value in about.items()), sep="\n   ")
        print("\n" + table.to_string(index=False, na_rep=""), flush=True)
    return table
