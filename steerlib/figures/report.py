"""The report of a run: one file that opens anywhere, offline, without script, on a phone or on paper.

Everything in it is read from the run's folder and from `published/`: numbers of the three studies, each with what a
reader must know before comparing. Reductions of the CAA study are recomputed from its columns of errors, against the
base on the same GPU. SDA's abstract mixes means over all rows and over refined rows, each time the larger.

All text is escaped by the template.
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

from steerlib.evaluation.controls import with_controls
from steerlib.evaluation.verdict import verdict_shown
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

    Figures are stems of saved ones; `examples_html` escapes the examples. A FileNotFoundError where a figure was not
    saved, or the run has no verdict.
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
    # Said once above the table, or in the sentences.
    hidden = [name for name in tables["verdict"] if name.startswith(("toxicity, base", "KL"))]
    loader = PackageLoader("steerlib.figures", package_path="")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = page.get_template("report.html.j2").render(
        run=folder.name,
        params=params,
        sentences=[_parts(sentence) for sentence in dict.fromkeys(verdict["sentence"])],
        base=verdict["toxicity_base"].iloc[0],
        verdict=tables["verdict"].drop(columns=hidden),
        pictures=[_picture(folder / "figures" / f"{name}.png") for name in figures],
        examples=Markup(examples.data),
        settings=list(_settings(folder, manifest)),
        data=list(_data(folder)),
        users=list(_users(folder, verdict)),
        published=tables["published"],
        provenance=list(_provenance(folder, manifest)),
        params_file=kept.read_text(encoding="utf-8") if kept.exists() else "",
    )
    with atomic_path(folder / "report.html") as partial:
        partial.write_text(text, encoding="utf-8")
    return folder / "report.html"


def _parts(sentence: str) -> list[str]:
    """What a sentence of the verdict says, one statement each."""
    return sentence.replace(". Operating range", "; operating range").split("; ")


def _picture(path: Path) -> tuple[str, str]:
    """A saved figure as base64, and its caption."""
    if not path.exists():
        raise FileNotFoundError(f"figure {path.stem!r} is not in {path.parent}: save it first")
    with Image.open(path) as image:
        caption = image.info.get("Description", path.stem)
    return base64.b64encode(path.read_bytes()).decode("ascii"), caption


def _settings(folder: Path, manifest: Mapping[str, Mapping]) -> Iterator[pd.DataFrame]:
    """Every parameter that a notebook recorded, and the values of the columns of the arms table that are no hashes."""
    for stage, record in sorted(manifest.items()):
        rows = [(key, str(value)) for key, value in record["params"].items() if key != "source"]
        yield pd.DataFrame(rows, columns=[stage, "value"])
    arms = read_table(folder, "arms").drop(columns=["arm_id", "contexts", "vector"])
    values = [", ".join(str(value) for value in arms[column].unique() if value != "") for column in arms]
    yield pd.DataFrame({"setting of the arms": arms.columns, "values": values})


def _data(folder: Path) -> Iterator[pd.DataFrame]:
    """How many prompts, users and rows there are."""
    prompts = read_table(folder, "prompts").groupby(["split", "category"])
    yield prompts.agg(prompts=("prompt_id", "size"), users=("user_id", "nunique")).reset_index()
    names = [name for name in ("ratings", "pairs", "generations") if has_table(folder, name)]
    yield pd.DataFrame({"table": names, "rows": [len(read_table(folder, name)) for name in names]})


def _users(folder: Path, verdict: pd.DataFrame) -> Iterator[tuple[object, str, pd.DataFrame]]:
    """Each test user, the user's profile in words, and the answers under the own and a shuffled profile."""
    personal = verdict[verdict["own_minus_shuffled"].notna()]
    if personal.empty or not has_table(folder, "profiles"):  # prompts of a data set have no users
        return
    arms, prompts = read_table(folder, "arms"), read_table(folder, "prompts").query("split == 'test'")
    beside = with_controls(personal.head(1), arms)
    twin = beside[beside["control"] == "shuffled_profile"]
    shown = pd.concat([arms[arms["control"] == "base"].head(1), beside.head(1), twin])
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
        yield user, ", ".join(f"{label(name)} {value:.0%}" for name, value in percentiles), table


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


FOLDER = Path(__file__).with_name("published")
STUDIES = {"STEER-Away": "steer_away", "CAA on PRISM": "caa_prism", "SDA": "sda"}


def published() -> pd.DataFrame:
    """One row a published number: system, setting, alpha, metric, value, low, high, unit, caveat, source."""
    tables = {name: pd.read_csv(FOLDER / f"{stem}.csv") for name, stem in STUDIES.items()}
    rows = pd.concat(tables, names=["system"]).reset_index("system").reset_index(drop=True)
    return rows.fillna({"unit": "", "caveat": ""})


def published_margins() -> pd.DataFrame:
    """SDA's table 1, net win margins in per cent: comparison, rows (full or refined), model, set, dimension, value."""
    return pd.read_csv(FOLDER / "sda_margins.csv")
