"""The calibrated scorer: six scores on Perspective's scale by a small network and hashed n-grams.

Data, licence, split, figures and limits stand in `calibrated/README.md`; `notebooks/extra/calibrated_scorer` made it.
"""

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from scipy.sparse import csr_array
from scipy.special import expit
from torch import nn

from steerlib.toxicity.attributes import ATTRIBUTES, check_texts

WEIGHTS = Path(__file__).parent / "calibrated" / "model.safetensors"
WINDOW = 48
"""Tokens scored at once; a longer text is scored window by window."""
BUCKETS, SUBWORDS = 2**17, 24_000
"""Hash buckets of n-grams for the linear part, of subwords for the network."""
DIM = 50
"""Dimensions of a word's embedding."""

INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
SPACED = re.compile(r"\b(?:[^\W\d_][ .*_-]){2,}[^\W\d_]\b")
TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s]|_")


def tokens(text: str) -> list[str]:
    """Words and single signs of a text, lower-case, compatible forms unified (NFKC), invisible marks removed.

    Letters spaced out ("s t u p i d") are joined. A text without any token is one full stop.
    """
    plain = INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).lower().replace("’", "'")
    joined = SPACED.sub(lambda found: re.sub(r"[ .*_-]", "", found.group()), plain)
    return TOKEN.findall(joined) or ["."]


@lru_cache(maxsize=20_000)
def character_ngrams(word: str) -> np.ndarray:
    """Hashes of the 1- to 4-grams of a word between spaces, at most its first 40 characters."""
    padded = f" {word[:40]} "
    grams = [padded[i : i + n] for n in (1, 2, 3, 4) for i in range(len(padded) - n + 1)]
    return np.array([zlib.crc32(gram.encode("utf-8", "replace")) for gram in grams], dtype=np.int64)


def ngram_counts(windows: Sequence[Sequence[str]]) -> tuple[csr_array, csr_array]:
    """1 + log counts of hashed character n-grams, and of hashed words and pairs of words; a row a window."""
    characters, words = [], []
    for window in windows:
        characters.append(np.concatenate([character_ngrams(word) for word in window]))
        pairs = [*window, *(" ".join(pair) for pair in pairwise(window))]
        hashes = [zlib.crc32(pair[:100].encode("utf-8", "replace")) for pair in pairs]
        words.append(np.array(hashes, dtype=np.int64))
    return _log_counts(characters), _log_counts(words)


def _log_counts(rows: Sequence[np.ndarray]) -> csr_array:
    columns = np.concatenate(rows) % BUCKETS
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    counts = csr_array((np.ones(len(columns)), columns, starts), shape=(len(rows), BUCKETS))
    counts.sum_duplicates()
    counts.data = 1 + np.log(counts.data)
    return counts


def weighted(counts: csr_array, idf: np.ndarray) -> csr_array:
    """Counts times inverse document frequencies, each row at Euclidean norm 1."""
    found = counts.copy()
    found.data = found.data * idf[found.indices]
    norms = np.sqrt(found.multiply(found).sum(axis=1))
    found.data = found.data / np.repeat(np.maximum(norms, 1e-9), np.diff(found.indptr))
    return found


class ToxicityNetwork(nn.Module):
    """Word + mean subword embedding -> bidirectional LSTM (2 x 50) -> maximum and mean over tokens -> 96 -> logits."""

    def __init__(self, vocabulary: int, outputs: int = len(ATTRIBUTES)) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary + 1, DIM, padding_idx=0)
        self.subwords = nn.EmbeddingBag(SUBWORDS, DIM, mode="mean")
        self.lstm = nn.LSTM(DIM, 50, bidirectional=True, batch_first=True)
        self.hidden, self.output = nn.Linear(200, 96), nn.Linear(96, outputs)
        self.dropout = nn.Dropout(0.3)

    def forward(self, windows: Sequence[Sequence[str]], indices: Mapping[str, int]) -> torch.Tensor:
        """Logits (windows, outputs) of windows of tokens.

        `indices` are rows of known words in the embedding, from 1; an unknown word has its subwords alone.
        """
        distinct = {word: row for row, word in enumerate(dict.fromkeys(w for one in windows for w in one))}
        grams = [character_ngrams(word) % SUBWORDS for word in distinct]
        starts = torch.from_numpy(np.cumsum([0, *map(len, grams[:-1])]))
        known = torch.tensor([indices.get(word, 0) for word in distinct])
        embedded = self.words(known) + self.subwords(torch.from_numpy(np.concatenate(grams)), starts)
        lengths = torch.tensor([len(one) for one in windows])
        rows = [torch.tensor([distinct[word] for word in one]) for one in windows]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        inputs = nn.utils.rnn.pack_padded_sequence(
            self.dropout(embedded[padded]), lengths, batch_first=True, enforce_sorted=False
        )
        states, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(inputs)[0], batch_first=True)
        there = (torch.arange(padded.shape[1]) < lengths[:, None])[..., None]
        pooled = [states.masked_fill(~there, -1).amax(1), (states * there).sum(1) / lengths[:, None]]
        return self.output(torch.relu(self.hidden(self.dropout(torch.cat(pooled, dim=-1)))))


class CalibratedScorer:
    """Six toxicity scores of English texts on the scale of the Perspective API of 2020, offline.

    Per attribute, the logit is (1 - w) network + w n-grams, and a monotone line through knots corrects it. A text
    of several windows has the mean logit of its windows.
    """

    def __init__(self, path: Path = WEIGHTS) -> None:
        stored = load_file(path)
        with path.open("rb") as file:
            self.id = f"calibrated-{hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"
        vocabulary = bytes(stored.pop("vocabulary").tolist()).decode().split("\n")
        self.indices = {word: row for row, word in enumerate(vocabulary, 1)}
        scaled = {name.removesuffix(".scale") for name in stored if name.endswith(".scale")}
        tensors = {name: x.double() for name, x in stored.items() if not name.endswith(".scale")}
        for name in scaled:
            tensors[name] *= stored[f"{name}.scale"].double()
        parts = ("characters", "pairs", "knots", "share", "bias")
        own = {name: x.numpy() for name, x in tensors.items() if name.split(".")[0] in parts}
        self.linear = [(own[f"{name}.idf"], own[f"{name}.weight"]) for name in ("characters", "pairs")]
        self.knots, self.share, self.bias = own["knots"], own["share"], own["bias"]
        self.network = ToxicityNetwork(len(vocabulary)).double().eval().requires_grad_(False)
        weights = {name: x for name, x in tensors.items() if name.split(".")[0] not in parts}
        self.network.load_state_dict(weights)

    def __call__(self, texts: Iterable[str]) -> pd.DataFrame:
        """As a `Scorer`; rounded to 6 digits, so that scores do not depend on the other texts."""
        columns = zip(self.logits(texts).T, self.knots, strict=True)
        scores = [expit(np.interp(logits, *knots)) for logits, knots in columns]
        return pd.DataFrame(dict(zip(ATTRIBUTES, scores, strict=True))).round(6)

    def logits(self, texts: Iterable[str]) -> np.ndarray:
        """Mean logit of each text's windows (texts, 6), before the calibration."""
        listed = [tokens(text) for text in check_texts(texts)]
        parts = [
            (row, text[i : i + WINDOW])
            for row, text in enumerate(listed)
            for i in range(0, len(text), WINDOW)
        ]
        parts.sort(key=lambda part: len(part[1]))
        sums, counts = np.zeros((len(listed), len(ATTRIBUTES))), np.zeros((len(listed), 1))
        for start in range(0, len(parts), 128):
            rows, windows = zip(*parts[start : start + 128], strict=True)
            np.add.at(sums, list(rows), self.window_logits(windows))
            np.add.at(counts, list(rows), 1)
        return sums / counts

    @torch.inference_mode()
    def window_logits(self, windows: Sequence[Sequence[str]]) -> np.ndarray:
        """Logits (windows, 6) of windows of tokens, before the calibration."""
        linear = self.bias + sum(
            weighted(counts, idf) @ weight
            for counts, (idf, weight) in zip(ngram_counts(windows), self.linear, strict=True)
        )
        return (1 - self.share) * self.network(windows, self.indices).numpy() + self.share * linear
