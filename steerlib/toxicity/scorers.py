"""One call for all scorers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import pandas as pd

from steerlib.toxicity.classifier import ClassifierScorer
from steerlib.toxicity.given import SUFFIXES, GivenScores
from steerlib.toxicity.lstm import EmbeddedScorer


class Scorer(Protocol):
    """What a scorer is: a name that changes with its weights, and a call. Your own needs nothing else."""

    @property
    def id(self) -> str:
        """Name, version and hash of the weights: scores are kept under it."""
        ...

    def __call__(self, texts: Iterable[str]) -> pd.DataFrame:
        """Scores (texts, six attributes) in [0, 1], in the order of the texts."""
        ...


def load_scorer(
    name: str | Path = "embedded", *, revision: str | None = None, device: str | None = None
) -> Scorer:
    """A toxicity scorer by name.

    Args:
        name: `embedded`; a csv, parquet or jsonl file of given scores; the folder or hub id `owner/model` of a
            six-label sequence classifier of transformers.
        revision: for a hub id, its commit or tag.
        device: for a classifier; the GPU if there is one.

    Returns:
        scorer with `scorer(texts) -> DataFrame (texts, six)` in [0, 1] and `scorer.id`.

    Raises:
        ValueError: no scorer has such a name, or it lacks one of the six attributes.
        FileNotFoundError: its file, wheel or model is not there.
    """
    if name == "embedded":
        return EmbeddedScorer()
    path = Path(name)
    if path.is_dir():
        return ClassifierScorer(path, device=device)
    if path.suffix in SUFFIXES:
        return GivenScores(path)
    if str(name).count("/") == 1 and not path.is_absolute():
        return ClassifierScorer(str(name), revision=revision, device=device)
    raise ValueError(
        f"no scorer is called {str(name)!r}; there are 'embedded', a table of scores"
        f" ({', '.join(SUFFIXES)}), and a classifier's folder or hub id such as 'unitary/toxic-bert'"
    )
