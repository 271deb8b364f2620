"""Arms: every setting of a way to generate, one row each, named by what it is."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping

import pandas as pd

from steerlib.generation.branches import TRAINABLE, branches_text
from steerlib.generation.contexts import TEMPLATES, Contexts, default_contexts
from steerlib.generation.rules import check_method
from steerlib.generation.sampling import Sampling
from steerlib.toxicity.attributes import check_attribute

PROFILES = ("none", "own", "shuffled", "population")
LOGIT_METHODS = ("anti_expert", "expert_anti_expert")


def make_arms(
    method: str,
    alphas: Iterable[float] = (0.0,),
    *,
    model: str = "",
    contexts: Contexts | None = None,
    profile: str = "none",
    category: str = "",
    vector: str = "",
    layers: str = "",
    positions: str = "",
    style: str = "continuation",
    sampling: Sampling | None = None,
    base_top_p: float = 1.0,
    branches: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Arms of one method over a grid of alpha, rows of the arms table.

    Args:
        method: "base", "prompt_only", "anti_expert", "expert_anti_expert" or "caa".
        alphas: strengths, dimensionless; what they mean depends on method and vector.
        model: name of the frozen model, see `FrozenModel.name`.
        contexts: expert and anti-expert contexts by category that the arm reads; None for the style's defaults.
            Their hash is a setting, so that answers under other contexts are other arms.
        profile: whose category steers: "own" (the user's c*(u)), "shuffled" (another category, the placebo),
            "population" (one category for all, named by `category`), "none" for base and vectors.
        category: the category of profile "population".
        vector: name of the steering vector of method "caa".
        layers: its layers, for instance "15-21"; a note, the vector itself says which layers it has.
        positions: where it is added, see `steered_positions`; "all" where empty.
        style: "chat" or "continuation".
        sampling: settings of the choice of tokens.
        base_top_p: the logit rules choose within the base's own nucleus of this mass, in (0, 1], see `base_nucleus`;
            1 for no such limit, as in STEER-Away.
        branches: names of the trained models that stand for a context, by branch ("expert", "anti"); given to `decode`
            as `branch_models`. An arm without a context left has profile "none".

    Returns:
        The arms, one row an alpha; `arm_id` depends on the settings alone.

    Raises:
        ValueError: unknown method, profile, style, category or branch; alpha not finite, or negative for a logit
            rule; base_top_p outside (0, 1], or below 1 without a logit rule.
    """
    trained = dict(branches or {})
    for name, value, known in (("profile", profile, PROFILES), ("style", style, tuple(TEMPLATES))):
        if value not in known:
            raise ValueError(f"{name} {value!r} is none of {', '.join(known)}")
    if category:
        check_attribute(category)
    _check_signal(method, profile, category, vector, trained)
    _check_nucleus(method, base_top_p)
    settings = vars(sampling or Sampling())
    rows = []
    for alpha in alphas:
        _check_alpha(method, alpha)
        row = {
            "model": model,
            "contexts": _contexts_hash(contexts or default_contexts(style)) if profile != "none" else "",
            "method": method,
            "alpha": float(alpha),
            "profile": profile,
            "category": category,
            "vector": vector,
            "layers": layers,
            "positions": (positions or "all") if vector else "",
            "style": style,
            **settings,
            "base_top_p": float(base_top_p),
            "branches": branches_text(trained),
        }
        rows.append({"arm_id": arm_id(row), **row})
    return pd.DataFrame(rows)


def reads_contexts(method: str, branches: Iterable[str] = ()) -> bool:
    """Whether a branch of the method is left to a context when the given ones are trained models."""
    return bool({*check_method(method).branches} & {*TRAINABLE} - {*branches})


def _check_signal(method: str, profile: str, category: str, vector: str, trained: Mapping[str, str]) -> None:
    for branch in trained:
        if branch not in {*check_method(method).branches} & {*TRAINABLE}:
            raise ValueError(f"method {method!r} has no branch {branch!r} to be a trained model")
    if (method == "caa") != bool(vector):
        raise ValueError(
            f"method {method!r} with vector {vector!r}: a vector belongs to 'caa', and 'caa' needs one"
        )
    if (profile == "population") != bool(category):
        raise ValueError(
            f"profile {profile!r} with category {category!r}: only 'population' names a category"
        )
    if reads_contexts(method, trained) == (profile == "none"):
        models = f" and trained {', '.join(trained)}" if trained else ""
        raise ValueError(f"method {method!r}{models} does not go with profile {profile!r}")


def _check_nucleus(method: str, base_top_p: float) -> None:
    if not 0 < base_top_p <= 1:
        raise ValueError(f"base_top_p must be in (0, 1], not {base_top_p}")
    if base_top_p < 1 and method not in LOGIT_METHODS:
        raise ValueError(f"base_top_p {base_top_p} is for {' and '.join(LOGIT_METHODS)}, not for {method!r}")


def _check_alpha(method: str, alpha: float) -> None:
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, not {alpha}")
    if method in LOGIT_METHODS and alpha < 0:
        raise ValueError(f"alpha of {method} must be 0 or more, not {alpha}")


def _contexts_hash(contexts: Contexts) -> str:
    return hashlib.sha256(json.dumps(contexts, sort_keys=True).encode()).hexdigest()[:8]


def arm_id(settings: dict) -> str:
    """Readable name of an arm with a hash of all its settings, the same on every machine."""
    text = json.dumps({key: value for key, value in settings.items() if key != "arm_id"}, sort_keys=True)
    short = hashlib.sha256(text.encode()).hexdigest()[:8]
    parts = [settings["method"], settings["vector"], settings["profile"], f"{settings['alpha']:g}", short]
    return "-".join(part for part in parts if part and part != "none")
