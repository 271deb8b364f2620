"""Steering rules on next-token logits: pure functions, and `RULES`, which everything that knows a method reads.

A rule is a line in alpha: steered logits = intercept + alpha * slope. A new rule is an entry of `RULES`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steerlib.models import high_precision

Alpha = float | Tensor


def expert_anti_expert(z_base: Tensor, z_expert: Tensor, z_anti: Tensor, alpha: Alpha) -> Tensor:
    """Logits moved towards the expert branch and away from the anti-expert branch.

        z_new = z_B + alpha (z_E - z_A)

    Raw next-token logits of the three branches are `(batch, vocab)`, in nats up to one constant per row, taken before
    repetition penalty, temperature and nucleus. Alpha is dimensionless, a number or one per row, `(batch,)`.

    Source: STEER-Away, sec. 4; the rule is that of Liu et al. (DExperts, ACL 2021, sec. 2.1), whose branches are
    fine-tuned models where these are contexts of one frozen model, and who first cut the base to its nucleus.
    """
    strength = torch.as_tensor(alpha, dtype=z_base.dtype, device=z_base.device)
    return z_base + strength[..., None] * (z_expert - z_anti)


def anti_expert(z_base: Tensor, z_anti: Tensor, alpha: Alpha) -> Tensor:
    """Logits moved away from the anti-expert branch: `expert_anti_expert` with the base as its own expert.

        z_new = z_B + alpha (z_B - z_A)

    This is classifier-free guidance with scale 1 + alpha, the anti-expert context being the negative one (STEER-Away,
    sec. 4).
    """
    return expert_anti_expert(z_base, z_base, z_anti, alpha)


def sda(z_plain: Tensor, z_instructed: Tensor, amplification: Alpha, k: float = 2.0) -> Tensor:
    """Logits moved beyond the instructed branch, away from the plain one, as far as the first answer fell short.

        z_new = z_2 + k a (z_2 - z_1)

    This is classifier-free guidance with scale 1 + k a, so its zero is instruction prompting and not the base: z_2 are
    the logits with the alignment instruction. a = F(S), see `amplification`, is a number or one per row; the authors'
    code has k = 2.

    Source: SDA, eqs. 4 and 5, whose printed arguments are exchanged; the sign is that of the authors' code. They
    combine log-probabilities; raw logits differ from those by a constant per row, which no softmax sees.
    """
    return expert_anti_expert(z_instructed, z_instructed, z_plain, k * amplification)


@dataclass(frozen=True)
class Rule:
    """One method: how it makes steered logits from those of its branches, and what is said of it.

    Attributes:
        branches: those it needs besides "base". "steered" is the base with a vector in its residual stream; every other
            one is a context of that name, or a trained model.
        steer: raw logits by branch, `(batch, vocab)` each, and alpha, `(batch,)` -> steered logits. It must be linear
            in alpha, and should call its formula by the module-level name.
        label, colour: of figures.
        acts_on: "logits", "residual" (alpha is the vector's, not the logits'), "context" (no alpha) or "text" (another
            model rewrites the answer).
        control: what answers at equal strength without the signal: "shuffled_profile", "random_vector" or "".
        zero: the method that alpha = 0 equals.
        symbol: what its strength is called.
    """

    name: str
    branches: tuple[str, ...]
    steer: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    label: str
    colour: str
    acts_on: str = "logits"
    control: str = ""
    zero: str = "base"
    symbol: str = "alpha"

    @property
    def has_alpha(self) -> bool:
        return self.acts_on in ("logits", "residual")

    @property
    def context_branches(self) -> tuple[str, ...]:
        """Branches that read a context, or that a trained model stands for."""
        return tuple(name for name in self.branches if name != "steered")

    @property
    def instructed(self) -> bool:
        """Whether it reads the alignment instruction: then its strength is k a, and its temperature may fall."""
        return "instructed" in self.branches

    def line(self, z: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Intercept and slope of the steered logits as a line in alpha, `(batch, vocab)` each.

            intercept = steer(z, 0),    slope = steer(z, 1) - steer(z, 0)

        Give the raw logits by branch in float64: the line is no more exact than they are.
        """
        zeros = torch.zeros_like(z["base"][:, 0])
        intercept = self.steer(z, zeros)
        return intercept, self.steer(z, zeros + 1) - intercept


def _only(branch: str) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    return lambda z, alpha: z[branch]  # noqa: ARG005


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("base", (), _only("base"), "Base", "#7f7f7f", "context"),
        Rule("prompt_only", ("expert",), _only("expert"), "Prompt only", "#cc79a7", "context"),
        Rule(
            "anti_expert",
            ("anti",),
            lambda z, alpha: anti_expert(z["base"], z["anti"], alpha),
            "Anti-Expert",
            "#d55e00",
            control="shuffled_profile",
        ),
        Rule(
            "expert_anti_expert",
            ("expert", "anti"),
            lambda z, alpha: expert_anti_expert(z["base"], z["expert"], z["anti"], alpha),
            "Expert-Anti-Expert",
            "#0072b2",
            control="shuffled_profile",
        ),
        Rule("instructed", ("instructed",), _only("instructed"), "Instruction only", "#56b4e9", "context"),
        Rule(
            "sda",
            ("instructed",),
            lambda z, alpha: sda(z["base"], z["instructed"], alpha, k=1.0),
            "SDA",
            "#e69f00",
            control="shuffled_profile",
            zero="instructed",
            symbol="k",
        ),
        Rule("caa", ("steered",), _only("steered"), "CAA", "#009e73", "residual", control="random_vector"),
        Rule("aligner", (), _only("base"), "Aligner", "#000000", "text"),
    )
}
"""Every method. The alpha of a request is already multiplied by its prompt's factor: for "sda" it is k a."""


def check_method(method: str) -> Rule:
    """The rule of a method; a ValueError where there is none."""
    if method not in RULES:
        raise ValueError(f"method {method!r} is none of {', '.join(RULES)}")
    return RULES[method]


def acting_on(*acts_on: str) -> tuple[str, ...]:
    """Names of the methods that act on any of these: "logits", "residual", "context", "text"."""
    return tuple(name for name, rule in RULES.items() if rule.acts_on in acts_on)


SCORE_FUNCTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": lambda s: np.tanh((100 / s - 1) / 2),
    "exponential_shifted": lambda s: np.exp(-s / 100 - 1),
    "exponential": lambda s: np.exp(-s / 100),
    "inverse": lambda s: 100 / s,
    "linear_signed": lambda s: 1 - 2 * s / 100,
    "linear": lambda s: 1 - s / 100,
    "cosine": lambda s: np.cos(np.pi * s / 200),
}
"""F(S) by name: the paper's eq. 3 first, then the six others of the authors' code."""


def amplification(score: float | np.ndarray, function: str = "sigmoid") -> np.ndarray:
    """How strongly SDA steers a prompt whose first answer scored S, the shape of the score; in [0, 1) by default.

        a = F(S) = 2 (sigmoid(100/S - 1) - 1/2)

    S is that of the first answer on the dimension, a number or `(n,)`; outside (0, 100] its row is refused. `function`
    names F in `SCORE_FUNCTIONS`.

    Source: SDA, eq. 3; it is tanh((100/S - 1)/2). The others are choices of the authors' code.
    """
    if function not in SCORE_FUNCTIONS:
        raise ValueError(f"score function {function!r} is none of {', '.join(SCORE_FUNCTIONS)}")
    s = np.asarray(score, dtype=float)
    wrong = np.flatnonzero(~((s > 0) & (s <= 100)))
    if len(wrong):
        raise ValueError(f"score {s.flat[wrong[0]]} in row {wrong[0]} is not in (0, 100]")
    return SCORE_FUNCTIONS[function](s)


def js_divergence(log_p1: Tensor, log_p2: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats, 0 to ln 2, `(batch,)`, of logits or log-probabilities, `(batch, vocab)`.

        JS = KL(P1 || M)/2 + KL(P2 || M)/2,  M = (P1 + P2)/2

    Source: SDA, eq. 6; the authors add 1e-9 within the logarithms, which is not needed here.
    """
    one, two = (high_precision(x) for x in (log_p1, log_p2))
    one, two = one.log_softmax(-1), two.log_softmax(-1)
    middle = torch.logaddexp(one, two) - math.log(2)
    one, two = (
        torch.nn.functional.kl_div(middle, p, log_target=True, reduction="none").nan_to_num(0).sum(-1)
        for p in (one, two)
    )
    return ((one + two) / 2).clamp(0, math.log(2))


def js_temperature(
    log_p1: Tensor, log_p2: Tensor, *, t0: float | Tensor, sigma: float | Tensor, t_min: float | Tensor = 0.0
) -> Tensor:
    """A temperature that falls where the instruction matters, T0 where both branches agree; `(batch,)`.

        T = max(T0 0.5^(JS/sigma), T_min)

    JS is that of the plain and the instructed branch, see `js_divergence`. `t0` is the temperature at JS = 0, `sigma`,
    above 0, the divergence in nats at which it has halved, `t_min` its lower bound, at most t0; numbers or `(batch,)`.

    Source: SDA, eq. 7. The paper prints no numbers; the authors' code has t0 0.6 with sigma 0.01, t_min 0.2 (its tf 1),
    or with sigma 2 ln 2, t_min 0 (its tf 0).
    """
    js = js_divergence(log_p1, log_p2)
    t0, sigma, t_min = (torch.as_tensor(x, dtype=js.dtype, device=js.device) for x in (t0, sigma, t_min))
    return torch.maximum(t0 * 0.5 ** (js / sigma), t_min)
