"""The arms of a whole study: the base, each method over its alphas, and the controls beside them."""

from collections.abc import Iterable, Sequence

import pandas as pd

from steerlib.generation.arms import LOGIT_METHODS, make_arms
from steerlib.generation.contexts import Contexts
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

    Returns:
        The arms table, base first.

    Raises:
        ValueError: an unknown method or control, or settings that `make_arms` refuses.
    """
    for what, given, known in (("method", methods, METHODS), ("control", controls, CONTROLS)):
        for name in given:
            if name not in known:
                raise ValueError(f"{what} {name!r} is none of {', '.join(known)}")
    common = {"model": model, "contexts": contexts, "style": style, "sampling": sampling}
    arms = [make_arms("base", **common)]
    logit = [method for method in methods if method in LOGIT_METHODS]
    profiles = ["own", "shuffled"] if "shuffled" in controls else ["own"]
    arms += [make_arms(m, alphas, profile=profile, **common) for m in logit for profile in profiles]
    if "prompt_only" in controls:
        arms.append(make_arms("prompt_only", profile="own", **common))
    if "caa" in methods:
        arms += [
            make_arms("caa", caa_alphas, vector=name, positions=positions, **common)
            for name in vectors
            if "random" in controls or not name.startswith(CONTROL_VECTOR)
        ]
    return pd.concat(arms, ignore_index=True)
