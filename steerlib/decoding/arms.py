"""Arms: one way to generate per row, every setting a column; and all arms of a study."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from steerlib.decoding.requests import TEMPLATES, Contexts, Factor, default_contexts
from steerlib.decoding.sampling import Sampling
from steerlib.residual import VectorFamily
from steerlib.rules import acting_on, amplification, check_method

PROFILES = ("none", "own", "shuffled", "population")


def make_arms(
    method: str,
    alphas: Iterable[float] = (0.0,),
    *,
    model: str = "",
    contexts: Contexts | None = None,
    profile: str = "none",
    category: str = "",
    factor: Factor | None = None,
    family: VectorFamily | None = None,
    vector_alpha: float = 0.0,
    positions: str = "all",
    style: str = "continuation",
    sampling: Sampling | None = None,
    branches: Mapping[str, str] | None = None,
    ablation: bool = False,
) -> pd.DataFrame:
    """Arms of one method over a grid of alpha, rows of the arms table.

    Args:
        alphas: strengths, dimensionless; that of "sda" is k.
        contexts: by category, what the arm's branches read; None for the style's defaults. Their hash is a setting.
        profile: whose category, or vector, steers: "own" (the user's c*(u)), "shuffled" (another one, the control),
            "population" (one for all, named by `category`), "none" for an arm without a context.
        factor: what alpha is multiplied by, prompt by prompt; None for 1.
        vector_alpha: strength of a vector beside a logit rule: all context branches and the rule's base have it.
        positions: where vectors are added, see `steered_range`.
        branches: names of trained models that stand for a context, by branch.
        ablation: the arm is a part of a method under study, shown as a control.

    One row per alpha. `arm_id` depends on what decides the answers alone (contents of vectors and factors included);
    `variant` is empty, see `with_variants`. A ValueError names a setting that the method cannot have.
    """
    rule, trained, contexts = check_method(method), dict(branches or {}), contexts or default_contexts(style)
    sampling, reads = sampling or Sampling(), {*rule.context_branches} - {*trained}
    on_logits, on_residual = (rule.acts_on == place for place in ("logits", "residual"))
    by_user = family is not None and on_residual and family.vector_user
    vector, beside = family.name if family else "", on_logits and family is not None
    problems = {
        f"style {style!r} is none of {', '.join(TEMPLATES)}": style in TEMPLATES,
        f"profile {profile!r} is none of {', '.join(PROFILES)}": profile in PROFILES,
        f"has no branch to be a trained model among {[*trained]}": {*trained} <= {*rule.context_branches},
        f"category {category!r} is none of {', '.join(contexts)}": not category or category in contexts,
        f"profile {profile!r} with category {category!r}": (profile == "population") == bool(category),
        f"does not go with profile {profile!r}": by_user or bool(reads) == (profile != "none"),
        f"profile {profile!r} with vector {vector!r} of {by_user!r} users": not by_user or profile == by_user,
        "needs a vector": not on_residual or family,
        f"with vector {vector!r}: a vector goes with 'caa' or a logit rule": not family or rule.has_alpha,
        f"vector_alpha {vector_alpha} is not finite": math.isfinite(vector_alpha),
        f"vector_alpha {vector_alpha} is that of a vector beside a logit rule": (vector_alpha != 0) == beside,
        f"has no alpha for a factor ({factor and factor.name!r}) to multiply": not factor or rule.has_alpha,
        f"js_sigma {sampling.js_sigma} needs an instructed branch": not sampling.js_sigma or rule.instructed,
    }
    for problem, fine in problems.items():
        if not fine:
            raise ValueError(f"method {method!r}: {problem}")
    read = {name: {b: text for b, text in texts.items() if b in reads} for name, texts in contexts.items()}
    settings = {
        "model": model,
        "contexts": _hash(read) if reads else "",
        "method": method,
        "alpha": 0.0,
        "unit": family.unit if family and on_residual else "",
        "factor": factor.name if factor else "",
        "profile": profile,
        "category": category,
        "family": vector,
        "vector_user": family.vector_user if family else "",
        "control": "",
        "vector": family.digest if family else "",
        "vector_alpha": float(vector_alpha),
        "layers": family.layers if family else "",
        "positions": positions if family else "",
        "style": style,
        **vars(sampling),
        "branches": json.dumps(trained, sort_keys=True) if trained else "",
    }
    control = "shuffled_profile" if profile == "shuffled" else family.control if family else ""
    control = "ablation" if ablation else control or (method if rule.acts_on == "context" else "")
    rows = []
    for alpha in map(float, alphas):
        if not math.isfinite(alpha) or (on_logits and alpha < 0):
            raise ValueError(
                f"alpha of {method!r} must be finite, and 0 or more for a logit rule, not {alpha}"
            )
        row = settings | {"alpha": alpha}
        name = arm_id(row, factor.digest if factor else "")
        rows.append({"arm_id": name, **row, "control": control, "variant": ""})
    return pd.DataFrame(rows)


def _hash(settings: Mapping, more: str = "") -> str:
    return hashlib.sha256((json.dumps(settings, sort_keys=True) + more).encode()).hexdigest()[:8]


def arm_id(settings: Mapping, more: str = "") -> str:
    """Readable name of an arm with a hash of what decides its answers: not what is said of it, but `more`."""
    short = _hash({k: v for k, v in settings.items() if k not in ("arm_id", "control", "variant")}, more)
    parts = (settings[name] for name in ("method", "family", "profile"))
    return "-".join([*(part for part in parts if part not in ("", "none")), f"{settings['alpha']:g}", short])


def amplification_factor(scores: pd.DataFrame, function: str = "sigmoid") -> Factor:
    """SDA's a = F(S) of each prompt that has a score, see `amplification` and `score_first_answers`."""
    known = scores.dropna(subset="score")
    values = amplification(known["score"].to_numpy(), function)
    return Factor(function, dict(zip(known["prompt_id"], map(float, values), strict=True)))


def with_variants(arms: pd.DataFrame) -> pd.DataFrame:
    """Arms with the column `variant`: how each differs from its method's first arm, in words; "" if it does not."""
    first: dict[str, Mapping] = {}
    variants = []
    for arm in arms.to_dict("records"):
        main = first.setdefault(arm["method"], arm)
        gate = {"gate": "gated", "": "not gated"}.get(arm["factor"], f"times {arm['factor']}")
        words = {
            "vector_alpha": f"beside the vector at {arm['vector_alpha']:g}",
            "factor": f"a = {arm['factor'] or 1}" if check_method(arm["method"]).instructed else gate,
            "positions": f"at {arm['positions']}",
            "js_sigma": "temperature by divergence" if arm["js_sigma"] else "one temperature",
            "temperature": f"T {arm['temperature']:g}" if arm["temperature"] else "greedy",
        }
        # Positions are no setting of an arm without a vector, and one beside a vector is named by that already.
        differs = [c for c in words if arm[c] != main[c] and not (c == "positions" and arm["vector_alpha"])]
        variants.append(", ".join(words[column] for column in differs))
    return arms.assign(variant=variants)


CONTROLS = ("prompt_only", "shuffled", "random")
ABLATIONS = ("instructed", "steering_only", "temperature_only", "fixed")


def study_arms(
    methods: Sequence[str],
    controls: Sequence[str],
    *,
    alphas: Sequence[float] = (),
    caa_alphas: Sequence[float] = (),
    composed_alphas: Sequence[float] = (),
    sda_ks: Sequence[float] = (),
    vector_alpha: float = 0.0,
    vectors: Sequence[VectorFamily],
    model: str,
    contexts: Contexts,
    positions: str,
    style: str,
    sampling: Sampling,
    branches: Mapping[str, str] | None = None,
    amplification: Factor | None = None,
    gate: Factor | None = None,
    more_positions: Sequence[str] = (),
) -> pd.DataFrame:
    """Arms table of a study: the base, each method over its alphas, and the controls beside them.

    Args:
        controls: of "prompt_only" (the expert context as a prompt), "shuffled" (another user's category, or vector),
            "random" (a random vector); and of SDA's ablations "instructed" (the instruction as a prompt),
            "steering_only" (one temperature throughout), "temperature_only" (k = 0), "fixed" (a = 1 for every prompt).
        alphas, caa_alphas, composed_alphas, sda_ks: of the logit rules, everybody's vectors, users' vectors (if none,
            those of everybody's), and SDA.
        vector_alpha: of the population's vector beside each logit rule; 0 for no such arms.
        vectors: all families; controls among them where `controls` names them.
        sampling: its `js_sigma` is that of rules with an instructed branch alone, as is `amplification`, their factor.
        branches: each method takes those of its own; where none of them is left to a context, it has no shuffled
            control.
        gate: factor of a second set of arms with the population's vector, conditional steering.
        more_positions: positions of further such sets, steering limited in time.

    The rest as in `make_arms`. A ValueError says that a method or control is unknown or that a method lacks vectors.
    """
    known = {"method": acting_on("logits", "residual"), "control": (*CONTROLS, *ABLATIONS)}
    for what, given in (("method", methods), ("control", controls)):
        for name in given:
            if name not in known[what]:
                raise ValueError(f"{what} {name!r} is none of {', '.join(known[what])}")
    plain = replace(sampling, js_sigma=0.0, min_temperature=0.0)
    build = partial(make_arms, model=model, contexts=contexts, style=style)
    make = partial(build, sampling=plain)
    for_all = [family for family in vectors if not family.vector_user and not family.control]
    rules = [check_method(name) for name in acting_on("logits") if name in methods]
    arms = [make("base")]
    for rule in (rule for rule in rules if not rule.instructed):
        steer = partial(make, rule.name, alphas)
        arms += _by_profile(steer, rule.name, controls, branches)
        if vector_alpha:
            beside = {"vector_alpha": vector_alpha, "positions": positions}
            for family in for_all:
                arms += _by_profile(partial(steer, family=family, **beside), rule.name, (), branches)
    if "prompt_only" in controls:
        arms += _by_profile(partial(make, "prompt_only"), "prompt_only", (), branches)
    for rule in (rule for rule in rules if rule.instructed):
        steer = partial(build, rule.name, sda_ks, profile="own", factor=amplification)
        zero, falls = partial(build, rule.zero, profile="own"), bool(sampling.js_sigma)
        parts = {
            "shuffled": (True, partial(steer, profile="shuffled", sampling=sampling)),
            "instructed": (True, partial(zero, sampling=plain)),
            "steering_only": (falls, partial(steer, sampling=plain, ablation=True)),
            "temperature_only": (falls, partial(zero, sampling=sampling, ablation=True)),
            "fixed": (amplification, partial(steer, factor=None, sampling=sampling, ablation=True)),
        }
        arms += [steer(sampling=sampling)]
        arms += [part() for name, (differs, part) in parts.items() if name in controls and differs]
    for method in (name for name in acting_on("residual") if name in methods):
        if not vectors:
            raise ValueError(f"method {method!r} needs steering vectors: run notebook 02 first")
        wanted = {"": True, "random_vector": "random" in controls, "shuffled_profile": "shuffled" in controls}
        for family in (one for one in vectors if wanted[one.control]):
            grid = composed_alphas if family.vector_user and composed_alphas else caa_alphas
            steer = partial(make, method, grid, family=family, profile=family.vector_user or "none")
            arms += [steer(positions=positions)]
            if family in for_all:
                arms += [steer(positions=where) for where in more_positions]
                arms += [steer(positions=positions, factor=gate)] if gate else []
    return with_variants(pd.concat(arms, ignore_index=True))


def _by_profile(
    make: partial, method: str, controls: Sequence[str], branches: Mapping[str, str] | None
) -> list[pd.DataFrame]:
    """A method under the user's own contexts and, as a control, under another user's."""
    reads = check_method(method).context_branches
    trained = {branch: name for branch, name in (branches or {}).items() if branch in reads}
    profiles = ["own", "shuffled"] if "shuffled" in controls else ["own"]
    profiles = profiles if {*reads} - {*trained} else ["none"]
    return [make(profile=profile, branches=trained) for profile in profiles]
