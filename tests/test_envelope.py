import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from steerlib.decoding.sampling import ScoreLines, choose, penalise_, upper_envelope


def random_lines(rows: int, vocab: int, *, sampled: bool, penalty: float, min_p: float) -> ScoreLines:
    generator = torch.Generator().manual_seed(rows + vocab)
    z, dz, noise = (torch.randn(rows, vocab, generator=generator, dtype=torch.float64) for _ in range(3))
    seen = torch.rand(rows, vocab, generator=generator) < 0.5
    temperature = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.3
    return ScoreLines(z, dz * 2, temperature, noise if sampled else None, seen, penalty, min_p)


def rows_of(lines: ScoreLines, rows: Tensor) -> ScoreLines:
    noise = None if lines.noise is None else lines.noise[rows]
    some = {name: getattr(lines, name)[rows] for name in ("intercept", "slope", "temperature", "seen")}
    return dataclasses.replace(lines, noise=noise, **some)


def chosen_at(lines: ScoreLines, alpha: float) -> Tensor:
    """The engine's own choice at one alpha."""
    rows, _ = lines.intercept.shape
    z = lines.intercept + alpha * lines.slope
    penalise_(z, lines.seen, torch.full((rows,), lines.penalty, dtype=z.dtype))
    if lines.noise is None:
        return (z / lines.temperature[:, None]).argmax(-1)
    min_p = torch.full((rows,), lines.min_p, dtype=z.dtype)
    return choose(z, lines.noise, lines.temperature, torch.ones(rows), min_p)[0]


@pytest.mark.parametrize(
    ("sampled", "penalty", "min_p"),
    [(False, 1.15, 0.0), (True, 1.0, 0.4), (True, 1.15, 0.05), (True, 3.0, 0.4)],
)
def test_the_pieces_are_those_of_a_dense_grid(sampled, penalty, min_p):
    lines = random_lines(30, 40, sampled=sampled, penalty=penalty, min_p=min_p)
    ends = torch.ones(30, dtype=torch.float64)
    found = upper_envelope(partial(rows_of, lines), 0 * ends, 2.2 * ends, vocab=40)
    grid = np.linspace(0, 2.2, 999)[:-1] + 1e-4
    expected = torch.stack([chosen_at(lines, a) for a in grid], dim=1)
    for row in range(30):
        mine = found.row == row
        low, high, token = (side[mine].numpy() for side in (found.low, found.high, found.token))
        place = np.searchsorted(low, grid, side="right") - 1
        assert token[place].tolist() == expected[row].tolist()
        assert low[0] == 0.0
        assert high[-1] == 2.2
        assert (low[1:] == high[:-1]).all()
        assert (token[1:] != token[:-1]).all()
        # A piece that the grid steps over is one between two grid points, and its middle must agree as well.
        for piece in set(range(len(low))) - set(place):
            assert high[piece] - low[piece] < 2 * 2.2 / 998
            assert chosen_at(lines, (low[piece] + high[piece]) / 2)[row] == token[piece]
