"""The arms of a whole study: the base, each method over its alphas, and the controls beside them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import pandas as pd

from steerlib.generation.arms import LOGIT_METHODS, make_arms, reads_contexts
from steerlib.generation.contexts import Contexts
from steerlib.generation.rules import check_method
from steerlib.generation.sampling import Sampling

METHODS = (*LOGIT_METHODS, "caa")
CONTROLS = ("prompt_only", "shuffled", "random")
CONTROL_VECTOR = "random"


def study_arms(
    methods: Sequence[str],
    controls: Sequence[str],
    *,
    alphas: Sequence[float],
    caa_alphas: Sequence[float],
    vectors: Iterable[str],
    model: str,
    contexts: Contexts,
    positions: str,
    style: str,
    sampling: Sampling,
    base_top_p: float = 1.0,
    branches: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Arms table of a study.

    Args:
        methods: of "anti_expert", "expert_anti_expert", "caa".
        controls: of "prompt_only" (the expert context as a prompt), "shuffled" (the logit rules under another
            user's category), "random" (a random vector in place of each steering vector).
        alphas: of the logit rules, dimensionless.
        caa_alphas: of the steering vectors, in units of the vector.
        vectors: names of the steering vectors; those that begin with "random" are controls.
        model, contexts, positions, style, sampling: settings of every arm, see `make_arms`.
        base_top_p: of the logit rules, see `make_arms`.
        branches: names of trained models by branch; each method takes those of its branches. Where none of its
            branches is left to a context, it has no placebo and stands under profile "none".

    Returns:
        The arms table, base first.

    Raises:
        ValueError: an unknown method or control, or settings that `make_arms` refuses.
    """
    for what, given, known in (("method", methods, METHODS), ("control", controls, CONTROLS)):
        for name in given:
            if name not in known:
                raise ValueError(f"{what} {name!r} is none of {', '.join(known)}")
    make = partial(make_arms, model=model, contexts=contexts, style=style, sampling=sampling)
    arms = [make("base")]
    profiles = ["own", "shuffled"] if "shuffled" in controls else ["own"]
    for method in methods:
        if method in LOGIT_METHODS:
            trained = _trained(method, branches)
            make_rule = partial(make, method, alphas, base_top_p=base_top_p, branches=trained)
            steered_by = profiles if reads_contexts(method, trained) else ["none"]
            arms += [make_rule(profile=profile) for profile in steered_by]
    if "prompt_only" in controls:
        trained = _trained("prompt_only", branches)
        profile = "own" if reads_contexts("prompt_only", trained) else "none"
        arms.append(make("prompt_only", profile=profile, branches=trained))
    if "caa" in methods:
        arms += [
            make("caa", caa_alphas, vector=name, positions=positions)
            for name in vectors
            if "random" in controls or not name.startswith(CONTROL_VECTOR)
        ]
    return pd.concat(arms, ignore_index=True)


def _trained(method: str, branches: Mapping[str, str] | None) -> dict[str, str]:
    """Those of the trained models that a method has a branch for."""
    return {b: name for b, name in (branches or {}).items() if b in check_method(method).branches}
