"""`python -m benchmarks [part ...]`: the decoder against what one would write without it, ratios from one run.

Parts: rules, vectors, path, choices, growth, precision, all of them by default; and workers, which needs ray. Every
finished row is printed and kept, so that a benchmark that is stopped goes on where it was; tables are kept as JSON in
benchmarks/results, and those of docs/engine.md are made from them.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import choices, growth, paths, precision, rules, tables, vectors, workers
from benchmarks.setting import RESULTS, SHAPES, SMALL, Setting, Size, plainly_loaded, random_model
from steerlib.models import load_model

PARTS = {
    "rules": rules,
    "vectors": vectors,
    "path": paths,
    "choices": choices,
    "growth": growth,
    "precision": precision,
    "workers": workers,
}


def main(arguments: list[str] | None = None) -> None:
    """Time the parts asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="part", help=", ".join(PARTS))
    parser.add_argument(
        "--small", action="store_true", help="seconds instead of minutes; ratios mean nothing"
    )
    parser.add_argument("--repeats", type=int, help="times that everything is timed; the shortest counts")
    parser.add_argument("--questions", default="demo", help="'demo' or a folder with MMLU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="precision of the weights, such as bfloat16")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights of this size, for time alone")
    parser.add_argument("--prompts", type=int, help="prompts of the logit rules' grid")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of tables and figures")
    asked = parser.parse_args(arguments)
    size = SMALL if asked.small else Size()
    size = replace(size, repeats=asked.repeats or size.repeats, prompts=asked.prompts or size.prompts)
    started = time.perf_counter()
    if asked.shape:
        frozen, plain = random_model(asked.shape, asked.device, asked.dtype), None
    else:
        frozen = load_model(device=asked.device, dtype=asked.dtype)
        plain = plainly_loaded(frozen)
    setting = Setting(frozen, size, asked.questions, asked.out, plain, asked.small)
    for part in asked.parts or [part for part in PARTS if part != "workers"]:  # which needs the extra `ray`
        PARTS[part].run(setting)
    if asked.out == RESULTS:
        tables.rewrite()
    print(f"\ntotal {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
