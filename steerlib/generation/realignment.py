"""What SDA adds to its rule: how strongly a judged answer calls for steering, and a temperature by divergence."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

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
