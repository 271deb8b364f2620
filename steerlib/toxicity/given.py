"""Toxicity scores that were computed elsewhere, for instance exported from the Perspective API."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from steerlib.toxicity.attributes import ATTRIBUTES, check_texts, match_labels

SUFFIXES = (".csv", ".parquet", ".jsonl")


class GivenScores:
    """Scores looked up by text in a table: column `text` and the six attributes.

    Args:
        path: csv, parquet or jsonl file; further columns are left out.

    Attributes:
        id: the file's name and the start of its sha256.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing, a score is not in [0, 1], or a text has two different scores.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"table of scores {path} does not exist")
        frame = _read(path)
        if "text" not in frame:
            raise ValueError(f"{path.name} has no column 'text'; it has {', '.join(map(str, frame.columns))}")
        labels = match_labels(frame.columns.drop("text"), owner=path.name)
        scores = frame[["text", *labels.values()]].set_axis(["text", *ATTRIBUTES], axis="columns")
        _check(scores, path.name)
        self.path = path
        self.scores = scores.drop_duplicates("text").set_index("text").astype(float)
        with path.open("rb") as file:
            self.id = f"{path.stem}-{hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"

    def __call__(self, texts: Iterable[str]) -> pd.DataFrame:
        """Scores in [0, 1], one row a text in the given order.

        Raises:
            KeyError: a text is not in the table; the first such is named.
        """
        listed = check_texts(texts)
        for row, text in enumerate(listed):
            if text not in self.scores.index:
                raise KeyError(f"{self.path.name} has no scores of the text in row {row}: {text[:80]!r}")
        return self.scores.loc[listed].reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            return pd.DataFrame([json.loads(line) for line in lines if line.strip()])
    # The text "NA" is a text: only an empty score means missing.
    header = pd.read_csv(path, nrows=0).columns
    blank = {column: [""] for column in header if column != "text"}
    return pd.read_csv(path, dtype={"text": str}, keep_default_na=False, na_values=blank)


def _check(scores: pd.DataFrame, name: str) -> None:
    check_texts(scores["text"])
    for attribute in ATTRIBUTES:
        values = pd.to_numeric(scores[attribute], errors="coerce")
        if not values.between(0, 1).all():
            row = int(values.between(0, 1).to_numpy().argmin())
            raise ValueError(
                f"{name}, row {row}: {attribute} is {scores[attribute].iloc[row]!r}, not in [0, 1]"
            )
    differing = scores.drop_duplicates()
    if differing["text"].duplicated().any():
        text = differing.loc[differing["text"].duplicated(), "text"].iloc[0]
        raise ValueError(f"{name}: two rows give different scores of the text {text[:80]!r}")
