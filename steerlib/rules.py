"""What SDA adds to its rule: how strongly a judged answer calls for steering, and a temperature by divergence.

Steering rules on next-token logits: pure functions, no model, no sampling.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

Alpha = float | Tensor


def expert_anti_expert(z_base: Tensor, z_expert: Tensor, z_anti: Tensor, alpha: Alpha) -> Tensor:
    """Move towards the expert branch and away from the anti-expert branch.

        z_new = z_B + alpha (z_E - z_A)

    Args:
        z_base, z_expert, z_anti: raw next-token logits of the three branches, `(batch, vocab)`, in nats up to one
            constant a row; taken before repetition penalty, temperature and nucleus.
        alpha: dimensionless strength, a number or one a row, `(batch,)`; 0 gives `z_base` itself.

    Returns:
        Steered logits, `(batch, vocab)`.

    Raises:
        ValueError: the branches differ in shape, or alpha is not finite.

    Source: STEER-Away, sec. 4; the rule is that of Liu et al. (DExperts, ACL 2021, sec. 2.1), whose branches are
    fine-tuned models where these are contexts of one frozen model, and who first cut the base to its nucleus.
    """
    if not z_base.shape == z_expert.shape == z_anti.shape:
        raise ValueError(
            f"branch logits differ in shape: base {tuple(z_base.shape)}, "
            f"expert {tuple(z_expert.shape)}, anti-expert {tuple(z_anti.shape)}"
        )
    if not torch.as_tensor(alpha).isfinite().all():
        raise ValueError(f"alpha must be finite, not {alpha}")
    return _moved(z_base, z_expert, z_anti, alpha)


def anti_expert(z_base: Tensor, z_anti: Tensor, alpha: Alpha) -> Tensor:
    """Move away from the anti-expert branch: the rule above with the base as its own expert.

        z_new = z_B + alpha (z_B - z_A)

    This is classifier-free guidance with scale 1 + alpha, the anti-expert context being the negative one.

    Args:
        z_base, z_anti: raw next-token logits, `(batch, vocab)`.
        alpha: dimensionless strength, a number or one a row, `(batch,)`.

    Source: STEER-Away, sec. 4.
    """
    return expert_anti_expert(z_base, z_base, z_anti, alpha)


def sda(z_plain: Tensor, z_instructed: Tensor, amplification: Alpha, k: float = 2.0) -> Tensor:
    """Move beyond the instructed branch, away from the plain one, as far as the first answer fell short.

        z_new = z_2 + k a (z_2 - z_1)

    This is classifier-free guidance with scale 1 + k a, the instructed branch being the conditional one, so its zero
    is instruction prompting and not the base.

    Args:
        z_plain, z_instructed: raw next-token logits without and with the alignment instruction, `(batch, vocab)`.
        amplification: a = F(S), dimensionless, a number or one a row, see `amplification`.
        k: strength, dimensionless; the authors' code has 2.

    Raises:
        ValueError: the branches differ in shape, or k a is not finite.

    Source: SDA, eqs. 4 and 5, whose printed arguments are exchanged; the sign is that of the authors' code. They
    combine log-probabilities; raw logits differ from those by a constant a row, which no softmax sees.
    """
    return expert_anti_expert(z_instructed, z_instructed, z_plain, k * amplification)


def base_nucleus(z_base: Tensor, top_p: Tensor) -> Tensor:
    """Tokens of the base's own nucleus: those above which less than `top_p` of softmax(z_base) lies.

    Args:
        z_base: raw next-token logits of the base, `(batch, vocab)`; no temperature.
        top_p: nucleus mass, one a row, `(batch,)`; 1 keeps every token.

    Returns:
        Boolean mask `(batch, vocab)`; the most probable token is always in it. Equal logits are in or out together.

    Source: Liu et al. (DExperts, ACL 2021, sec. 2.2), who cut the base before the rule. Here a token outside is cut
    from what the rule gave, so that it stays out whatever the other branches say of it (-inf - -inf is no number).
    """
    ranked = z_base.sort(-1, descending=True).values
    mass = ranked.softmax(-1)
    inside = (mass.cumsum(-1) - mass < top_p[:, None]).sum(-1)
    threshold = ranked.gather(-1, (inside - 1).clamp_min(0)[:, None])
    return (z_base >= threshold) | (top_p[:, None] >= 1)


def _moved(z: Tensor, towards: Tensor, away: Tensor, alpha: Alpha) -> Tensor:
    """The line itself; it looks at no number, so that a GPU need not be waited for."""
    strength = torch.as_tensor(alpha, dtype=z.dtype, device=z.device)
    return z + (strength.reshape(-1, 1) if strength.ndim else strength) * (towards - away)


@dataclass(frozen=True)
class Rule:
    """How a method makes the steered logits from those of its branches.

    Attributes:
        branches: names of the branches it needs besides "base", which every method has as its reference.
        combine: branch logits by name, `(batch, vocab)` each, and alpha `(batch,)` -> steered logits.
    """

    branches: tuple[str, ...]
    combine: Callable[[Mapping[str, Tensor], Tensor], Tensor]


RULES: Mapping[str, Rule] = {
    "base": Rule((), lambda z, alpha: z["base"]),  # noqa: ARG005
    "prompt_only": Rule(("expert",), lambda z, alpha: z["expert"]),  # noqa: ARG005
    "anti_expert": Rule(("anti",), lambda z, alpha: _moved(z["base"], z["base"], z["anti"], alpha)),
    "expert_anti_expert": Rule(
        ("expert", "anti"), lambda z, alpha: _moved(z["base"], z["expert"], z["anti"], alpha)
    ),
    "instructed": Rule(("instructed",), lambda z, alpha: z["instructed"]),  # noqa: ARG005
    "sda": Rule(("instructed",), lambda z, alpha: _moved(z["instructed"], z["instructed"], z["base"], alpha)),
    "caa": Rule(("steered",), lambda z, alpha: z["steered"]),  # noqa: ARG005
}
"""Every method of an arm, whose maker has checked its alpha. In "caa" alpha acts in the residual stream of the branch,
not on its logits; in "sda" it is k, which the request has multiplied by the prompt's a."""

LOGIT_METHODS = ("anti_expert", "expert_anti_expert", "sda")
"""Methods whose logits are linear in alpha."""


def check_method(method: str) -> Rule:
    """The rule of a method.

    Raises:
        ValueError: no such method; those there are get named.
    """
    if method not in RULES:
        raise ValueError(f"method {method!r} is none of {', '.join(RULES)}")
    return RULES[method]


SCORE_FUNCTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {
        "sigmoid": lambda s: np.tanh((100 / s - 1) / 2),
        "exponential_shifted": lambda s: np.exp(-s / 100 - 1),
        "exponential": lambda s: np.exp(-s / 100),
        "inverse": lambda s: 100 / s,
        "linear_signed": lambda s: 1 - 2 * s / 100,
        "linear": lambda s: 1 - s / 100,
        "cosine": lambda s: np.cos(np.pi * s / 200),
    }
)
"""F(S) by name: the paper's eq. 3 first, then the six others of the authors' code."""

SDA_PRESETS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "repo_tf1": {"temperature": 0.6, "top_p": 0.95, "js_sigma": 0.01, "min_temperature": 0.2},
        "repo_tf0": {"temperature": 0.6, "top_p": 0.95, "js_sigma": 2 * math.log(2), "min_temperature": 0.0},
    }
)
"""Sampling as the authors' code has it, with k = 2: its two temperature functions. The paper prints no numbers."""


def amplification(score: float | np.ndarray, function: str = "sigmoid") -> np.ndarray:
    """How strongly SDA steers a prompt whose first answer scored S: much where the answer fell short.

        a = F(S) = 2 (sigmoid(100/S - 1) - 1/2)

    Args:
        score: S of the first answer on the dimension, in (0, 100]; a number or `(n,)`.
        function: name of F in `SCORE_FUNCTIONS`.

    Returns:
        a, the shape of the score; in [0, 1) for the default.

    Raises:
        ValueError: an unknown function, or a score outside (0, 100]; the row is named.

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
    """Jensen-Shannon divergence of two distributions, in nats: from 0 to ln 2.

        JS = KL(P1 || M)/2 + KL(P2 || M)/2,  M = (P1 + P2)/2

    Args:
        log_p1, log_p2: logits or log-probabilities, `(batch, vocab)`.

    Returns:
        `(batch,)`, in float64 where the device has it.

    Source: SDA, eq. 6; the authors add 1e-9 within the logarithms, which is not needed here.
    """
    one, two = (x.float() if x.device.type == "mps" else x.double() for x in (log_p1, log_p2))
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
    """A temperature that falls where the instruction matters: T0 where both branches agree.

        T = max(T0 0.5^(JS/sigma), T_min)

    Args:
        log_p1, log_p2: logits or log-probabilities of the plain and the instructed branch, `(batch, vocab)`.
        t0: temperature at JS = 0, a number or `(batch,)`.
        sigma: divergence at which T has halved, in nats; above 0.
        t_min: lower bound.

    Returns:
        T, `(batch,)`.

    Raises:
        ValueError: sigma not above 0, or t_min above t0.

    Source: SDA, eq. 7.
    """
    js = js_divergence(log_p1, log_p2)
    t0, sigma, t_min = (torch.as_tensor(x, dtype=js.dtype, device=js.device) for x in (t0, sigma, t_min))
    if not (sigma > 0).all():
        raise ValueError(f"sigma must be above 0, not {sigma.min().item()}")
    if (t_min > t0).any():
        raise ValueError(f"t_min {t_min.max().item():g} is above t0 {t0.min().item():g}")
    return falling_temperature(js, t0, sigma, t_min)


def falling_temperature(js: Tensor, t0: Tensor, sigma: Tensor, t_min: Tensor) -> Tensor:
    """The formula of `js_temperature` alone, of settings already checked: it looks at no number."""
    return torch.maximum(t0 * 0.5 ** (js / sigma), t_min)
