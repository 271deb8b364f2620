"""From steered logits to the next token: one stack for every arm, with noise that all arms share.

Order: repetition penalty, temperature, nucleus, choice. There is no top-k (transformers' generate applies
`top_k=50` unless told otherwise).
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

PENALTY_SCOPES = ("prompt_and_generated", "generated_only")
NEAR_TIE = 1e-3
MASK32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Sampling:
    """Settings of the choice of tokens; every arm carries them.

    Attributes:
        temperature: dimensionless; 0 is greedy.
        top_p: nucleus mass in (0, 1]; 1 keeps every token.
        min_p: tokens less than this many times as probable as the best are cut (Nguyen et al. 2024); 0 keeps every
            token. Instead of top_p, not beside it.
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

    Args:
        z: steered logits, `(batch, vocab)`; changed.
        seen: which tokens are penalised, boolean `(batch, vocab)`.
        penalty: `(batch,)`, 1 for none.
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

    Args:
        prompts, seeds: hash of each row's prompt and its seed, int64 `(batch,)`.
        step: 0-based index of the token to be chosen, of `vocab`.
        dtype: of the result.
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

    Args:
        z: penalised logits, `(batch, vocab)`.
        noise: Gumbel noise, `(batch, vocab)`; None where every row is greedy.
        temperature: `(batch,)`, 0 for greedy rows.
        top_p: `(batch,)`, 1 for every token.
        min_p: `(batch,)`, 0 for every token.

    Returns:
        Tokens `(batch,)`, and the gap between the two best scores `(batch,)`: below `NEAR_TIE`, another batch shape
        may choose the other in float32.
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
