"""Timing decoders in turn, comparing what they wrote, and putting the result down as a table."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from benchmarks.setting import Setting
from steerlib.models import FrozenModel
from steerlib.tables import ROOT, atomic_path

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


def measured(
    part: str, groups: Mapping[str, Sequence[Decoder]], *, setting: Setting, about: Mapping
) -> dict[str, list[Timed]]:
    """Run all decoders in turn, `repeats` times, and keep each one's shortest time.

    Every finished run is printed and kept on disk until the part's table is written: a benchmark that is stopped goes
    on where it was, unless settings or code have changed since.

    Args:
        part: name of the table.
        groups: decoders by what they do, names unique within.
        setting: models, repeats and folder; the first model's device is waited for.
        about: what the numbers are measured on, see `stated`.
    """
    file = unfinished(setting.folder, part)
    runs = [
        (repeat, name, decoder)
        for repeat in range(setting.size.repeats)
        for name, decoders in groups.items()
        for decoder in decoders
    ]
    known = _kept(file, {**about, "load_at_start": None, "code": _code()})
    found: dict[tuple[str, str], Timed] = {}
    for number, (repeat, name, decoder) in enumerate(runs):
        line = known.get((repeat, name, decoder.name)) or _timed(decoder, setting)
        if (repeat, name, decoder.name) not in known:
            _append(file, {"repeat": repeat, "setting": name, "decoder": decoder.name, **line})
            to_go = f"{len(runs) - number - 1} rows to go"
            print(f"{part}: {name}, {decoder.name}: {line['seconds']:.1f} s, {to_go}", flush=True)
        answers = {tuple(key) if isinstance(key, list) else key: ids for key, ids in line["answers"]}
        numbers = line["seconds"], line["processor_seconds"], line["row_steps"]
        best = found.get((name, decoder.name))
        if best is None or line["seconds"] < best.seconds:
            found[name, decoder.name] = Timed(decoder, answers, *numbers)
    return {name: [found[name, one.name] for one in decoders] for name, decoders in groups.items()}


def unfinished(folder: Path, part: str) -> Path:
    """File of the finished runs of a part whose table is not written yet."""
    return folder / f"{part}.partial.jsonl"


def _timed(decoder: Decoder, setting: Setting) -> dict:
    device = setting.frozen.device
    with row_counter(*setting.models) as rows:
        started, started_processor = clock(device), time.process_time()
        answers = decoder.run()
        seconds, processor = clock(device) - started, time.process_time() - started_processor
    listed = [[key, list(ids)] for key, ids in answers.items()]
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "row_steps": rows["steps"],
        "answers": listed,
    }


def _kept(file: Path, about: Mapping) -> dict[tuple[int, str, str], dict]:
    """Finished runs of an earlier call under the same settings; the file is begun anew where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    first, *lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else [""]
    whole = [line for line in lines if line.endswith("}")] if first == json.dumps(about) else []
    with atomic_path(file) as partial:  # without a line that a kill has torn
        partial.write_text("\n".join([json.dumps(about), *whole, ""]), encoding="utf-8")
    rows = [json.loads(line) for line in whole]
    return {(row["repeat"], row["setting"], row["decoder"]): row for row in rows}


def _append(file: Path, row: Mapping) -> None:
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def _code() -> str:
    """Hash of the library's and the benchmark's source."""
    files = sorted(path for name in ("steerlib", "benchmarks") for path in (ROOT / name).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


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
                f"ms per {unit}": round(1000 * per_token, 2),
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
    unfinished(folder, name).unlink(missing_ok=True)
    with pd.option_context("display.width", 250, "display.max_columns", 30, "display.max_colwidth", 60):
        print(f"\n== {name}", *(f"{key}: {value}" for key, value in about.items()), sep="\n   ")
        print("\n" + table.to_string(index=False, na_rep=""), flush=True)
    return table
