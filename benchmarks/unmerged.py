"""Our own decoder with row merging switched off: the plain grid that the alpha path is compared with."""

from collections.abc import Sequence

import torch

from steerlib.generation.held import UnmergedBatch
from steerlib.generation.requests import Request
from steerlib.models import FrozenModel
from steerlib.vectors.residual import ResidualDose


def decode_unmerged(frozen: FrozenModel, requests: Sequence[Request], *, capacity: int) -> list[dict]:
    """Rows of the generations table for logit rules, in batches of at most `capacity` rows."""
    together = max(1, capacity // max(len(r.branches) for r in requests))
    found = []
    for first in range(0, len(requests), together):
        batch = requests[first : first + together]
        with torch.inference_mode():
            found += UnmergedBatch({"": frozen}, batch, [], ResidualDose()).run(lambda n: None)  # noqa: ARG005
    return found
