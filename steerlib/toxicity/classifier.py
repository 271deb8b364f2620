"""Toxicity scores by any six-label sequence classifier of transformers, for instance Detoxify's."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from steerlib.toxicity.attributes import check_texts, match_labels


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
