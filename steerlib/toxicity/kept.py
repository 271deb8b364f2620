"""Scores of a run: each text is scored once by each scorer and kept."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from filelock import FileLock
from tqdm import tqdm

from steerlib.tables import SCHEMA, append_part, has_table, read_table
from steerlib.toxicity.attributes import ATTRIBUTES, check_texts
from steerlib.toxicity.scorers import Scorer


def text_sha(text: str) -> str:
    """sha256 of a text's UTF-8 bytes, in hexadecimal: the text's key in the table `scores`."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def score_texts(scorer: Scorer, texts: Iterable[str], folder: Path, *, batch: int = 1024) -> pd.DataFrame:
    """Six toxicity scores of each text, from the run's table `scores` where they are already there.

    Texts not yet there are scored, each once, and appended part by part, so an interrupted call goes on where it
    stopped; a second process waits for the first. An answer that is the empty string is scored as it is.

    Args:
        scorer: a scorer of `load_scorer`, or your own with `id` and a call.
        texts: strings, in any order and with repeats.
        folder: the run's folder.
        batch: texts in one part of the table.

    Returns:
        DataFrame (texts, six), row by row with `texts`; with its index where that is a Series.

    Raises:
        ValueError: a text is no string, or the scorer gave something other than six scores in [0, 1].
    """
    listed = check_texts(texts)
    shas = [text_sha(text) for text in listed]
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "tables" / "scores.lock"):
        kept = _kept(scorer.id, folder)
        absent = {sha: text for sha, text in zip(shas, listed, strict=True) if sha not in kept.index}
        if absent:
            _score(scorer, absent, folder, batch)
            kept = _kept(scorer.id, folder)
    index = texts.index if isinstance(texts, pd.Series) else pd.RangeIndex(len(listed))
    return kept.loc[shas].set_axis(index)


def _kept(scorer_id: str, folder: Path) -> pd.DataFrame:
    if has_table(folder, "scores"):
        table = read_table(folder, "scores")
    else:
        table = pd.DataFrame(columns=list(SCHEMA["scores"].columns))
    rows = table["scorer"] == scorer_id
    return table[rows].set_index("text_sha")[list(ATTRIBUTES)].astype(float)


def _score(scorer: Scorer, absent: dict[str, str], folder: Path, batch: int) -> None:
    shas = list(absent)
    with tqdm(
        total=len(shas), desc="toxicity", unit="text", disable=None
    ) as progress:  # silent in a batch run
        for start in range(0, len(shas), batch):
            part = shas[start : start + batch]
            scores = _checked(scorer([absent[sha] for sha in part]), scorer.id, len(part))
            scores.insert(0, "text_sha", part)
            scores.insert(1, "scorer", scorer.id)
            # Named by what it holds, so that no part ever replaces another.
            append_part(folder, "scores", scores, part=text_sha(" ".join([scorer.id, *part]))[:20])
            progress.update(len(part))


def _checked(scores: pd.DataFrame, scorer_id: str, texts: int) -> pd.DataFrame:
    missing = [attribute for attribute in ATTRIBUTES if attribute not in scores]
    if missing or len(scores) != texts:
        gave = f"{len(scores)} rows of {', '.join(map(str, scores.columns))}"
        raise ValueError(
            f"scorer {scorer_id} gave {gave} for {texts} texts; expected the six attributes of each"
        )
    six = scores[list(ATTRIBUTES)].reset_index(drop=True)
    outside = ~((six >= 0) & (six <= 1))
    if outside.to_numpy().any():
        column = outside.any().idxmax()
        row = int(outside[column].to_numpy().argmax())
        raise ValueError(
            f"scorer {scorer_id}, text {row}: {column} is {six[column].iloc[row]}, not in [0, 1]"
        )
    return six
