"""Multiple-choice questions: a small set of our own, or MMLU from a folder or the hub; sampling and rendering.

The embedded set was written for this project and is not MMLU; a result on it is never to be called one.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from steerlib.profiles.sources import hub_file, read_rows
from steerlib.tables import SCHEMA

LETTERS = ("A", "B", "C", "D")
DEMO = Path(__file__).with_name("demo") / "questions.jsonl"
MMLU, MMLU_REVISION = "cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe"
HEADER = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
COLUMNS = list(SCHEMA["questions"].columns)


def read_questions(source: str = "demo", *, split: str = "test") -> pd.DataFrame:
    """Questions with four options each.

    Args:
        source: "demo", our own 60 questions in six subjects (and one dev question each); the hub id "cais/mmlu",
            at a pinned revision; or a folder with `<split>/<subject>_<split>.csv`, either without header
            (question, A, B, C, D, letter) or with the header question, choice0..choice3, answer 0..3.
        split: "test", or "dev" for the shots.

    Returns:
        question_id (subject/split/row), subject, question, A, B, C, D, answer (a letter).

    Raises:
        FileNotFoundError: no such folder or split, or the hub cannot be reached; the message says what to do.
        ValueError: unknown split, or a row without four options and an answer, naming file and row.
    """
    if split not in ("test", "dev"):
        raise ValueError(f"split {split!r} is neither 'test' nor 'dev'")
    if source == "demo":
        rows = read_rows(DEMO)
        return rows.loc[rows["split"] == split, COLUMNS].astype(str).reset_index(drop=True)
    if source == MMLU:
        path = hub_file(MMLU, f"all/{split}-00000-of-00001.parquet", revision=MMLU_REVISION)
        return _from_hub(pd.read_parquet(path), split)
    files = sorted((Path(source) / split).glob(f"*_{split}.csv"))
    if not files:
        raise FileNotFoundError(
            f"questions {source!r}: no {Path(source) / split}/*_{split}.csv; give 'demo', {MMLU!r} or MMLU's folder"
        )
    return pd.DataFrame([row for file in files for row in _from_csv(file, split)], columns=COLUMNS)


def _from_csv(file: Path, split: str) -> list[list[str]]:
    # As csv, not as a data frame: options such as "None" and "NA" are text.
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines))
    first = 1 if rows and rows[0] == HEADER else 0
    subject = file.stem.removesuffix(f"_{split}")
    return [
        _row(row, subject, split, i, f"{file.name}, row {i + 1 + first}")
        for i, row in enumerate(rows[first:])
    ]


def _from_hub(frame: pd.DataFrame, split: str) -> pd.DataFrame:
    columns = (frame["question"], frame["choices"], frame["answer"], frame["subject"])
    number = frame.groupby("subject").cumcount()
    rows = [
        _row(
            [str(question), *map(str, options), str(answer)],
            str(subject),
            split,
            i,
            f"{MMLU}, {subject} row {i}",
        )
        for question, options, answer, subject, i in zip(*columns, number, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(cells: Sequence[str], subject: str, split: str, index: int, where: str) -> list[str]:
    if len(cells) != 6:
        raise ValueError(f"{where}: question, four options and answer wanted, not {len(cells)} values")
    answer = cells[5].strip()
    letter = LETTERS[int(answer)] if answer in ("0", "1", "2", "3") else answer
    if letter not in LETTERS:
        raise ValueError(f"{where}: answer {answer!r} is neither a letter A to D nor a number 0 to 3")
    return [f"{subject}/{split}/{index}", subject, *cells[:5], letter]


def sample_questions(questions: pd.DataFrame, n: int, *, seed: int = 0) -> pd.DataFrame:
    """n questions spread over the subjects as evenly as they allow.

    Args:
        questions: the questions table; the order of its rows does not matter.
        n: how many; all of them where there are not more.
        seed: of the draw within each subject and of which subjects get one more.

    Returns:
        The drawn rows, in the order of their ids.

    Raises:
        ValueError: n below 1, or no questions.
    """
    if n < 1 or questions.empty:
        raise ValueError(f"cannot draw {n} of {len(questions)} questions")
    rng = np.random.default_rng(seed)
    ordered = questions.sort_values("question_id").reset_index(drop=True)
    shuffled = ordered.iloc[rng.permutation(len(ordered))]
    subjects = rng.permutation(np.sort(ordered["subject"].unique()))
    turn = shuffled.groupby("subject").cumcount()
    place = shuffled["subject"].map({subject: i for i, subject in enumerate(subjects)})
    drawn = shuffled.iloc[np.lexsort([place, turn])[:n]]
    return drawn.sort_index().reset_index(drop=True)


def shots_for(subject: str, dev: pd.DataFrame, k: int) -> pd.DataFrame:
    """The first k dev questions of a subject, in file order, as the reference takes them.

    Raises:
        ValueError: k below 0, or the subject has fewer.
    """
    own = dev[dev["subject"] == subject]
    if not 0 <= k <= len(own):
        raise ValueError(f"{k} shots wanted, {subject!r} has {len(own)} dev questions")
    return own.head(k)


def question_prompt(question: pd.Series, shots: pd.DataFrame | None = None) -> str:
    """A question as a model reads it, up to "Answer:".

    Args:
        question: a row of the questions table.
        shots: rows that go before it with their answers, see `shots_for`; none is zero-shot.

    Returns:
        The text, ending in "Answer:"; the next token is " A", " B", " C" or " D".

    Source: Hendrycks et al., MMLU, ICLR 2021 (evaluation code), with one space before the subject where that code
    has two, as lm-evaluation-harness.
    """
    subject = str(question["subject"]).replace("_", " ")
    opening = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    before = [] if shots is None else [f"{_asked(shot)} {shot['answer']}\n\n" for _, shot in shots.iterrows()]
    return opening + "".join(before) + _asked(question)


def _asked(question: pd.Series) -> str:
    options = "".join(f"\n{letter}. {question[letter]}" for letter in LETTERS)
    return f"{str(question['question']).strip()}{options}\nAnswer:"
