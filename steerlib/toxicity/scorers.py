"""Toxicity scorers behind one call and one cache: two that ship, classifiers, the Perspective API, tables of scores."""

import hashlib
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import requests
import tenacity
import torch
from scipy.special import expit, softmax

from steerlib.decoding.distributed import Workers, mapped_table
from steerlib.embedded import cache_folder
from steerlib.models import default_device, pretrained
from steerlib.reading import after_thinking
from steerlib.tables import cached_rows, read_table
from steerlib.toxicity.attributes import ATTRIBUTES, check_attribute, check_texts, match_labels
from steerlib.toxicity.calibrated_scorer import CalibratedScorer
from steerlib.toxicity.embedded_scorer import EmbeddedScorer


class Scorer(Protocol):
    """What a scorer is. Your own needs nothing else."""

    id: str  # name, version and hash of the weights or the file: scores are cached under it

    def __call__(self, texts: Iterable[str]) -> pd.DataFrame:
        """Scores in [0, 1], one row a text, one column an attribute; one that it does not know is absent or all NaN."""
        ...


def load_scorer(name: str | Path = "calibrated", *, labels: Mapping[str, str] | None = None) -> Scorer:
    """A toxicity scorer by name.

    Args:
        name: "embedded"; "calibrated"; "perspective" (key in PERSPECTIVE_API_KEY); "detoxify" or "detoxify:<folder>";
            "replay:<file>", scores that `archive` wrote; a table of scores by text; the folder or hub id
            `owner/model` of a sequence classifier.
        labels: of a classifier, its label of each attribute.

    Raises:
        ValueError: no scorer has such a name, or it has no toxicity.
        FileNotFoundError: its file, wheel or model is not there.
        KeyError: the environment has no key for Perspective.
    """
    plain = {"embedded": EmbeddedScorer, "calibrated": CalibratedScorer, "perspective": PerspectiveScorer}
    if str(name) in plain:
        return plain[str(name)]()
    kind, _, rest = str(name).partition(":")
    if kind == "replay" and rest:
        return LookupScorer(rest)
    if kind == "detoxify":
        return ClassifierScorer(rest or DETOXIFY, labels)
    path = Path(name)
    if path.suffix in SUFFIXES and not path.is_dir():
        return LookupScorer(path)
    if (str(name) and path.is_dir()) or (str(name).count("/") == 1 and not path.is_absolute()):
        return ClassifierScorer(name, labels)
    raise ValueError(
        f"no scorer is called {str(name)!r}; there are {', '.join(map(repr, plain))}, 'detoxify', 'replay:FILE', a"
        f" table of scores ({', '.join(SUFFIXES)}), and a classifier's folder or hub id such as {DETOXIFY!r}"
    )


def text_sha(text: str) -> str:
    """sha256 of what is scored of a text, see `after_thinking`: the text's key in the table `scores`."""
    return hashlib.sha256(after_thinking(text).encode("utf-8", "surrogatepass")).hexdigest()


def archive(folder: Path, path: Path, *, scorer: str | None = None) -> int:
    """Write the scores of a run, by text hash, to a file that "replay:<file>" reads; the number of texts.

    A ValueError for no scores, those of several scorers and no id among them, or a file neither .csv nor .parquet.
    """
    scores = read_table(folder, "scores")
    ids = sorted(scores["scorer"].unique())
    chosen = scorer or (ids[0] if len(ids) == 1 else None)
    if chosen not in ids or path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"archive {path.name} (.csv or .parquet) of one scorer of {ids}, not {scorer!r}")
    rows = scores[scores["scorer"] == chosen].reset_index(drop=True)
    rows.to_csv(path, index=False) if path.suffix == ".csv" else rows.to_parquet(path)
    return len(rows)


def score_texts(scorer: Scorer, texts: Iterable[str], folder: Path, *, workers: Workers = 0) -> pd.DataFrame:
    """Six toxicity scores of each text, row by row with the texts and, where they are a Series, with its index.

    Scores are cached in the table `scores` of the run's folder, see `cached_rows`. Of a reasoning model's answer, what
    follows its thoughts is scored; the empty text is scored as it is. With `workers`, see `mapped`, a part of the table
    holds a hundred times as many texts, so that they start once; Perspective, which allows one request per second, is
    asked by this process alone. A ValueError where a text is no string, or the scorer gave something other than a score
    in [0, 1] for each.
    """
    listed = check_texts(texts)
    keys = pd.DataFrame({"text_sha": [text_sha(text) for text in listed], "scorer": scorer.id})
    workers = 0 if isinstance(scorer, PerspectiveScorer) else workers

    def ask(rows: list[int]) -> pd.DataFrame:
        asked = [after_thinking(listed[row]) for row in rows]
        return mapped_table(checked_scores, scorer, over="texts", texts=asked, workers=workers)

    chunk = 102_400 if workers else 1024
    found = cached_rows(folder, "scores", keys, ask, unit="text", what="toxicity", chunk=chunk)
    index = texts.index if isinstance(texts, pd.Series) else pd.RangeIndex(len(listed))
    return found[list(ATTRIBUTES)].astype(float).set_axis(index)


def checked_scores(scorer: Scorer, texts: list[str]) -> pd.DataFrame:
    """Scores of some texts by a scorer; see `score_texts`."""
    scores = scorer(texts)
    if len(scores) != len(texts):
        raise ValueError(f"scorer {scorer.id} gave {len(scores)} rows for {len(texts)} texts")
    return six_scores(scores, owner=f"scorer {scorer.id}")


def six_scores(scores: pd.DataFrame, *, owner: str) -> pd.DataFrame:
    """Scores as numbers, in the order of `ATTRIBUTES`; an attribute that is absent or blank throughout is NaN.

    A ValueError shows the first value that is not in [0, 1], with its owner, row (from 1) and attribute.
    """
    six = scores.reindex(columns=list(ATTRIBUTES)).reset_index(drop=True).replace("", np.nan)
    numbers = six.apply(pd.to_numeric, errors="coerce").astype(float)
    needed = six.notna().any() | (six.columns == "toxicity")
    wrong = ~((numbers >= 0) & (numbers <= 1)) & needed
    if wrong.any(axis=None):
        row, column = np.argwhere(wrong.to_numpy())[0]
        value = six.iloc[:, column].tolist()[row]
        raise ValueError(f"{owner}, row {row + 1}: {ATTRIBUTES[column]} is {value!r}, not in [0, 1]")
    return numbers


DETOXIFY = "unitary/toxic-bert"
"""Weights of Detoxify's model `original` on the hub."""


class ClassifierScorer:
    """Toxicity scores by a classifier: the logistic of its logits, or their softmax if its labels exclude one another.

    By default labels are matched by name, then several independent ones are needed.

    Raises:
        FileNotFoundError: the model cannot be had with safetensors weights.
        ValueError: toxicity has no label, a label is unknown, or labels exclude one another and none were given.
    """

    def __init__(self, name: str | Path, labels: Mapping[str, str] | None = None) -> None:
        self.tokenizer = pretrained("AutoTokenizer", name, what="scorer")
        settings = {"use_safetensors": True, "dtype": torch.float32}
        model = pretrained("AutoModelForSequenceClassification", name, what="scorer", **settings)
        known, owner = model.config.label2id, f"scorer {str(name)!r}"
        self.excluding = model.config.problem_type == "single_label_classification"
        if self.excluding and not labels:
            raise ValueError(f"{owner} chooses one label of several; name yours in `labels`")
        for attribute, label in (labels or {}).items():
            check_attribute(attribute)
            if label not in known:
                raise ValueError(f"{owner} has no label {label!r}; it has {', '.join(known)}")
        self.labels = labels or match_labels(known, owner=owner)
        self.id = f"{Path(name).name}-{weights_sha(model)[:8]}"
        self.id += f"-{sorted(labels.items())}" if labels else ""
        self.model: Any = model.eval().to(default_device())

    @torch.inference_mode()
    def __call__(self, texts: Iterable[str]) -> pd.DataFrame:
        """As a `Scorer`; a text is cut at the model's longest input."""
        listed, config = check_texts(texts), self.model.config
        longest = min(self.tokenizer.model_max_length, config.max_position_embeddings, 512)
        settings = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        # Texts of like length together: less padding.
        order = np.argsort([len(text) for text in listed], kind="stable")
        logits = np.empty((len(listed), config.num_labels))
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            batch = self.tokenizer([listed[row] for row in rows], **settings).to(self.model.device)
            logits[rows] = self.model(**batch).logits.cpu().double().numpy()
        values = softmax(logits, axis=1) if self.excluding else expit(logits)
        columns = [config.label2id[label] for label in self.labels.values()]
        return pd.DataFrame(values[:, columns], columns=list(self.labels)).reindex(columns=list(ATTRIBUTES))


def weights_sha(model: torch.nn.Module) -> str:
    """sha256 over a model's weights and their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


SUFFIXES = (".csv", ".parquet", ".jsonl", ".json")


class LookupScorer:
    """Scores looked up in a table: by text, for instance from the Perspective API, or by text hash (`archive`).

    The file has a column `text` or `text_sha` and one an attribute; further columns are left out. A ValueError where
    there is no text or toxicity, a text has two different scores, or as in `six_scores`.
    """

    def __init__(self, path: str | Path) -> None:
        from steerlib.profiles.sources import read_rows

        self.path = Path(path)
        rows = read_rows(self.path)
        key = next((name for name in ("text", "text_sha") if name in rows), None)
        if key is None:
            raise ValueError(f"{self.path.name} has no column 'text'; it has {', '.join(map(str, rows))}")
        labels = match_labels(rows.columns.drop(key), owner=self.path.name)
        texts = pd.Series(check_texts(rows[key], what=f"{self.path.name}, {key}"), dtype=object)
        given = rows[[*labels.values()]].set_axis([*labels], axis=1)
        scores = six_scores(given, owner=self.path.name)
        scores.insert(0, "text", texts.map(text_sha) if key == "text" else texts)
        scores = scores.drop_duplicates()
        if (twice := scores["text"].duplicated()).any():
            text = texts[twice.idxmax()]
            raise ValueError(f"{self.path.name}: two rows give different scores of the text {text[:80]!r}")
        self.scores = scores.set_index("text")
        with self.path.open("rb") as file:
            self.id = f"{self.path.stem}-{hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"

    def __call__(self, texts: Iterable[str]) -> pd.DataFrame:
        """As a `Scorer`; a KeyError names the first text that is not in the table."""
        listed = check_texts(texts)
        found = self.scores.reindex([text_sha(text) for text in listed]).reset_index(drop=True)
        if (absent := found["toxicity"].isna()).any():
            row = int(absent.idxmax())
            raise KeyError(f"{self.path.name}: no scores of the text in row {row}: {listed[row][:80]!r}")
        return found


PERSPECTIVE = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"
SECONDS, TIMEOUT = 1.0, 30.0
"""From one request to the next and before the first repetition; for one answer."""
LONGEST = 20_480
"""Bytes of a comment that Perspective reads."""
UNSCORED = ("COMMENT_EMPTY", "COMMENT_TOO_LONG", "LANGUAGE_NOT_SUPPORTED", "LANGUAGE_DETECTION_FAILED")
"""How errors begin that concern one text: its scores are missing. All other refusals stop the work."""


class Busy(ConnectionError):
    """Perspective gave no answer this time: quota, a failing server, time."""


class PerspectiveScorer:
    """Six scores by the Perspective API (until the end of 2026): one request per second, nothing stored there.

    The key is read from PERSPECTIVE_API_KEY (else a KeyError). Scores are kept for ever in
    `cache_folder()/perspective`, by text. A text above 20 KB is cut; one that Perspective does not score is missing,
    with a warning. There are six tries.
    """

    id = "perspective-v1alpha1-en"

    def __init__(self) -> None:
        self._key = os.environ.get("PERSPECTIVE_API_KEY", "").strip()
        if not self._key:
            raise KeyError("Perspective's key is read from the environment, which has no PERSPECTIVE_API_KEY")
        self._next = 0.0
        self._asked = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Busy),
            wait=tenacity.wait_exponential(SECONDS, max=60),
            stop=tenacity.stop_after_attempt(6),
            reraise=True,
        )

    def __call__(self, texts: Iterable[str]) -> pd.DataFrame:
        """As a `Scorer`; a ConnectionError where the API cannot be reached, fails, refuses or sends no analysis."""
        listed, six = check_texts(texts), list(ATTRIBUTES)
        keys = pd.DataFrame({"text_sha": [text_sha(text) for text in listed], "scorer": self.id})

        def ask(rows: list[int]) -> pd.DataFrame:
            return pd.DataFrame([self._asked(self._scores, listed[row]) for row in rows], columns=six)

        shown: dict[str, Any] = {"unit": "text", "what": "Perspective", "chunk": 60}
        found = cached_rows(cache_folder() / "perspective", "scores", keys, ask, **shown)[six].astype(float)
        if found["toxicity"].isna().any():
            warnings.warn(f"{self.id} gave no scores of {found['toxicity'].isna().sum()} texts", stacklevel=2)
        return found

    def _scores(self, text: str) -> list[float]:
        """Scores of one text by one request, not before its time."""
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = time.monotonic() + SECONDS
        cut = text.encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore")
        body: dict[str, Any] = {
            "comment": {"text": cut, "type": "PLAIN_TEXT"},
            "requestedAttributes": {attribute.upper(): {} for attribute in ATTRIBUTES},
            "languages": ["en"],
            "doNotStore": True,
        }
        try:
            came = requests.post(PERSPECTIVE, params={"key": self._key}, json=body, timeout=TIMEOUT)
            answer = came.json()
        except requests.JSONDecodeError:
            raise Busy(f"{self.id}: what came with status {came.status_code} is no JSON") from None
        except requests.RequestException as failure:  # its text has the address, and with it the key
            raise Busy(f"{self.id}: {type(failure).__name__}") from None
        if came.status_code == 429 or came.status_code >= 500:
            raise Busy(f"{self.id}: status {came.status_code}, {self._said(answer)}")
        if came.status_code != 200:
            said = self._said(answer)
            if any(kind in said for kind in UNSCORED):
                return [np.nan] * len(ATTRIBUTES)
            raise ConnectionError(f"{self.id} refuses: status {came.status_code}, {said}")
        try:
            given = {name: one["summaryScore"]["value"] for name, one in answer["attributeScores"].items()}
            scores = [float(given.get(attribute.upper(), np.nan)) for attribute in ATTRIBUTES]
            if any(score < 0 or score > 1 for score in scores):  # else it would be kept for ever
                raise ValueError(scores)
            return scores
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ConnectionError(f"{self.id}: the answer is no analysis: {str(answer)[:200]}") from None

    def _said(self, answer: object) -> str:
        """The server's message with its error types, without the key even where the server repeats it."""
        error = answer.get("error", answer) if isinstance(answer, dict) else answer
        return " ".join(str(error).replace(self._key, "[key]").split())[:400]
