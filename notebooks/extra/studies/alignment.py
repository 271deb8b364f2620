"""The five sets of prompts that SDA is evaluated on, where a prompt's category is the dimension to align."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from steerlib.judges import DIMENSIONS
from steerlib.profiles.sources import (
    file_label,
    find_file,
    hash_order,
    hub_file,
    in_hash_order,
    read_rows,
    round_robin,
)
from steerlib.tables import SCHEMA, check_table

SUMMARY_TASK = (
    "Read this conversation between two people and sum up what was said in one or two sentences.\n\n{}"
)
CONVERTED = "refs/convert/parquet"  # the hub's own parquet copy of a set that is kept in another form


class AlignmentSet(NamedTuple):
    """A set's dimensions, its file in the authors' folder, where it lies on the hub, and what its columns are called.

    A tuple of column names is tried from the left; it is empty where the set has no such column.
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
        ("facebook/empathetic_dialogues", "default/test/0000.parquet", CONVERTED),
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
        ("PKU-Alignment/BeaverTails-Evaluation", "default/test/0000.parquet", CONVERTED),
        prompt=("prompt",),
        category=("category",),
    ),
    "harmfulqa": AlignmentSet(
        ("helpfulness", "harmlessness"),
        "harmfulqa.jsonl",
        ("declare-lab/HarmfulQA", "default/train/0000.parquet", CONVERTED),
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
    draw takes one of each of a set's own categories, then a second of each; a larger draw contains the smaller.

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
    for what, given, known in (("set", sets, SETS), ("dimension", dimensions, DIMENSIONS)):
        for unknown in set(given) - set(known):
            raise ValueError(f"{what} {unknown!r} is none of {', '.join(known)}")
    asked = {name: [one for one in SETS[name].dimensions if one in dimensions] for name in sets}
    if n_per_set < 1 or not any(asked.values()):
        raise ValueError(f"{n_per_set} prompts of {list(sets)} for {list(dimensions)}: nothing to draw")
    drawn, counts = [], {}
    for name, wanted in asked.items():
        if not wanted:
            continue
        one = SETS[name]
        dataset, file, revision = one.hub
        local = str(source) != "hub"
        path = find_file(source, one.file) if local else hub_file(dataset, file, revision=revision)
        texts = _texts(read_rows(path), name, path.name)
        once = texts.drop_duplicates("prompt")
        rows = in_hash_order(once, "user_id", "alignment", seed)
        nth, place = (
            rows.groupby("prompt_category").cumcount(),
            pd.factorize(rows["prompt_category"], sort=True)[0],
        )
        rows = round_robin(
            rows.assign(split=((nth + place) % 2).map({0: "dev", 1: "test"})), "prompt_category"
        )
        drawn += [_of_dimension(rows, one, seed).head(n_per_set) for one in wanted]
        counts |= {f"rows of {file_label(path)}": len(texts), f"repeated in {name}": len(texts) - len(once)}
        counts |= {f"prompts drawn, {name}, {one}": min(n_per_set, len(rows)) for one in wanted}
    prompts = pd.concat(drawn, ignore_index=True)
    report = pd.DataFrame({"what": list(counts), "count": list(counts.values())})
    return check_table("prompts", prompts[list(SCHEMA["prompts"].columns)]), report


def _texts(rows: pd.DataFrame, name: str, file: str) -> pd.DataFrame:
    """user_id, prompt, prompt_category and accepted of each row, under the names of the prompts table."""
    columns = {
        "prompt": SETS[name].prompt,
        "prompt_category": SETS[name].category,
        "accepted": SETS[name].accepted,
    }
    texts = pd.DataFrame({"user_id": [f"{name}-{number:04d}" for number in range(1, len(rows) + 1)]})
    for ours, theirs in columns.items():
        found = [column for column in theirs if column in rows]
        if theirs and not found:
            raise ValueError(f"{file}: no column {' or '.join(theirs)}; it has {', '.join(map(str, rows))}")
        texts[ours] = rows[found[0]].fillna("").astype(str).tolist() if found else ""
        empty = texts[ours].str.strip() == ""
        if found and empty.any():
            raise ValueError(f"{file}, row {int(empty.argmax()) + 1}: the column {found[0]!r} is empty")
    if name == "empathetic":  # the hub's copy writes its commas so
        texts["prompt"] = texts["prompt"].str.replace("_comma_", ",")
    if name == "dialogsum":
        texts["prompt"] = texts["prompt"].map(SUMMARY_TASK.format)
    return texts


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
