"""The streams of one batch, whichever model reads them: one numbering of slots, a forward pass a model."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from steerlib.generation.requests import Request
from steerlib.generation.streams import Stream, Streams
from steerlib.models import FrozenModel
from steerlib.vectors.residual import ResidualDose


class JoinedStreams:
    """The streams of several models behind one another: slots of the first model, then those of the next.

    Args:
        parts: the streams of each model.
    """

    def __init__(self, parts: Sequence[Streams]) -> None:
        self.parts = parts

    def prefill(self) -> Tensor:
        """Read all contexts; raw next-token logits `(n_streams, vocab)`, see `Streams.prefill`."""
        return self._rows([part.prefill() for part in self.parts])

    def advance(self, parents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Append a token to each next stream, see `Streams.advance`; a model with no stream left is not run."""
        slots = torch.empty_like(parents)
        logits, first, placed = [], 0, 0
        for part in self.parts:
            start, first = first, first + part.n_live
            mine = (parents >= start) & (parents < first)
            if mine.any():
                slot, z = part.advance(parents[mine] - start, tokens[mine])
                slots[mine] = slot + placed
                logits.append(z)
            else:
                part.n_live = 0
            placed += part.n_live
        return slots, self._rows(logits)

    def _rows(self, logits: Sequence[Tensor]) -> Tensor:
        # A model in a lower precision than the base's takes the base's.
        return logits[0] if len(logits) == 1 else torch.cat([z.to(logits[0].dtype) for z in logits])


def open_streams(
    models: Mapping[str, FrozenModel],
    requests: Sequence[Request],
    *,
    rows_per_request: int,
    max_new_tokens: int,
    vectors: Sequence[str],
    dose: ResidualDose,
) -> tuple[JoinedStreams, dict[Stream, int]]:
    """The distinct streams of some answers, each opened in the model that reads it.

    Args:
        models: the frozen model under "", trained branches by name, see `Stream.model`.
        requests: the answers.
        rows_per_request: rows that one answer may split into.
        max_new_tokens: longest answer.
        vectors, dose: steering of the frozen model's own streams.

    Returns:
        The streams, and the slot of each.
    """
    reads = [stream for request in requests for stream in request.branches.values()]
    parts, index = [], {}
    for name, model in models.items():
        mine = [stream for stream in reads if stream.model == name]
        if not mine:
            continue
        # Alike lengths lie side by side, so that prefill pads little.
        ordered = sorted(set(mine), key=lambda s: (len(s.ids), s.ids, s.vector, s.alpha, s.positions))
        index |= {stream: len(index) + i for i, stream in enumerate(ordered)}
        parts.append(
            Streams(
                model,
                ordered,
                capacity=len(mine) * rows_per_request,
                max_new_tokens=max_new_tokens,
                vectors=() if name else vectors,
                dose=ResidualDose() if name else dose,
            )
        )
    return JoinedStreams(parts), index
