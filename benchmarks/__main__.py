"""`python -m benchmarks [part ...]`: the decoder against what one would write without it, ratios from one run.

Parts: rules, vectors, path, choices, growth, precision; all of them by default. Tables are printed and kept as
JSON in benchmarks/results.
"""

import argparse
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from benchmarks.setting import RESULTS, SMALL, Setting, Size, plainly_loaded
from steerlib.models import load_model

ON_THE_CPU = ("rules", "vectors", "path", "choices", "growth")
MODULES = {"path": "paths"}
PARTS = (*ON_THE_CPU, "precision")


def main(arguments: list[str] | None = None) -> None:
    """Time the parts asked for."""
    asked = _parser().parse_args(arguments)
    size = SMALL if asked.small else Size()
    size = replace(size, repeats=asked.repeats or size.repeats)
    started = time.perf_counter()
    setting = None
    for part in asked.parts or PARTS:
        module = import_module(f"benchmarks.{MODULES.get(part, part)}")
        if part not in ON_THE_CPU:
            module.run(small=asked.small, folder=asked.out)
            continue
        setting = setting or _setting(asked, size)
        module.run(setting, **({"small": asked.small} if part == "growth" else {}))
    print(f"\ntotal {time.perf_counter() - started:.0f} s")


def _setting(asked: argparse.Namespace, size: Size) -> Setting:
    frozen = load_model(device="cpu", dtype="float32")
    return Setting(frozen, size, asked.questions, asked.out, plainly_loaded(frozen))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="part", help=", ".join(PARTS))
    parser.add_argument(
        "--small", action="store_true", help="seconds instead of minutes; ratios mean nothing"
    )
    parser.add_argument("--repeats", type=int, help="times that everything is timed; the shortest counts")
    parser.add_argument("--questions", default="demo", help="'demo' or a folder with MMLU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of tables and figures")
    return parser


if __name__ == "__main__":
    main()
