"""Decoding for a GPU: rows stay where they are, so that every token is the same work and may be recorded as a graph.

A small step of decoding keeps a GPU busy for less time than the host needs to ask for it, kernel by kernel. Here the
whole step (forward pass, rule, penalty, temperature, nucleus, choice, the records) is asked for once and replayed; the
host looks at the answers now and then, and lets those that have ended go. For this nothing may depend on the tokens:
every answer has rows of its own, also where answers still agree.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from steerlib.generation import dense
from steerlib.generation.batch import Batch, Progress
from steerlib.generation.captured import Captured
from steerlib.generation.held_rows import HeldRows, holds
from steerlib.models import FrozenModel

HELD_ROWS = 512
"""Rows of a batch on a GPU at most. An estimate: with more, computing rows that agree costs more than asking does."""
LOOK = 16
"""Tokens between two looks at which answers have ended."""


def can_hold(models: Mapping[str, FrozenModel]) -> bool:
    """Whether rows stay: on a GPU, where one model of a known kind reads all branches."""
    return models[""].device.type == "cuda" and len(models) == 1 and holds(models[""])


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


class HeldBatch(UnmergedBatch):
    """Answers in rows that stay until a quarter of them have ended; arguments as in `Batch`, one model."""

    def run(self, progress: Progress) -> list[dict]:
        """Decode to the end of every answer; rows of the generations table."""
        self.choice = dense
        z, step = self._opened(), 0
        while True:
            # One token as ever; it packs the rows of the answers that go on to the front.
            tokens = self._step(z, step)
            step += 1
            running = self._running(step)
            progress(int((~running).sum()))
            self.live, tokens = self.live[running], tokens[running]
            if not len(self.live):
                return self.records.rows(self.frozen, self.requests, self.budget)
            z, step = self._held(self._continue(tokens), step)

    def _held(self, z: Tensor, step: int) -> tuple[Tensor, int]:
        """Decode until it pays to let answers go; logits of the rows, and the tokens written so far."""
        rows, at = HeldRows(self.streams.parts[0], z), torch.tensor([step], device=self.device)
        slots = self.slots[self.live]
        owner = torch.empty(len(z), dtype=torch.long, device=self.device)
        owner[slots[slots >= 0]] = (slots >= 0).nonzero()[:, 0]

        def token() -> None:
            rows.advance(self._step(rows.z, at)[owner])
            at.add_(1)

        replay = Captured(token, self.device)
        with rows.held():
            while step < self.longest - 1:
                tokens = min(LOOK, self.longest - 1 - step)
                for _ in range(tokens):
                    replay()
                step += tokens
                if 4 * int((~self._running(step)).sum()) >= len(self.live):
                    break
        return rows.z, step

    def _running(self, step: int) -> Tensor:
        """Live answers that neither ended in their first `step` tokens nor have as many as they may."""
        ended = torch.isin(self.records.tokens[self.live, :step], self.stop_ids).any(-1)
        return ~ended & (step < self.budget[self.live])
