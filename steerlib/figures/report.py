"""The report of a run: one file that opens anywhere, offline, without script, on a phone or on paper.

Everything in it is read from the run's folder. All text is escaped: by the template, or by `DataFrame.to_html`.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from IPython.display import HTML
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from steerlib.evaluation.verdict import verdict_shown
from steerlib.figures.responses import published
from steerlib.figures.style import arm_at, label
from steerlib.tables import atomic_path, has_table, read_manifest, read_table
from steerlib.toxicity import text_sha

USERS = 24
"""Users who have a page of their own at most, so that the file stays small."""


def kept_toxicity(folder: Path, texts: Iterable[str]) -> dict[str, float]:
    """Toxicity of those of the texts that the run's scorer has scored, by text; nothing is scored here."""
    scores = read_table(folder, "scores")
    params = read_manifest(folder).get("04_evaluation", {}).get("params", {})
    scores = scores[scores["scorer"] == params.get("scorer", scores["scorer"].iloc[-1])]
    known = dict(zip(scores["text_sha"], scores["toxicity"], strict=True))
    shas = {text: text_sha(text) for text in texts}
    return {text: known[sha] for text, sha in shas.items() if sha in known}


def write_report(folder: Path, *, figures: Sequence[str], examples: HTML) -> Path:
    """Write `report.html` of a run, whole or not at all, and its tables as CSV and LaTeX in `report/`; its path.

    Args:
        folder: the run's folder with its tables, figures and manifest.
        figures: stems of saved figures to show, three or so.
        examples: answers side by side, from `examples_html`, which escapes.

    Raises:
        FileNotFoundError: a figure was not saved, or the run has no verdict.
    """
    manifest, verdict, kept = read_manifest(folder), read_table(folder, "verdict"), folder / "params.yaml"
    # Where two notebooks say the same, the earlier one says what was run.
    records = reversed(manifest.values())
    params = {key: value for record in records for key, value in record["params"].items()}
    tables = {"verdict": verdict_shown(verdict), "published": published()}
    for name, table in tables.items():
        (folder / "report").mkdir(exist_ok=True)
        with atomic_path(folder / "report" / f"{name}.csv") as partial:
            table.to_csv(partial, index=False, lineterminator="\n")
        with atomic_path(folder / "report" / f"{name}.tex") as partial:
            table.to_latex(partial, index=False, escape=True, na_rep="--")
    loader = PackageLoader("steerlib.figures", package_path="")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = page.get_template("report.html.j2").render(
        run=folder.name,
        params=params,
        sentences=list(dict.fromkeys(verdict["sentence"])),
        verdict=_html(tables["verdict"]),
        pictures=[_picture(folder / "figures" / f"{name}.png") for name in figures],
        examples=Markup(examples.data),
        settings=[_html(table) for table in _settings(folder, manifest)],
        data=[_html(table) for table in _data(folder)],
        users=list(_users(folder, verdict)),
        published=_html(tables["published"]),
        provenance=[_html(table) for table in _provenance(folder, manifest)],
        params_file=kept.read_text(encoding="utf-8") if kept.exists() else "",
    )
    with atomic_path(folder / "report.html") as partial:
        partial.write_text(text, encoding="utf-8")
    return folder / "report.html"


def _html(frame: pd.DataFrame) -> Markup:
    with pd.option_context("display.max_colwidth", None):
        text = frame.to_html(
            index=False, escape=True, border=0, na_rep="\u2013", float_format="{:.4g}".format
        )
    return Markup(text)


def _picture(path: Path) -> tuple[str, str]:
    """A saved figure as base64, and its caption."""
    if not path.exists():
        raise FileNotFoundError(f"figure {path.stem!r} is not in {path.parent}: save it first")
    with Image.open(path) as image:
        caption = image.info.get("Description", path.stem)
    return base64.b64encode(path.read_bytes()).decode("ascii"), caption


def _settings(folder: Path, manifest: Mapping[str, Mapping]) -> Iterator[pd.DataFrame]:
    """Every parameter that a notebook recorded, and every value of every column of the arms table."""
    for stage, record in sorted(manifest.items()):
        rows = [(key, str(value)) for key, value in record["params"].items()]
        yield pd.DataFrame(rows, columns=[stage, "value"])
    arms = read_table(folder, "arms").drop(columns="arm_id")
    values = [", ".join(str(value) for value in arms[column].unique() if value != "") for column in arms]
    yield pd.DataFrame({"setting of the arms": arms.columns, "values": values})


def _data(folder: Path) -> Iterator[pd.DataFrame]:
    """How many prompts, users and rows there are."""
    prompts = read_table(folder, "prompts").groupby(["split", "category"])
    yield prompts.agg(prompts=("prompt_id", "size"), users=("user_id", "nunique")).reset_index()
    names = [name for name in ("ratings", "pairs", "generations") if has_table(folder, name)]
    yield pd.DataFrame({"table": names, "rows": [len(read_table(folder, name)) for name in names]})


def _users(folder: Path, verdict: pd.DataFrame) -> Iterator[tuple[object, str, Markup]]:
    """Each test user, the user's profile in words, and the answers under the own and a shuffled profile."""
    personal = verdict[verdict["own_minus_shuffled"].notna()]
    if personal.empty:
        return
    arms, prompts = read_table(folder, "arms"), read_table(folder, "prompts").query("split == 'test'")
    own = arms[arms["arm_id"] == personal["arm_id"].iloc[0]].iloc[0]
    same = (
        "method == @own.method and alpha == @own.alpha and family == @own.family and variant == @own.variant"
    )
    twin = arms.query(f"control == 'shuffled_profile' and {same}")
    shown = pd.concat([arms[arms["control"] == "base"].head(1), own.to_frame().T, twin.head(1)])
    answers = read_table(folder, "generations")
    answers = answers[answers["seed"] == answers["seed"].min()].set_index(["arm_id", "prompt_id"])["text"]
    toxicity = kept_toxicity(folder, answers.loc[list(shown["arm_id"])])
    profiles = read_table(folder, "profiles").set_index("user_id")
    for user, asked in list(prompts.groupby("user_id", sort=False))[:USERS]:
        table = asked[["prompt", "accepted"]].copy()
        for _, arm in shown.iterrows():
            texts = [answers.get((arm["arm_id"], prompt), "") for prompt in asked["prompt_id"]]
            scored = [f" [toxicity {toxicity[text]:.2f}]" if text in toxicity else "" for text in texts]
            table[arm_at(arm)] = [text + score for text, score in zip(texts, scored, strict=True)]
        own_profile = profiles.loc[[user]].sort_values("percentile", ascending=False)
        percentiles = zip(own_profile["attribute"], own_profile["percentile"], strict=True)
        yield user, ", ".join(f"{label(name)} {value:.0%}" for name, value in percentiles), _html(table)


def _provenance(folder: Path, manifest: Mapping[str, Mapping]) -> Iterator[pd.DataFrame]:
    """When, from which commit, by which command, on what, how long, in which versions; sha256 of every table."""
    columns = ["notebook", "date", "commit", "command", "machine", "seconds"]
    stages = pd.DataFrame(manifest.values(), index=pd.Index(manifest, name="notebook")).reset_index()
    yield stages.reindex(columns=columns)
    yield pd.DataFrame(list(stages["versions"]), index=stages["notebook"]).reset_index()
    digests = {}
    for table in sorted((folder / "tables").iterdir()):
        parts = sorted(table.glob("[!.]*.parquet"))
        digests[table.name] = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    yield pd.DataFrame(digests.items(), columns=["table", "sha256"])
