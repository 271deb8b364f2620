"""Runs side by side: how far each is, two of them compared, a grid of params, and one packed to be shown again."""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pandas as pd
import yaml
from filelock import FileLock, Timeout

from steerlib import toxicity
from steerlib.evaluation.controls import first_temperature
from steerlib.evaluation.intervals import Interval, cluster_interval, difference_of_two
from steerlib.evaluation.verdict import with_interval
from steerlib.figures import arm_at, kept_toxicity, plot_forest, save
from steerlib.params import BadInput, flat, notebook_parameters, read_params
from steerlib.runner import LOCK, NOTEBOOKS, PARAMS, NotebookFailed, Study, numbered, plan, run_study, state
from steerlib.tables import atomic_path, read_manifest, read_table, results_folder, results_root

ALIKE = ["method", "alpha", "unit", "profile", "family", "vector_user", "control", "variant"]
"""Columns of the arms table by which an arm of one run is that of another."""
PACKED = f"tables figures report notebooks report.html manifest.json {PARAMS} scores.csv replay.yaml".split()
LEFT_OUT = re.compile(r"\..*|.*\.(corrupt|done\.json|(failed|partial)\.ipynb)")
"""What of a run goes into its archive: no vectors, which notebook 02 makes, and nobody's blind choices."""


def all_runs() -> dict[str, Path]:
    """Folders of all runs by name, the latest first."""
    found = {path.parent for name in ("manifest.json", PARAMS) for path in results_root().glob(f"*/{name}")}
    return {folder.name: folder for folder in sorted(found, key=os.path.getmtime, reverse=True)}


def folder_of(run: str) -> Path:
    """Folder of a run that is there; BadInput where it is not."""
    there = all_runs()
    if run not in there:
        raise BadInput(f"no run is called {run!r}; there are {', '.join(there) or 'none'}")
    return there[run]


def going_on(folder: Path) -> bool:
    """Whether a command works at the run now."""
    if not (folder / LOCK).exists():
        return False
    with suppress(Timeout), FileLock(folder / LOCK, timeout=0):
        return False
    return True


def status(study: Study) -> Iterator[str]:
    """Lines on a run: each stage, the answers of its sweep, the last error."""
    folder = results_root() / study.run
    notebooks = folder / "notebooks"
    yield f"run {study.run}: {'going on' if going_on(folder) else 'not going on'}"
    unfinished = False
    for name in study.stages:
        seconds, changed = state(study, name, notebooks)
        unfinished |= seconds is None
        since = f", changed since: {', '.join(changed)}" if changed else ""
        begun = "begun" if (notebooks / f"{name}.partial.ipynb").exists() else "not finished"
        yield f"{name:<24} {begun if seconds is None else f'done {seconds:8.1f} s{since}'}"
    arms, prompts = _table(folder, "arms"), _table(folder, "prompts")
    if len(arms) and len(prompts):
        yield f"{'answers':<24} {_answers(folder, arms, len(prompts), unfinished)}"
    failed = max(notebooks.glob("*.failed.ipynb"), key=os.path.getmtime, default=None)
    if failed:
        cells = json.loads(failed.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        errors = [f"{one['ename']}: {one['evalue']}" for one in outputs if one["output_type"] == "error"]
        said = " ".join([*errors, "lost its kernel"][0].split())
        yield f"{'last error':<24} {failed.name.removesuffix('.failed.ipynb')}: {said}"


def _table(folder: Path, name: str) -> pd.DataFrame:
    """A table of a run; empty where it is not there, or of an edition that had other columns."""
    try:
        return read_table(folder, name)
    except (FileNotFoundError, ValueError):
        return pd.DataFrame()


def _answers(folder: Path, arms: pd.DataFrame, prompts: int, unfinished: bool) -> str:
    """Answers done; while the run is unfinished also of how many at most, per second, and the time left."""
    files = sorted((folder / "tables" / "generations").glob("[!.]*.parquet"), key=os.path.getmtime)
    keys, ours = ["arm_id", "prompt_id", "seed"], [("arm_id", "in", [*arms["arm_id"]])]
    parts = [pd.read_parquet(file, columns=keys, filters=ours) for file in files]
    seeds = len({seed for part in parts for seed in part["seed"]}) or 1
    done = len(pd.concat(parts).drop_duplicates()) if parts else 0
    wanted = prompts * sum(seeds if temperature else 1 for temperature in arms["temperature"])
    words, times = f"{done}{f' of {wanted}' * unfinished}", [*map(os.path.getmtime, files[-10:])]
    recent = sum(map(len, parts[1:][-9:]))  # written after the first of these times
    if unfinished and done < wanted and recent:
        rate = recent / max(times[-1] - times[0], 1e-3)
        words += f", {rate:.2f} per second, {(wanted - done) / rate / 60:.1f} minutes left"
    return words


def one_line(folder: Path) -> str:
    """Date, name, params file, last stage and verdict of a run."""
    manifest, kept = read_manifest(folder), folder / PARAMS
    last = max(manifest, key=lambda stage: manifest[stage]["date"], default="nothing finished")
    date = manifest[last]["date"][:16] if manifest else " " * 16
    file = kept.read_text("utf-8").partition(":")[0].removeprefix("# ") if kept.exists() else "by hand"
    line = f"{date}  {folder.name}  {file}  {last}{', going on' * going_on(folder)}"
    for row in verdicts([folder.name]).head(1).to_dict("records"):
        effect = with_interval(row["difference"], row["low"], row["high"])
        told = f"at {row['alpha']:g}: toxicity {row['change']:+.3f}, minus control {effect}"
        line += f"  {row['method']} {told if row['alpha'] else 'lowers toxicity at no alpha'}"
    return line


def verdicts(runs: Sequence[str]) -> pd.DataFrame:
    """The verdicts of some runs, a row a run and method; runs without one are left out."""
    columns = ["run", "method", "alpha", "change", "difference", "low", "high", "perplexity_ratio", "n"]
    tables = [_table(results_root() / run, "verdict").assign(run=run) for run in runs]
    tables = [table[columns] for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def settings(folder: Path) -> dict[str, Any]:
    """All parameters of a run, defaults of its notebooks included, and its commit, machine and versions."""
    given = read_params(folder / PARAMS)
    names = given.pop("notebooks", [file.stem for file in numbered(NOTEBOOKS)])
    files = [file for file in (NOTEBOOKS / f"{name}.ipynb" for name in names) if file.exists()]
    taken = [flat(notebook_parameters(file)) for file in files]
    found = {name: one.default for some in taken for name, one in some.items()} | given
    for record in read_manifest(folder).values():
        found |= {key: record[key] for key in ("commit", "machine")} | record["versions"]
    return {key: value for key, value in found.items() if key != "run"}


def compare(first: str, second: str) -> tuple[pd.DataFrame, pd.DataFrame, Path]:
    """Settings in which two runs differ; the difference of effects of each arm in both; where they are written.

        effect = toxicity of the arm's answers - that of the base's, test prompts;   value = second - first

    Paired where prompts and seeds are shared, and then of those alone; else `difference_of_two` samples. Intervals are
    clustered by user. Each run's toxicity is by its own scorer.
    """
    folders = [folder_of(first), folder_of(second)]
    one, other = map(settings, folders)
    keys = [key for key in one | other if one.get(key) != other.get(key)]
    differing = pd.DataFrame({"setting": keys, first: map(one.get, keys), second: map(other.get, keys)})
    folder, effects, rows = results_folder(f"{first}-against-{second}"), [*map(_effects, folders)], []
    for arm in effects[0].columns.intersection(effects[1].columns):
        own = [effect[arm].dropna() for effect in effects]
        apart = [_interval(values, within=(-1, 1)) for values in own]
        shared = own[0].index.intersection(own[1].index)
        value, moved = difference_of_two(*apart), own[1][shared] - own[0][shared]
        if len(shared):
            value = _interval(moved, within=(-2, 2))._replace(how="paired")
            if not moved.any():  # the same answers: no sample of anything
                value = value._replace(low=np.nan, high=np.nan, how="equal")
        told = [with_interval(*effect[:3]) for effect in (*apart, value)]
        told = dict(zip((first, second, "difference"), told, strict=True))
        rows.append(dict(zip(ALIKE, arm, strict=True)) | told | value._asdict())
    differing.to_csv(folder / "settings.csv", index=False)
    arms = pd.DataFrame(rows)
    if rows:
        arms = arms.assign(name=[arm_at(arm) for _, arm in arms.iterrows()], metric="toxicity_difference")
        figure = plot_forest(arms, what="second run minus first, test prompts")
        save(figure, "compare", folder, data=arms)
    return differing, arms, folder


def _effects(folder: Path) -> pd.DataFrame:
    """Toxicity of each test answer minus the base's, `(answers, arms)`; of scored arms that `ALIKE` tells apart."""
    arms = first_temperature(read_table(folder, "arms")).drop_duplicates(ALIKE, keep=False)
    prompts = read_table(folder, "prompts").query("split == 'test'")[["prompt_id", "prompt", "user_id"]]
    answers = read_table(folder, "generations").merge(arms[["arm_id", *ALIKE]], on="arm_id")
    answers = answers.merge(prompts, on="prompt_id")
    answers["toxicity"] = answers["text"].map(kept_toxicity(folder, answers["text"]))
    wide = answers.pivot(index=[*prompts, "seed"], columns=ALIKE, values="toxicity")
    base = wide.columns.get_level_values("control") == "base"
    return wide.loc[:, ~base].sub(wide.loc[:, base].iloc[:, 0], axis=0).dropna(axis=1, how="all")


def _interval(values: pd.Series, *, within: tuple[float, float]) -> Interval:
    by_prompt = values.groupby(["prompt_id", "user_id"]).mean()
    return cluster_interval(by_prompt, by_prompt.index.get_level_values("user_id"), within=within)


def grid(params_file: Path, values: Mapping[str, list], *, notebooks: Path) -> tuple[pd.DataFrame, Path]:
    """One run for each combination of the values, and the table of all their verdicts with its file.

    All are checked before the first starts. The same command goes on where it was stopped. A run that fails is named
    at the end, in NotebookFailed, when the others are done.
    """
    start = str(read_params(params_file).get("run", params_file.stem))
    cells = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    cells = [{"run": f"{start}.{_words(cell)}"} | cell for cell in cells]
    studies = [plan(params_file, notebooks=notebooks, **cell) for cell in cells]
    failures = []
    for number, study in enumerate(studies, 1):
        print(f"{number} of {len(cells)}: {study.run}")
        try:
            run_study(study)
        except NotebookFailed as failure:
            failures.append(f"{study.run}: {failure}")
    found = verdicts([study.run for study in studies]).rename(columns={"alpha": "chosen alpha"})
    table = pd.DataFrame(cells).merge(found, on="run", how="left")
    file = results_folder(f"{start}-grid") / "grid.csv"
    with atomic_path(file) as partial:
        table.to_csv(partial, index=False)
    if failures:
        raise NotebookFailed(f"{len(failures)} of {len(cells)} failed; {'; '.join(failures)}; table: {file}")
    return table, file


def _words(cell: Mapping[str, Any]) -> str:
    """The values of a cell as far as a folder's name holds them, and a digest of them."""
    text = " ".join(f"{key} {value}" for key, value in cell.items())
    return f"{re.sub(r'[^a-zA-Z0-9.]+', '-', text)[:50].strip('-.')}.{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def archive(run: str, file: Path) -> int:
    """Pack a run into a zip, or its scores alone into a .csv or .parquet that "replay:<file>" reads; files or scores.

    The zip has a folder of the run's name with `PACKED`, among it `scores.csv`, by text hash, and `replay.yaml`,
    with which notebooks 05 and 06 run without a model. The scores are those of notebook 04's scorer. BadInput: no
    scores by it, or another kind of file.
    """
    folder = folder_of(run)
    manifest, scores = read_manifest(folder), folder / "scores.csv"
    scorer = manifest.get("04_evaluation", {}).get("params", {}).get("scorer")
    try:
        count = toxicity.archive(folder, scores if file.suffix == ".zip" else file, scorer=scorer)
    except ValueError as failure:
        raise BadInput(str(failure)) from None
    if file.suffix != ".zip":
        return count
    shown = [name for name in ("05_figures", "06_alpha_explorer") if name in manifest]
    taken = {key for name in shown for key in notebook_parameters(NOTEBOOKS / f"{name}.ipynb")}
    again = {key: value for key, value in read_params(folder / PARAMS).items() if key in taken}
    again |= {"run": run, "notebooks": shown}
    again |= {"model": "none", "scorer": f"replay:{scores.name}"} if "scorer" in taken else {}
    if shown:
        (folder / "replay.yaml").write_text(yaml.safe_dump(again, allow_unicode=True), encoding="utf-8")
    found = [path for name in PACKED for path in (folder / name, *sorted((folder / name).rglob("*")))]
    found = [path for path in found if path.is_file() and not LEFT_OUT.fullmatch(path.name)]
    with atomic_path(file) as partial, ZipFile(partial, "w", ZIP_DEFLATED) as packed:
        for path in found:
            packed.write(path, f"{run}/{path.relative_to(folder)}")
    return len(found)
