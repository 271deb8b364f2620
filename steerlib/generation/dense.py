"""Penalty and choice for a device that must not be waited for: the same numbers as in `sampling`, whatever they are.

A GPU runs ahead of the program that feeds it. Counting seen tokens or rows in doubt, as `sampling` does to spare a
CPU work, would make the program wait for the count at every token, and could not be recorded as a graph.
"""

import torch
from torch import Tensor

from steerlib.generation.rules import base_nucleus


def penalise_(z: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """`sampling.penalise_`, arguments and shapes as there; every token is looked at."""
    factor = penalty[:, None]
    return z.copy_(torch.where(seen, torch.where(z < 0, z * factor, z / factor), z))


def choose(
    z: Tensor,
    noise: Tensor | None,
    temperature: Tensor,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`sampling.choose`, arguments and shapes as there; the nucleus by sorting, the gap to the best rival in it."""
    sampled = temperature > 0
    heated = z / torch.where(sampled, temperature, 1)[:, None]
    scores = heated if noise is None else heated + noise * sampled[:, None]
    if min_p is not None:
        floor = heated.amax(-1) + torch.where(sampled, min_p, 0).log()
        scores = scores.masked_fill(heated < floor[:, None], -torch.inf)
    if top_p is not None:
        inside = base_nucleus(heated, torch.where(sampled, top_p, 1))
        scores = scores.masked_fill(~inside, -torch.inf)
    best = scores.topk(2).values
    # Of equal scores the first, as everywhere: topk takes any.
    return scores.argmax(-1), best[:, 0] - best[:, 1]
