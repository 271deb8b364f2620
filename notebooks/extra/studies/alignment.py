"""The five sets of prompts that SDA is evaluated on, where a prompt's category is the dimension to align."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from steerlib.judges.base import DIMENSIONS
from steerlib.profiles.sources import file_label, hash_order, hub_file, read_rows
from steerlib.tables import SCHEMA, check_table

SUMMARY_TASK = (
    "Read this conversation between two people and sum up what was said in one or two sentences.\n\n{}"
)

_CONVERTED = "refs/convert/parquet"  # the hub's own parquet copy of a set that is kept in another form


@dataclass(frozen=True)
class AlignmentSet:
    """Where a set lies and which of its columns are what; a tuple of names is tried from the left.

    Attributes:
        dimensions: that its answers are judged on.
        file: in the authors' folder.
        hub: data set, file and revision.
        prompt, category, accepted: columns; an empty tuple where the set has none.
    """

    dimensions: tuple[str, ...]
    file: str
    hub: tuple[str, str, str]
    prompt: tuple[str, ...]
    category: tuple[str, ...]
    accepted: tuple[str, ...] = ()


SETS: Mapping[str, AlignmentSet] = {
    "empathetic": AlignmentSet(
        ("empathy",),
        "empathy_test.jsonl",
        ("facebook/empathetic_dialogues", "default/test/0000.parquet", _CONVERTED),
        prompt=("prompt",),
        category=("category", "context"),
    ),
    "dialogsum": AlignmentSet(
        ("reasoning",),
        "dialogsum_test.jsonl",
        ("knkarthick/dialogsum", "test.csv", "main"),
        prompt=("dialogue",),
        category=(),
        accepted=("summary1", "summary"),
    ),
    "beavertails": AlignmentSet(
        ("helpfulness", "harmlessness"),
        "beaver_tails_dataset.json",
        ("PKU-Alignment/BeaverTails-Evaluation", "default/test/0000.parquet", _CONVERTED),
        prompt=("prompt",),
        category=("category",),
    ),
    "harmfulqa": AlignmentSet(
        ("helpfulness", "harmlessness"),
        "harmfulqa.jsonl",
        ("declare-lab/HarmfulQA", "default/train/0000.parquet", _CONVERTED),
        prompt=("question",),
        category=("topic",),
    ),
    "truthfulqa": AlignmentSet(
        ("honesty",),
        "TruthfulQA.jsonl",
        ("truthfulqa/truthful_qa", "generation/validation-00000-of-00001.parquet", "main"),
        prompt=("Question", "question"),
        category=("Category", "category"),
        accepted=("Best Answer", "best_answer"),
    ),
}


def alignment_prompts(
    source: str | Path = "hub",
    *,
    n_per_set: int,
    sets: Sequence[str] = tuple(SETS),
    dimensions: Sequence[str] = DIMENSIONS,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Prompts of the alignment sets, half dev and half test, each standing for a user of its own.

    A prompt of a set with two dimensions has a row for each, of one user, so that intervals know them as one. The
    draw goes round a set's own categories as long as they last, and a larger draw has the smaller within it.

    Args:
        source: "hub", or a folder with the files of the authors' repository (`AlignmentSet.file`).
        n_per_set: prompts wanted of each set; all of it where it has fewer.
        sets: names in `SETS`.
        dimensions: those wanted; a set without any of them is left out.
        seed: of the draw and of the shuffled dimensions.

    Returns:
        prompts: table `prompts`. category is the dimension, prompt_category the set's own ("" for DialogSum, which
            has free topics), accepted the reference answer ("" where a set has none).
        report: what, count; names each file with its SHA-256.

    Raises:
        FileNotFoundError: a file is not in the folder, or the hub cannot be reached.
        ValueError: an unknown set or dimension, nothing wanted, or a row without a column; file and row are named.

    Source: SDA, experimental set-up; sizes and files as in the authors' repository. The dialogues are put as a task
    in our own words. On the hub EmpatheticDialogues has 32 emotions and HarmfulQA 1,960 questions, of which the
    authors drew 640 and 700; our draw there is not theirs.
    """
    _check(n_per_set, sets, dimensions)
    drawn, counts = [], {}
    for name in sets:
        wanted = [one for one in SETS[name].dimensions if one in dimensions]
        if not wanted:
            continue
        path = _find(source, SETS[name])
        texts = _texts(_rows(path), name, path.name)
        once = texts.drop_duplicates("prompt")
        rows = _round_robin(once, seed)
        drawn += [_of_dimension(rows, one, seed).head(n_per_set) for one in wanted]
        counts |= {f"rows of {file_label(path)}": len(texts), f"repeated in {name}": len(texts) - len(once)}
        counts |= {f"prompts drawn, {name}, {one}": min(n_per_set, len(rows)) for one in wanted}
    prompts = pd.concat(drawn, ignore_index=True)
    report = pd.DataFrame({"what": list(counts), "count": list(counts.values())})
    return check_table("prompts", prompts[list(SCHEMA["prompts"].columns)]), report


def _check(n_per_set: int, sets: Sequence[str], dimensions: Sequence[str]) -> None:
    for what, given, known in (("set", sets, SETS), ("dimension", dimensions, DIMENSIONS)):
        unknown = [one for one in given if one not in known]
        if unknown:
            raise ValueError(f"{what} {unknown[0]!r} is none of {', '.join(known)}")
    if n_per_set < 1:
        raise ValueError(f"n_per_set must be 1 or more, not {n_per_set}")
    if not any(one in dimensions for name in sets for one in SETS[name].dimensions):
        raise ValueError(
            f"none of the sets {', '.join(sets)} is for any of the dimensions {', '.join(dimensions)}"
        )


def _find(source: str | Path, one: AlignmentSet) -> Path:
    if str(source) == "hub":
        dataset, file, revision = one.hub
        try:
            return hub_file(dataset, file, revision=revision)
        except FileNotFoundError as failure:
            raise FileNotFoundError(
                f"{dataset} is neither in the hub's cache nor to be had from it; name a folder with {one.file},"
                " as in the authors' repository"
            ) from failure
    path = Path(source) / one.file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: the folder must have the authors' {one.file}")
    return path


def _rows(path: Path) -> pd.DataFrame:
    # One of the authors' files is of JSON lines whatever its ending says.
    return pd.read_json(path, lines=True, dtype="object") if path.suffix == ".json" else read_rows(path)


def _texts(rows: pd.DataFrame, name: str, file: str) -> pd.DataFrame:
    """user_id, prompt, prompt_category and accepted of each row, under the names of the prompts table."""
    one = SETS[name]
    texts = pd.DataFrame(
        {
            "user_id": [f"{name}-{number:04d}" for number in range(1, len(rows) + 1)],
            "prompt": _column(rows, one.prompt, file),
            "prompt_category": _column(rows, one.category, file),
            "accepted": _column(rows, one.accepted, file),
        }
    )
    empty = texts["prompt"].str.strip() == ""
    if empty.any():
        raise ValueError(f"{file}, row {int(empty.argmax()) + 1}: the column {one.prompt[0]!r} is empty")
    if name == "empathetic":  # the hub's copy writes its commas so
        texts["prompt"] = texts["prompt"].str.replace("_comma_", ",")
    if name == "dialogsum":
        texts["prompt"] = texts["prompt"].map(SUMMARY_TASK.format)
    return texts


def _column(rows: pd.DataFrame, names: tuple[str, ...], file: str) -> list[str]:
    if not names:
        return [""] * len(rows)
    found = next((name for name in names if name in rows), None)
    if found is None:
        raise ValueError(
            f"{file}: no column {' or '.join(map(repr, names))}; it has {', '.join(map(str, rows))}"
        )
    missing = rows[found].isna()
    if missing.any():
        raise ValueError(f"{file}, row {int(missing.argmax()) + 1}: no {found!r}")
    return rows[found].astype(str).tolist()


def _round_robin(texts: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One of each category, then a second of each, at random within a category; by turns of dev and test."""
    place = {one: index for index, one in enumerate(hash_order(texts["user_id"], "alignment", seed))}
    rows = texts.assign(place=texts["user_id"].map(place)).sort_values("place")
    nth = rows.groupby("prompt_category").cumcount()
    parity = (nth + pd.factorize(rows["prompt_category"], sort=True)[0]) % 2
    rows = rows.assign(nth=nth, split=parity.map({0: "dev", 1: "test"}))
    return rows.sort_values(["nth", "place"])


def _of_dimension(rows: pd.DataFrame, dimension: str, seed: int) -> pd.DataFrame:
    others = [one for one in DIMENSIONS if one != dimension]
    order = hash_order(rows["user_id"], "shuffled", dimension, seed)
    shuffled = {one: others[index % len(others)] for index, one in enumerate(order)}
    return rows.assign(
        prompt_id=rows["user_id"] + ":" + dimension,
        conversation_id=rows["user_id"],
        category=dimension,
        shuffled_category=rows["user_id"].map(shuffled),
        history="",
    )
