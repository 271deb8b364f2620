"""Toxicity scorers: the embedded one, any classifier of transformers, a table of scores; one call and one cache."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from steerlib.models import default_device, pretrained
from steerlib.reading import after_thinking
from steerlib.tables import cached_rows
from steerlib.toxicity.attributes import ATTRIBUTES, check_texts, match_labels
from steerlib.toxicity.embedded_scorer import EmbeddedScorer


class Scorer(Protocol):
    """What a scorer is: a name that changes with its weights, and a call. Your own needs nothing else."""

    @property
    def id(self) -> str:
        """Name, version and hash of the weights: scores are cached under it."""
        ...

    def __call__(self, texts: Iterable[str]) -> pd.DataFrame:
        """Scores in [0, 1], one row a text in the given order, one column an attribute.

        An attribute that the scorer does not know is missing (NaN) for every text, never 0.
        """
        ...


def load_scorer(name: str | Path = "embedded") -> Scorer:
    """A toxicity scorer by name.

    Args:
        name: "embedded"; a table of scores (csv, jsonl, json or parquet); the folder or hub id `owner/model` of a
            multi-label sequence classifier.

    Raises:
        ValueError: no scorer has such a name, or it has no toxicity.
        FileNotFoundError: its file, wheel or model is not there.
    """
    if name == "embedded":
        return EmbeddedScorer()
    path = Path(name)
    if path.suffix in SUFFIXES and not path.is_dir():
        return LookupScorer(path)
    if (str(name) and path.is_dir()) or (str(name).count("/") == 1 and not path.is_absolute()):
        return ClassifierScorer(name)
    raise ValueError(
        f"no scorer is called {str(name)!r}; there are 'embedded', a table of scores ({', '.join(SUFFIXES)}),"
        " and a classifier's folder or hub id such as 'unitary/toxic-bert'"
    )


def text_sha(text: str) -> str:
    """sha256 of a text's UTF-8 bytes, in hexadecimal: the text's key in the table `scores`."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def score_texts(scorer: Scorer, texts: Iterable[str], folder: Path, *, batch: int = 1024) -> pd.DataFrame:
    """Six toxicity scores of each text, row by row with the texts and, where they are a Series, with its index.

    Scores are cached in the run's table `scores`, see `cached_rows`. Of a reasoning model's answer, what follows its
    thoughts is scored; the empty text is scored as it is.

    Args:
        scorer: a scorer of `load_scorer`, or your own with `id` and a call.
        texts: strings, in any order and with repeats.
        folder: the run's folder.
        batch: texts in one part of the table.

    Raises:
        ValueError: a text is no string, or the scorer gave something other than six scores in [0, 1].
    """
    listed = check_texts(texts)
    keys = pd.DataFrame({"text_sha": [text_sha(text) for text in listed], "scorer": scorer.id})
    found = cached_rows(
        folder,
        "scores",
        keys,
        lambda rows: checked_scores(scorer, [after_thinking(listed[row]) for row in rows]),
        unit="text",
        what="toxicity",
        chunk=batch,
    )
    index = texts.index if isinstance(texts, pd.Series) else pd.RangeIndex(len(listed))
    return found[list(ATTRIBUTES)].astype(float).set_axis(index)


def checked_scores(scorer: Scorer, texts: list[str]) -> pd.DataFrame:
    """Scores of some texts by a scorer, in the order of `ATTRIBUTES`.

    Raises:
        ValueError: not six attributes of each text, or a score that is missing or outside [0, 1].
    """
    scores = scorer(texts)
    missing = [attribute for attribute in ATTRIBUTES if attribute not in scores]
    if missing or len(scores) != len(texts):
        gave = f"{len(scores)} rows of {', '.join(map(str, scores.columns))}"
        raise ValueError(f"scorer {scorer.id} gave {gave} for {len(texts)} texts; expected the six of each")
    six = scores[list(ATTRIBUTES)].reset_index(drop=True).astype(float)
    for attribute, values in six.items():
        bad = ~values.between(0, 1)
        if bad.any() and (attribute == "toxicity" or not values.isna().all()):
            row = int(bad.to_numpy().argmax())
            raise ValueError(f"scorer {scorer.id}, text {row}: {attribute} is {values[row]}, not in [0, 1]")
    return six


class ClassifierScorer:
    """Toxicity scores by a multi-label classifier: the logistic of its logits, label by label.

    Args:
        name: hub id or folder; its labels are matched to the six attributes by name, others are left out.

    Attributes:
        id: the name and the start of the sha256 over its weights.

    Raises:
        FileNotFoundError: the model cannot be had with safetensors weights.
        ValueError: toxicity has no label, or the labels exclude one another (softmax).
    """

    def __init__(self, name: str | Path) -> None:
        self.tokenizer = pretrained("AutoTokenizer", name, what="scorer")
        settings = {"use_safetensors": True, "dtype": torch.float32}
        model = pretrained("AutoModelForSequenceClassification", name, what="scorer", **settings)
        if model.config.problem_type == "single_label_classification":
            raise ValueError(
                f"scorer {str(name)!r} chooses one label of several; independent ones are needed"
            )
        self.labels = match_labels(model.config.label2id, owner=f"scorer {str(name)!r}")
        self.id = f"{Path(name).name}-{weights_sha(model)[:8]}"
        self.model: Any = model.eval().to(default_device())

    def __call__(self, texts: Iterable[str]) -> pd.DataFrame:
        """Scores in [0, 1], one row a text in the given order; a text is cut at the model's longest input."""
        listed = check_texts(texts)
        # Texts of like length together: less padding.
        order = np.argsort([len(text) for text in listed], kind="stable")
        logits = np.empty((len(listed), self.model.config.num_labels))
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            logits[rows] = self._logits([listed[row] for row in rows])
        columns = [self.model.config.label2id[label] for label in self.labels.values()]
        scores = pd.DataFrame(1 / (1 + np.exp(-logits[:, columns])), columns=list(self.labels))
        return scores.reindex(columns=list(ATTRIBUTES))

    @torch.inference_mode()
    def _logits(self, texts: list[str]) -> Any:
        longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings, 512)
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return self.model(**batch.to(self.model.device)).logits.cpu().double().numpy()


def weights_sha(model: torch.nn.Module) -> str:
    """sha256 over a model's weights and their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


SUFFIXES = (".csv", ".parquet", ".jsonl", ".json")


class LookupScorer:
    """Scores looked up by text in a table, for instance exported from the Perspective API.

    Args:
        path: file with a column `text` and one an attribute; further columns are left out.

    Attributes:
        id: the file's name and the start of its sha256.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there is no text or toxicity, a score is not in [0, 1], or a text has two different scores.
    """

    def __init__(self, path: str | Path) -> None:
        from steerlib.profiles.sources import read_rows

        self.path = Path(path)
        rows = read_rows(self.path)
        if "text" not in rows:
            raise ValueError(f"{self.path.name} has no column 'text'; it has {', '.join(map(str, rows))}")
        labels = match_labels(rows.columns.drop("text"), owner=self.path.name)
        texts = pd.Series(check_texts(rows["text"], what=f"{self.path.name}, text"), dtype=object)
        scores = pd.DataFrame({"text": texts}, columns=["text", *ATTRIBUTES])
        for attribute, label in labels.items():
            scores[attribute] = pd.to_numeric(rows[label], errors="coerce")
            bad = ~scores[attribute].between(0, 1)
            if bad.any():
                row = int(bad.to_numpy().argmax())
                raise ValueError(
                    f"{self.path.name}, row {row + 1}: {attribute} is {rows[label][row]!r}, not in [0, 1]"
                )
        self.scores = scores.drop_duplicates().set_index("text").astype(float)
        if self.scores.index.has_duplicates:
            text = self.scores.index[self.scores.index.duplicated()][0]
            raise ValueError(f"{self.path.name}: two rows give different scores of the text {text[:80]!r}")
        with self.path.open("rb") as file:
            self.id = f"{self.path.stem}-{hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"

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
