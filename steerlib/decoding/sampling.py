"""From steered logits to the next token, at one alpha and for every alpha, with noise that all arms share.

Order: repetition penalty, temperature, nucleus, choice. There is no top-k (transformers' generate applies
`top_k=50` unless told otherwise).

As a function of alpha the chosen token is that of an upper envelope of piecewise linear scores,

    f_v(alpha) = pen(z_v + alpha dz_v) / T + g_v

pen is the repetition penalty on seen tokens: x p below zero, x / p above, which for p >= 1 is min(x p, x / p).
So every score is a line or the lower one of two, and a token may win on two disjoint intervals. With min-p a
token may be chosen only where its score without noise is not below the best one's by more than -ln m.

The interval is probed in its middle; the winner there holds its place up to the first alpha, on either side, at
which some rival is both better and in the nucleus, or the winner leaves the nucleus, or a line in use bends.
What is left on either side is probed in turn. Every alpha is covered, and no threshold is guessed.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

PENALTY_SCOPES = ("prompt_and_generated", "generated_only")
NEAR_TIE = 1e-3
MASK32 = 0xFFFFFFFF
CPU_CHUNK, GPU_CHUNK = 2**18, 2**24
"""Scores probed at one time, in numbers: on a CPU what its cache holds (5 times as fast as 2**22, seen)."""


@dataclass(frozen=True)
class Sampling:
    """Settings of the choice of tokens; every arm carries them.

    Attributes:
        temperature: dimensionless; 0 is greedy.
        top_p: nucleus mass in (0, 1]; 1 keeps every token.
        min_p: tokens less than this many times as probable as the best are cut (Nguyen et al. 2024), instead of top_p.
        repetition_penalty: >= 1; logits of tokens seen are divided by it where positive, multiplied where negative.
        penalty_scope: tokens counted as seen: the base branch's prompt and the answer so far
            ("prompt_and_generated", the library's default), or the answer alone ("generated_only").
        max_new_tokens: longest answer.
        js_sigma: divergence of plain and instructed branch at which the temperature has halved, in nats, see
            `js_temperature`; 0 for one temperature throughout. For rules with an instructed branch.
        min_temperature: lower bound of that temperature.
    """

    temperature: float = 0.7
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.15
    penalty_scope: str = "prompt_and_generated"
    max_new_tokens: int = 128
    js_sigma: float = 0.0
    min_temperature: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed, fine in (
            ("temperature", "0 (greedy) or more", 0 <= self.temperature < math.inf),
            ("top_p", "in (0, 1]", 0 < self.top_p <= 1),
            ("min_p", "in [0, 1]", 0 <= self.min_p <= 1),
            ("repetition_penalty", "1 or more", 1 <= self.repetition_penalty < math.inf),
            ("penalty_scope", f"one of {', '.join(PENALTY_SCOPES)}", self.penalty_scope in PENALTY_SCOPES),
            ("max_new_tokens", "1 or more", self.max_new_tokens >= 1),
            ("js_sigma", "0 (off) or more", 0 <= self.js_sigma < math.inf),
            ("min_temperature", "in [0, temperature]", 0 <= self.min_temperature <= self.temperature),
        ):
            if not fine:
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name)!r}")
        if self.min_p and self.top_p < 1:
            raise ValueError(f"min_p {self.min_p} and top_p {self.top_p} exclude each other; set top_p to 1")


def penalise_(z: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """`z` with the logits of seen tokens moved down, in place (Keskar et al. 2019, sec. 4.1, as transformers has it).

    Steered logits and which tokens are penalised are `(batch, vocab)`, the penalty `(batch,)`, 1 for none.
    """
    row, token = seen.nonzero(as_tuple=True)
    value, factor = z[row, token], penalty[row]
    z[row, token] = torch.where(value < 0, value * factor, value / factor)
    return z


def text_hash(text: str) -> int:
    """32-bit hash of a text, the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def gumbel_noise(prompts: Tensor, seeds: Tensor, step: int, vocab: int, *, dtype: torch.dtype) -> Tensor:
    """Standard Gumbel noise from a counter hash of (seed, prompt, step, token), `(batch, vocab)`.

    The largest of z/T + g is a draw from softmax(z/T). The noise depends on nothing else, so all arms of a prompt
    share it (common random numbers: their differences are the steering's), in any batch and on any device.

    `prompts` and `seeds` are the hash of each row's prompt and its seed, int64 `(batch,)`; steps count from 0.
    """
    row = _mixed(_mixed(_mixed(prompts) ^ seeds) ^ step)
    token = _mixed(torch.arange(vocab, device=prompts.device) + 0x9E3779B9)
    # 23 bits, centred: exact in float32 and never 0 or 1, whose Gumbel value would be infinite.
    uniform = ((_mixed(row[:, None] ^ token) >> 9).to(torch.float32) + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform)).to(dtype)


def _mixed(x: Tensor) -> Tensor:
    """A 32-bit finaliser (multiply and xor-shift, after Mueller's lowbias32), held in int64."""
    x = x & MASK32
    x = (x ^ (x >> 16)) * 0x7FEB352D & MASK32
    x = (x ^ (x >> 15)) * 0x846CA68B & MASK32
    return x ^ (x >> 16)


def choose(
    z: Tensor, noise: Tensor | None, temperature: Tensor, top_p: Tensor, min_p: Tensor
) -> tuple[Tensor, Tensor]:
    """A token per row, the best logit or a draw from the nucleus of softmax(z/T) by fixed noise; and its lead.

    A token is in the min-p nucleus if z_v/T >= max_u z_u/T + ln min_p; in that of top-p if the tokens above it hold
    less than `top_p` together. No sort is needed: the winner of z/T + g over the whole vocabulary is the winner of the
    nucleus if it lies in it; if not, nothing below it does either, and the next winner is looked for above.

    `z` are penalised logits and `noise` is Gumbel noise, `(batch, vocab)`, None where every row is greedy; the settings
    are `(batch,)`, see `Sampling`. Returns tokens and the gap between the two best scores, `(batch,)` each: below
    `NEAR_TIE`, another batch shape may choose the other in float32.
    """
    sampled = temperature > 0
    if noise is None:
        best = z.topk(2).values
        return z.argmax(-1), best[:, 0] - best[:, 1]
    heated = z / torch.where(sampled, temperature, 1)[:, None]
    scores = heated + noise * sampled[:, None]
    if (min_p > 0).any():
        floor = heated.amax(-1) + torch.where(sampled, min_p, 0).log()
        scores.masked_fill_(heated < floor[:, None], -torch.inf)
    best, tokens = scores.max(-1)
    unsure = (sampled & (top_p < 1)).nonzero()[:, 0]
    log_norm = heated.logsumexp(-1) if len(unsure) else heated[:, 0]
    while len(unsure):
        inside = heated[unsure]
        above = inside > inside.gather(1, tokens[unsure, None])
        mass = inside.sub_(log_norm[unsure, None]).exp_().mul_(above).sum(-1)
        outside = mass >= top_p[unsure]
        unsure, above = unsure[outside], above[outside]
        scores[unsure] = scores[unsure].masked_fill_(~above, -torch.inf)
        best[unsure], tokens[unsure] = scores[unsure].max(-1)
    scores.scatter_(1, tokens[:, None], -torch.inf)
    return tokens, best - scores.amax(-1)


@dataclass(frozen=True)
class ScoreLines:
    """Scores of all tokens as functions of alpha, one row per prefix.

    Attributes:
        intercept: logits at alpha = 0, `(rows, vocab)`; in float64, or breakpoints are no more exact than the rest.
        slope: their change per unit of alpha, `(rows, vocab)`.
        temperature: above 0, one per row `(rows,)`; it may depend on the prefix, not on alpha.
        noise: added after the temperature, `(rows, vocab)`; None for greedy choice.
        seen: tokens with a repetition penalty, boolean `(rows, vocab)`.
        penalty, min_p: as in `Sampling`.
    """

    intercept: Tensor
    slope: Tensor
    temperature: Tensor
    noise: Tensor | None
    seen: Tensor
    penalty: float = 1.0
    min_p: float = 0.0


class Pieces(NamedTuple):
    """Consecutive intervals of alpha with one chosen token each, ordered by row and alpha; all fields `(n,)`."""

    row: Tensor
    low: Tensor
    high: Tensor
    token: Tensor


def upper_envelope(lines: Callable[[Tensor], ScoreLines], low: Tensor, high: Tensor, *, vocab: int) -> Pieces:
    """Which token is chosen where, for every row over its own interval of alpha.

    Neighbours of a row differ in their token, a piece ends where the next begins, and together they are [low, high].
    At a breakpoint the later piece begins.

    `lines` gives the scores of some rows, by their numbers; it is asked for as many as a chunk holds, so that those of
    all rows never stand in memory together. `low` and `high` are `(rows,)`, low < high.
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


class _Probe(NamedTuple):
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


def _dominant(lines: ScoreLines, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The token chosen in the middle of each interval, and the largest interval around it where it surely is."""
    middle, temperature = low + (high - low) / 2, lines.temperature[:, None]
    x = lines.intercept + middle[:, None] * lines.slope
    value, slope = x.clone(), lines.slope.clone()
    row, token = lines.seen.nonzero(as_tuple=True)
    xs, ds, p = x[row, token], slope[row, token], lines.penalty
    value[row, token] = torch.where(xs < 0, xs * p, xs / p)
    slope[row, token] = torch.where(xs < 0, ds * p, ds / p)
    probe = _Probe(lines, x, value.div_(temperature), slope.div_(temperature), (high - low) / 2)
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
    return token, (middle + left).clamp(low, high), (middle + right).clamp(low, high)


def _dominance(
    probe: _Probe, scores: Tensor, winner: Tensor, floor: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """How far to the left and right of t = 0 the winner's line is unbent and no rival beats it.

    A rival is taken for its line at t = 0, which is nowhere below its score: at worst an interval is called too short,
    and the next probe continues it. Only rivals whose line reaches the winner's within the interval need a closer
    look: few, once intervals are narrow. `scores` are those at t = 0, noise included where it counts, `(rows, vocab)`;
    `floor` is value and slope of the nucleus's lower edge, `(rows,)` each, and rivals below it are none.
    """
    # Where the winner's logit keeps its sign: everywhere if it has no penalty.
    x, dx = _at(probe.x, winner), _at(probe.lines.slope, winner)
    outward = torch.where(x < 0, -dx, dx)
    bends = _at(probe.lines.seen, winner) & (probe.lines.penalty != 1)
    left = torch.where(bends & (outward > 0), -x / dx, -torch.inf)
    right = torch.where(bends & (outward < 0), -x / dx, torch.inf)
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


def _above(value: Tensor, slope: Tensor, *, closed: bool = False) -> tuple[Tensor, Tensor]:
    """The half-line of t on which value + slope t > 0 (closed: >= 0); it begins at inf where there is none."""
    root = -value / slope
    none = (slope == 0) & ((value < 0) if closed else (value <= 0))
    start = torch.where(slope > 0, root, torch.where(none, torch.inf, -torch.inf))
    return start, torch.where(slope < 0, root, torch.inf)


def _at(table: Tensor, token: Tensor) -> Tensor:
    return table.gather(1, token[:, None])[:, 0]
