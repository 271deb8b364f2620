import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from steerlib.decoding.sampling import Pieces, ScoreLines, choose, penalise_, upper_envelope


def lines_of(intercept: list[float], slope: list[float], **settings) -> ScoreLines:
    """One row without noise at temperature 1."""
    z, dz = (torch.tensor([values], dtype=torch.float64) for values in (intercept, slope))
    seen = torch.zeros_like(z, dtype=torch.bool)
    seen[0, settings.pop("seen", [])] = True
    return ScoreLines(
        z, dz, torch.ones(1, dtype=torch.float64), settings.pop("noise", None), seen, **settings
    )


def random_lines(rows: int, vocab: int, *, sampled: bool, penalty: float, min_p: float) -> ScoreLines:
    generator = torch.Generator().manual_seed(rows + vocab)
    z, dz, noise = (torch.randn(rows, vocab, generator=generator, dtype=torch.float64) for _ in range(3))
    seen = torch.rand(rows, vocab, generator=generator) < 0.5
    temperature = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.3
    return ScoreLines(z, dz * 2, temperature, noise if sampled else None, seen, penalty, min_p)


def pieces_of(lines: ScoreLines, low: float = 0.0, high: float = 2.0) -> list[tuple[float, int]]:
    """Start and token of each piece of a single row."""
    found = envelope(lines, low, high)
    return list(zip(found.low.tolist(), found.token.tolist(), strict=True))


def envelope(lines: ScoreLines, low: float, high: float) -> Pieces:
    ends = torch.ones(len(lines.intercept), dtype=torch.float64)
    return upper_envelope(partial(rows_of, lines), ends * low, ends * high, vocab=lines.intercept.shape[1])


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


def test_a_token_may_win_on_two_disjoint_intervals():
    # Token 0 is seen and bends at a = 1: score 4a - 4 before, a - 1 after. Token 1 is 2a - 2.25: above token 0 while
    # 4a - 4 < 2a - 2.25, that is a < 0.875, and again when 2a - 2.25 > a - 1, that is a > 1.25.
    lines = lines_of([-2, -2.25], [2, 2], seen=[0], penalty=2.0)
    found = pieces_of(lines)
    assert [token for _, token in found] == [1, 0, 1]
    assert [low for low, _ in found] == pytest.approx([0, 0.875, 1.25])
    # Blind to the bend at zero: the same winner at both ends of [0, 2] would be taken for the winner throughout, and
    # the line of token 0 at a = 0 alone, 4a - 4, would cross once and never come back.
    assert pieces_of(lines_of([-4, -2.25], [4, 2])) == [(0, 1), (0.875, 0)]


@pytest.mark.parametrize(
    ("sampled", "penalty", "min_p"),
    [(False, 1.15, 0.0), (True, 1.0, 0.4), (True, 1.15, 0.05), (True, 3.0, 0.4)],
)
def test_the_pieces_are_those_of_a_dense_grid(sampled, penalty, min_p):
    lines = random_lines(30, 40, sampled=sampled, penalty=penalty, min_p=min_p)
    found = envelope(lines, 0.0, 2.2)
    grid = np.linspace(0, 2.2, 999)[:-1] + 1e-4
    expected = torch.stack([chosen_at(lines, a) for a in grid], dim=1)
    missed = 0
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
            missed += 1
            assert high[piece] - low[piece] < 2 * 2.2 / 998
            assert chosen_at(lines, (low[piece] + high[piece]) / 2)[row] == token[piece]
    assert missed < 80
