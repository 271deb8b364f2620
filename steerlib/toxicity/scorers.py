"""One call for all scorers.

Scores of a run: each text is scored once by each scorer and kept.

Toxicity scores by any six-label sequence classifier of transformers, for instance Detoxify's.

Toxicity scores that were computed elsewhere, for instance exported from the Perspective API.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from steerlib.tables import SCHEMA, append_part, has_table, read_table
from steerlib.toxicity.attributes import ATTRIBUTES, check_texts, match_labels
from steerlib.toxicity.embedded_scorer import EmbeddedScorer


class Scorer(Protocol):
    """What a scorer is: a name that changes with its weights, and a call. Your own needs nothing else."""

    @property
    def id(self) -> str:
        """Name, version and hash of the weights: scores are kept under it."""
        ...

    def __call__(self, texts: Iterable[str]) -> pd.DataFrame:
        """Scores (texts, six attributes) in [0, 1], in the order of the texts."""
        ...


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


class ClassifierScorer:
    """Six toxicity scores by a multi-label classifier: the logistic of its logits, label by label.

    Args:
        name: hub id or folder; its labels are matched to the six attributes by name, others are left out.
        revision: commit or tag on the hub.
        device: where it runs; the GPU if there is one.
        batch: texts in one forward.

    Attributes:
        id: the name and the start of the sha256 over its weights.

    Raises:
        FileNotFoundError: the model cannot be had.
        ValueError: an attribute has no label, or the labels exclude one another (softmax).
    """

    def __init__(
        self, name: str | Path, *, revision: str | None = None, device: str | None = None, batch: int = 32
    ) -> None:
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision)
            model = AutoModelForSequenceClassification.from_pretrained(
                name, revision=revision, use_safetensors=True, dtype=torch.float32
            )
        except OSError as failure:
            reason = str(failure).strip().splitlines()[0]
            raise FileNotFoundError(
                f"scorer {str(name)!r} is neither a classifier's folder here nor to be had from the hub with"
                f" safetensors weights: {reason}"
            ) from failure
        if model.config.problem_type == "single_label_classification":
            raise ValueError(
                f"scorer {str(name)!r} chooses one label of several; six independent ones are needed"
            )
        self.labels = match_labels(model.config.label2id, owner=f"scorer {str(name)!r}")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.id = f"{Path(name).name}-{_sha256(model)[:8]}"
        self.model = model.eval().to(self.device)
        self.batch = batch

    def __call__(self, texts: Iterable[str]) -> pd.DataFrame:
        """Scores in [0, 1], one row a text in the given order; a text is cut at the model's longest input."""
        listed = check_texts(texts)
        order = np.argsort(
            [len(text) for text in listed], kind="stable"
        )  # like lengths together: less padding
        logits = np.empty((len(listed), self.model.config.num_labels))
        for start in range(0, len(listed), self.batch):
            rows = order[start : start + self.batch]
            logits[rows] = self._logits([listed[row] for row in rows])
        columns = [self.model.config.label2id[label] for label in self.labels.values()]
        return pd.DataFrame(1 / (1 + np.exp(-logits[:, columns])), columns=list(self.labels))

    @torch.inference_mode()
    def _logits(self, texts: list[str]) -> np.ndarray:
        longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings, 512)
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return self.model(**batch.to(self.device)).logits.double().cpu().numpy()


def _sha256(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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
