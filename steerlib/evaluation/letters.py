"""Logits of the four letters behind multiple-choice questions: each reading of a question once, and what readings
have in common once for all of them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from steerlib.generation import BranchModels
from steerlib.generation.steering import steering_hooks
from steerlib.generation.streams import Stream, Streams
from steerlib.models import FrozenModel, check_length
from steerlib.prompting import TokenIds, prompt_ids
from steerlib.vectors.residual import Vectors

FEW = 4
"""Questions of a subject that are worth a forward pass of their own: fewer gain more from a larger batch."""

TOGETHER = 10
"""Steered readings of a question at one time, the base and a grid of nine: more leave room for fewer questions."""

HELD = 4
"""Forward passes whose tokens are held at one time, for what the readings of a question have in common."""


@dataclass(frozen=True)
class Branch:
    """How a question is read.

    Attributes:
        context: text before it.
        steering: name, strength and positions of the vector that steers it; empty for none.
        model: which model reads it: empty for the frozen one, else the name of a trained branch.
    """

    context: str = ""
    steering: tuple[str, float, str] | tuple[()] = ()
    model: str = ""


class LetterLogits:
    """Reads questions.

    Args:
        models: the frozen model under "", trained branches by name.
        questions: the questions table.
        texts: each question as it is put.
        letters: ids of the four letters.
        vectors: steering vectors by name.
        batch_tokens: tokens of the questions in one forward pass, pads counted.
    """

    def __init__(
        self,
        models: BranchModels,
        questions: pd.DataFrame,
        texts: Sequence[str],
        *,
        letters: Sequence[int],
        vectors: Mapping[str, Vectors],
        batch_tokens: int,
    ) -> None:
        self.models, self.texts, self.vectors, self.batch_tokens = models, texts, vectors, batch_tokens
        self.letters = list(letters)
        self.ids, self.subjects = questions["question_id"].tolist(), questions["subject"].tolist()

    def read(self, branches: Iterable[Branch], progress: Callable[[int], object]) -> dict[Branch, Tensor]:
        """Logits of the letters, `(n_questions, 4)` by branch.

        Args:
            branches: those of one model and context are read together.
            progress: called with the number of branches read since its last call.
        """
        alike = defaultdict(list)
        for branch in dict.fromkeys(branches):
            alike[branch.model, branch.context].append(branch)
        tokens = {context: self._tokens(context) for context in dict.fromkeys(c for _, c in alike)}
        found: dict[Branch, Tensor] = {}
        for (model, context), group in alike.items():
            for first in range(0, len(group), TOGETHER):
                together = group[first : first + TOGETHER]
                z = self._read(self.models[model], tokens[context], together)
                found |= dict(zip(together, z, strict=True))
                progress(len(together))
        return found

    def _tokens(self, context: str) -> list[TokenIds]:
        frozen = self.models[""]
        found = [prompt_ids(frozen, text, style="continuation", context=context) for text in self.texts]
        for question, ids in zip(self.ids, found, strict=True):
            check_length(frozen, ids, 1, what=f"question {question}")
        return found

    @torch.inference_mode()
    def _read(self, model: FrozenModel, tokens: list[TokenIds], branches: Sequence[Branch]) -> Tensor:
        """Letters' logits of some readings that differ in steering alone, `(len(branches), n_questions, 4)`."""
        used = {name: self.vectors[name] for name in {b.steering[0] for b in branches if b.steering}}
        precision = torch.promote_types(self.models[""].dtype, torch.float32)
        found = torch.empty(len(branches), len(tokens), len(self.letters), dtype=precision)
        with steering_hooks(model, used) as dose:
            for batch in self._batches(tokens, len(branches)):
                streams = Streams(
                    model,
                    [Stream(tokens[i], *branch.steering) for branch in branches for i in batch],
                    capacity=len(branches) * len(batch),
                    max_new_tokens=0,
                    vectors=[*used],
                    dose=dose,
                )
                # The four columns alone are kept: 1,000 questions of all logits would be half a gigabyte a branch.
                z = streams.prefill()[:, self.letters]
                found[:, batch] = z.reshape(len(branches), len(batch), -1).to("cpu", precision)
        return found

    def _batches(self, tokens: Sequence[TokenIds], readings: int) -> Iterator[list[int]]:
        """Questions of one subject, which share their opening, the longest first; few ones of several together."""
        budget = min(self.batch_tokens, HELD * self.batch_tokens // readings)
        sizes = Counter(self.subjects)
        groups = [name if sizes[name] >= FEW else "" for name in self.subjects]
        for group in dict.fromkeys(groups):
            own = [i for i, name in enumerate(groups) if name == group]
            own.sort(key=lambda i: len(tokens[i]), reverse=True)
            while own:
                take = max(1, budget // len(tokens[own[0]]))
                batch, own = own[:take], own[take:]
                yield batch
