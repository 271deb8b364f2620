"""The arms of a whole study: the base, each method over its alphas, and the controls beside them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from steerlib.decoding.arms import make_arms, reads_contexts, with_variants
from steerlib.decoding.contexts import Contexts
from steerlib.decoding.sampling import Sampling
from steerlib.rules import check_method

CONTEXT_METHODS = ("anti_expert", "expert_anti_expert")
METHODS = (*CONTEXT_METHODS, "caa", "sda")
CONTROLS = ("prompt_only", "shuffled", "random")
ABLATIONS = ("instructed", "steering_only", "temperature_only", "fixed")
CONTROL_VECTOR = "random"
SHUFFLED_FAMILY = "_shuffled"
"""How the name of a family ends that gives each user another user's vector."""


@dataclass(frozen=True)
class Strengths:
    """The grid of each method.

    Attributes:
        alphas: of the logit rules, dimensionless.
        caa_alphas: of the steering vectors, in units of the vector.
        composed_alphas: of the users' own vectors; those of `caa_alphas` where empty.
        sda_ks: k of SDA.
        vector_alpha: of the population's vector beside each logit rule; 0 for no such arms.
    """

    alphas: Sequence[float] = ()
    caa_alphas: Sequence[float] = ()
    composed_alphas: Sequence[float] = ()
    sda_ks: Sequence[float] = ()
    vector_alpha: float = 0.0


def study_arms(
    methods: Sequence[str],
    controls: Sequence[str],
    *,
    strengths: Strengths,
    vectors: Iterable[str],
    model: str,
    contexts: Contexts,
    positions: str,
    style: str,
    sampling: Sampling,
    base_top_p: float = 1.0,
    branches: Mapping[str, str] | None = None,
    amplification: str = "1",
    gate: str = "",
    more_positions: Sequence[str] = (),
) -> pd.DataFrame:
    """Arms table of a study.

    Args:
        methods: of "anti_expert", "expert_anti_expert", "caa", "sda".
        controls: of "prompt_only" (the expert context as a prompt), "shuffled" (the logit rules under another
            user's category), "random" (a random vector in place of each steering vector); and of SDA's ablations
            "instructed" (the instruction as a prompt), "steering_only" (one temperature throughout),
            "temperature_only" (k = 0), "fixed" (a = 1 for every prompt).
        strengths: the alphas.
        vectors: names of the steering vectors; those that begin with "random" are controls, `<family>/<user_id>` is
            a user's, and a family that ends with "_shuffled" gives each user another user's.
        model, contexts, positions, style, sampling: settings of every arm, see `make_arms`. A temperature by
            divergence (`js_sigma`) is SDA's alone.
        base_top_p: of the logit rules, see `make_arms`.
        branches: names of trained models by branch; each method takes those of its branches. Where none of its
            branches is left to a context, it has no placebo and stands under profile "none".
        amplification: factor of SDA, see `make_arms`.
        gate: factor of a second set of "caa" arms with the population's vector, conditional steering; empty for none.
        more_positions: positions of further such sets, steering limited in time.

    Returns:
        The arms table, base first.

    Raises:
        ValueError: an unknown method or control, or settings that `make_arms` refuses.
    """
    for what, given, known in (
        ("method", methods, METHODS),
        ("control", controls, (*CONTROLS, *ABLATIONS)),
    ):
        for name in given:
            if name not in known:
                raise ValueError(f"{what} {name!r} is none of {', '.join(known)}")
    plain = replace(sampling, js_sigma=0.0, min_temperature=0.0)
    common = {"model": model, "contexts": contexts, "style": style}
    make = partial(make_arms, **common, sampling=plain)
    population = [name for name in vectors if "/" not in name and not name.startswith(CONTROL_VECTOR)]
    arms = [make("base")]
    for method in (name for name in methods if name in CONTEXT_METHODS):
        rule = partial(make, method, strengths.alphas, base_top_p=base_top_p)
        arms += _by_profile(rule, method, controls, branches)
        if strengths.vector_alpha:
            beside = {"vector_alpha": strengths.vector_alpha, "positions": positions}
            for vector in population:
                arms += _by_profile(partial(rule, vector=vector, **beside), method, (), branches)
    if "prompt_only" in controls:
        arms += _by_profile(partial(make, "prompt_only"), "prompt_only", (), branches)
    if "sda" in methods:
        arms += _sda_arms(
            partial(make_arms, **common), controls, strengths.sda_ks, sampling, plain, amplification
        )
    if "caa" in methods:
        for vector, profile in _families(vectors, controls):
            grid = (
                strengths.caa_alphas
                if profile == "none"
                else strengths.composed_alphas or strengths.caa_alphas
            )
            steer = partial(make, "caa", grid, vector=vector, profile=profile)
            arms += [steer(positions=positions)]
            if vector in population:
                arms += [steer(positions=where) for where in more_positions]
                arms += [steer(positions=positions, factor=gate)] if gate else []
    return with_variants(pd.concat(arms, ignore_index=True))


def _by_profile(
    make: partial, method: str, controls: Sequence[str], branches: Mapping[str, str] | None
) -> list[pd.DataFrame]:
    """A method under the user's own contexts and, as a control, under another user's."""
    trained = {b: name for b, name in (branches or {}).items() if b in check_method(method).branches}
    if not reads_contexts(method, trained):
        return [make(profile="none", branches=trained)]
    profiles = ["own", "shuffled"] if "shuffled" in controls else ["own"]
    return [make(profile=profile, branches=trained) for profile in profiles]


def _sda_arms(
    make: partial,
    controls: Sequence[str],
    ks: Sequence[float],
    sampling: Sampling,
    plain: Sampling,
    amplification: str,
) -> list[pd.DataFrame]:
    """SDA and what is left of it when a part is taken away."""
    own = partial(make, "sda", profile="own")
    arms = [own(ks, factor=amplification, sampling=sampling)]
    if "shuffled" in controls:
        arms += [make("sda", ks, profile="shuffled", factor=amplification, sampling=sampling)]
    if "instructed" in controls:
        arms += [make("instructed", profile="own", sampling=plain)]
    if "steering_only" in controls and sampling.js_sigma:
        arms += [own(ks, factor=amplification, sampling=plain)]
    if "temperature_only" in controls and sampling.js_sigma:
        arms += [make("instructed", profile="own", sampling=sampling)]
    if "fixed" in controls and amplification != "1":
        arms += [own(ks, factor="1", sampling=sampling)]
    return arms


def _families(vectors: Iterable[str], controls: Sequence[str]) -> list[tuple[str, str]]:
    """Vectors and families of vectors, each with the profile that it stands for."""
    profiles = {}
    for name in vectors:
        family, _, user = name.rpartition("/")
        if not user or not family:
            profiles[name] = "none"
        else:
            profiles[family] = "shuffled" if SHUFFLED_FAMILY in family else "own"
    left_out = (
        {name for name in profiles if name.startswith(CONTROL_VECTOR)} if "random" not in controls else set()
    )
    left_out |= {name for name, p in profiles.items() if p == "shuffled" and "shuffled" not in controls}
    return [(name, profile) for name, profile in profiles.items() if name not in left_out]
