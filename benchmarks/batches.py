"""Our own decoder with a kind of batch of the caller's choice: rows merged or not."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steerlib.decoding.batch import Batch
from steerlib.decoding.requests import Request
from steerlib.models import FrozenModel
from steerlib.residual import ResidualDose


class UnmergedBatch(Batch):
    """Every answer has rows of its own from its first token on; contexts are still read once for all answers."""

    def _continue(self, tokens: Tensor) -> Tensor:
        slots = self.slots[self.live]
        used = slots >= 0
        slot, z = self.streams.advance(slots[used], tokens[:, None].expand_as(slots)[used])
        slots[used] = slot
        self.slots[self.live] = slots
        self.layout = self._layout()
        return z


def decode_as(
    kind: type[Batch], frozen: FrozenModel, requests: Sequence[Request], *, capacity: int
) -> list[dict]:
    """Rows of the generations table for logit rules, in batches of at most `capacity` rows."""
    together = max(1, capacity // max(len(r.branches) for r in requests))
    found = []
    for first in range(0, len(requests), together):
        batch = requests[first : first + together]
        with torch.inference_mode():
            found += kind({"": frozen}, batch, [], ResidualDose()).run(lambda n: None)  # noqa: ARG005
    return found
