"""The chosen token as a function of alpha: exact breakpoints of an upper envelope of piecewise linear scores.

    f_v(alpha) = pen(z_v + alpha dz_v) / T + g_v

pen is the repetition penalty on seen tokens: x p below zero, x / p above, which for p >= 1 is min(x p, x / p).
So every score is a line or the lower one of two, and a token may win on two disjoint intervals. With min-p a
token may be chosen only where its score without noise is not below the best one's by more than -ln m.

The interval is probed in its middle; the winner there holds its place up to the first alpha, on either side, at
which some rival is both better and in the nucleus, or the winner leaves the nucleus, or a line in use bends.
What is left on either side is probed in turn. Every alpha is covered, and no threshold is guessed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_CHUNK, GPU_CHUNK = 2**18, 2**24
"""Scores probed at one time, in numbers: on a CPU what its cache holds (5 times as fast as 2**22, seen)."""


@dataclass(frozen=True)
class ScoreLines:
    """Scores of all tokens as functions of alpha, one row per prefix.

    Attributes:
        intercept: logits at alpha = 0, `(rows, vocab)`; in float64, or breakpoints are no more exact than the rest.
            -inf, with slope 0, for a token that may not be chosen at any alpha.
        slope: their change per unit of alpha, `(rows, vocab)`.
        temperature: above 0, one per row `(rows,)`; it may depend on the prefix, not on alpha.
        noise: added after the temperature, `(rows, vocab)`; None for greedy choice.
        seen: tokens with a repetition penalty, boolean `(rows, vocab)`.
        penalty: 1 or more.
        min_p: least probability against the best token's before noise; 0 for no nucleus.
    """

    intercept: Tensor
    slope: Tensor
    temperature: Tensor
    noise: Tensor | None
    seen: Tensor
    penalty: float = 1.0
    min_p: float = 0.0


@dataclass(frozen=True)
class Pieces:
    """Consecutive intervals of alpha with one chosen token each, ordered by row and alpha; all fields `(n,)`."""

    row: Tensor
    low: Tensor
    high: Tensor
    token: Tensor


def upper_envelope(lines: Callable[[Tensor], ScoreLines], low: Tensor, high: Tensor, *, vocab: int) -> Pieces:
    """Which token is chosen where, for every row over its own interval of alpha.

    Neighbours of a row differ in their token, a piece ends where the next begins, and together they are [low, high].
    At a breakpoint the later piece begins.

    Args:
        lines: the scores of some rows, by their numbers; asked for as many as a chunk holds, as often as needed, so
            that the lines of all rows never stand in memory together.
        low, high: ends of each row's interval, `(rows,)`, low < high.
        vocab: tokens of a row.
    """
    row = torch.arange(len(low), device=low.device)
    # Two estimates of one breakpoint differ by rounding alone; what is narrower is no interval.
    tolerance = 8 * torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs())
    found: list[tuple[Tensor, ...]] = []
    size = max(1, (CPU_CHUNK if low.device.type == "cpu" else GPU_CHUNK) // vocab)
    while len(row):
        parts = [
            _dominant(lines(row[i : i + size]), low[i : i + size], high[i : i + size])
            for i in range(0, len(row), size)
        ]
        token, left, right = (torch.cat(side) for side in zip(*parts, strict=True))
        left = torch.where(left - low <= tolerance[row], low, left)
        right = torch.where(high - right <= tolerance[row], high, right)
        held = right > left
        found.append((row[held], left[held], right[held], token[held]))
        before, after = left > low, right < high
        low, high = torch.cat([low[before], right[after]]), torch.cat([left[before], high[after]])
        row = torch.cat([row[before], row[after]])
    row, low, high, token = (torch.cat(side) for side in zip(*found, strict=True))
    # In order, neighbours with the same token made one.
    order = low.argsort(stable=True)
    order = order[row[order].argsort(stable=True)]
    row, low, high, token = row[order], low[order], high[order], token[order]
    new = torch.ones_like(row, dtype=torch.bool)
    new[1:] = (row[1:] != row[:-1]) | (token[1:] != token[:-1])
    last = torch.cat([new[1:], new.new_ones(1)])
    return Pieces(row[new], low[new], high[last], token[new])


@dataclass(frozen=True)
class _Probe:
    """Scores around the middle of an interval, as lines in t = alpha - middle.

    Attributes:
        x: logits before penalty, at t = 0.
        value, slope: scores without noise at t = 0 and their slope there, `(rows, vocab)`.
        half: half the width of the interval.
    """

    lines: ScoreLines
    x: Tensor
    value: Tensor
    slope: Tensor
    half: Tensor


def _probe(lines: ScoreLines, low: Tensor, high: Tensor) -> _Probe:
    middle = low + (high - low) / 2
    x = lines.intercept + middle[:, None] * lines.slope
    value, slope = x.clone(), lines.slope.clone()
    row, token = lines.seen.nonzero(as_tuple=True)
    xs, ds, p = x[row, token], slope[row, token], lines.penalty
    value[row, token] = torch.where(xs < 0, xs * p, xs / p)
    slope[row, token] = torch.where(xs < 0, ds * p, ds / p)
    temperature = lines.temperature[:, None]
    return _Probe(lines, x, value.div_(temperature), slope.div_(temperature), (high - low) / 2)


def _dominant(lines: ScoreLines, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The token chosen in the middle of each interval, and the largest interval around it where it surely is."""
    probe = _probe(lines, low, high)
    scores = probe.value if lines.noise is None else probe.value + lines.noise
    if lines.min_p:
        best = probe.value.argmax(-1)
        first, last = _dominance(probe, probe.value, best)
        floor = _at(probe.value, best) + math.log(lines.min_p), _at(probe.slope, best)
        token = scores.masked_fill(probe.value < floor[0][:, None], -torch.inf).argmax(-1)
        inside = _above(_at(probe.value, token) - floor[0], _at(probe.slope, token) - floor[1], closed=True)
        left, right = _dominance(probe, scores, token, floor)
        left = torch.stack([left, first, inside[0]]).amax(0)
        right = torch.stack([right, last, inside[1]]).amin(0)
    else:
        token = scores.argmax(-1)
        left, right = _dominance(probe, scores, token)
    middle = low + probe.half
    return token, (middle + left).clamp(low, high), (middle + right).clamp(low, high)


def _dominance(
    probe: _Probe, scores: Tensor, winner: Tensor, floor: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """How far to the left and right of t = 0 the winner's line is unbent and no rival beats it.

    A rival is taken for its line at t = 0, which is nowhere below its score: at worst an interval is called too short,
    and the next probe continues it. Only rivals whose line reaches the winner's within the interval need a closer
    look: few, once intervals are narrow.

    Args:
        probe: the lines.
        scores: at t = 0, noise included where it counts, `(rows, vocab)`.
        winner: `(rows,)`.
        floor: value and slope of the nucleus's lower edge, `(rows,)` each; rivals below it are none.
    """
    left, right = _unbent(probe, winner)
    top, rise = _at(scores, winner), _at(probe.slope, winner)
    reach = (probe.slope - rise[:, None]).abs_().mul_(probe.half[:, None])
    row, token = (reach > top[:, None] - scores).nonzero().unbind(-1)
    rival = probe.slope[row, token]
    start, stop = _above(scores[row, token] - top[row], rival - rise[row])
    if floor is not None:
        enters, leaves = _above(probe.value[row, token] - floor[0][row], rival - floor[1][row], closed=True)
        start, stop = torch.maximum(start, enters), torch.minimum(stop, leaves)
    ahead, behind = (start < stop) & (start >= 0), (start < stop) & (stop <= 0)
    right = right.scatter_reduce(0, row[ahead], start[ahead], "amin")
    left = left.scatter_reduce(0, row[behind], stop[behind], "amax")
    return left, right


def _unbent(probe: _Probe, token: Tensor) -> tuple[Tensor, Tensor]:
    """Where the token's logit keeps its sign around t = 0; everywhere if it has no penalty."""
    x, dx = _at(probe.x, token), _at(probe.lines.slope, token)
    zero = -x / dx
    outward = torch.where(x < 0, -dx, dx)
    bends = _at(probe.lines.seen, token) & (probe.lines.penalty != 1)
    left = torch.where(bends & (outward > 0), zero, -torch.inf)
    right = torch.where(bends & (outward < 0), zero, torch.inf)
    return left, right


def _above(value: Tensor, slope: Tensor, *, closed: bool = False) -> tuple[Tensor, Tensor]:
    """The half-line of t on which value + slope t > 0 (closed: >= 0); it begins at inf where there is none."""
    root = -value / slope
    none = (slope == 0) & ((value < 0) if closed else (value <= 0))
    start = torch.where(slope > 0, root, torch.where(none, torch.inf, -torch.inf))
    return start, torch.where(slope < 0, root, torch.inf)


def _at(table: Tensor, token: Tensor) -> Tensor:
    return table.gather(1, token[:, None])[:, 0]
