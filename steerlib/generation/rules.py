"""Steering rules on next-token logits: pure functions, no model, no sampling."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
