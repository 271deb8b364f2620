"""What sets arms of one method apart beside their vector, profile and alpha, in words.

Arms: every setting of a way to generate, one row each, named by what it is.

Factors of alpha by prompt, named by their numbers, so that answers under other factors are other arms.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping

import pandas as pd

from steerlib.decoding.contexts import (
    CONTEXT_BRANCHES,
    TEMPLATES,
    TRAINABLE,
    Contexts,
    branches_text,
    default_contexts,
)
from steerlib.decoding.sampling import Sampling
from steerlib.rules import LOGIT_METHODS, amplification, check_method

PROFILES = ("none", "own", "shuffled", "population")
DIVERGENCE_METHODS = ("instructed", "sda")


def make_arms(
    method: str,
    alphas: Iterable[float] = (0.0,),
    *,
    model: str = "",
    contexts: Contexts | None = None,
    profile: str = "none",
    category: str = "",
    factor: str = "",
    vector: str = "",
    vector_alpha: float = 0.0,
    layers: str = "",
    positions: str = "",
    style: str = "continuation",
    sampling: Sampling | None = None,
    base_top_p: float = 1.0,
    branches: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Arms of one method over a grid of alpha, rows of the arms table.

    Args:
        method: a key of `RULES`.
        alphas: strengths, dimensionless; what they mean depends on method and vector. That of "sda" is k.
        model: name of the frozen model, see `FrozenModel.name`.
        contexts: expert and anti-expert contexts by category that the arm reads; None for the style's defaults.
            Their hash is a setting, so that answers under other contexts are other arms.
        profile: whose category steers: "own" (the user's c*(u)), "shuffled" (another category, the placebo),
            "population" (one category for all, named by `category`), "none" for the base and for a population's
            vector. A vector of each user is "own" or "shuffled".
        category: the category of profile "population", a key of the contexts.
        factor: what alpha is multiplied by, prompt by prompt: a number as text, or the name of one of the `factors`
            given to `decode` (SDA's a = F(S); the gate, 0 or 1, of conditional steering). Empty for 1; "sda" needs one.
        vector: name of the steering vector of method "caa", or of one that stands beside a logit rule; a family of
            personal vectors has those of its users as `<vector>/<user_id>`.
        vector_alpha: strength of a vector beside a logit rule: all branches of the rule are steered by it.
        layers: its layers, for instance "15-21"; a note, the vector itself says which layers it has.
        positions: where it is added, see `steered_positions`; "all" where empty.
        style: "chat" or "continuation".
        sampling: settings of the choice of tokens.
        base_top_p: the logit rules choose within the base's own nucleus of this mass, in (0, 1], see `base_nucleus`;
            1 for no such limit, as in STEER-Away.
        branches: names of the trained models that stand for a context, by branch ("expert", "anti"); given to `decode`
            as `branch_models`. An arm without a context left has profile "none".

    Returns:
        The arms, one row an alpha; `arm_id` depends on the settings alone; `variant` is empty, see `with_variants`.

    Raises:
        ValueError: unknown method, profile, style, category or branch; alpha not finite, or negative for a logit
            rule; base_top_p outside (0, 1], or below 1 without a logit rule; a temperature by divergence without an
            instructed branch.
    """
    trained, contexts = dict(branches or {}), contexts or default_contexts(style)
    for name, value, known in (("profile", profile, PROFILES), ("style", style, tuple(TEMPLATES))):
        if value not in known:
            raise ValueError(f"{name} {value!r} is none of {', '.join(known)}")
    if category and category not in contexts:
        raise ValueError(f"category {category!r} is none of the contexts' {', '.join(contexts)}")
    _check_signal(method, profile, category, trained)
    _check_vector(method, vector, vector_alpha)
    _check_factor(method, factor)
    _check_nucleus(method, base_top_p)
    settings = vars(sampling or Sampling())
    if settings["js_sigma"] and method not in DIVERGENCE_METHODS:
        raise ValueError(
            f"js_sigma {settings['js_sigma']} is for {' and '.join(DIVERGENCE_METHODS)}, not {method!r}"
        )
    reads = {*check_method(method).branches} - {*trained}
    rows = []
    for alpha in alphas:
        _check_alpha(method, alpha)
        row = {
            "model": model,
            "contexts": _contexts_hash(contexts, reads) if reads & {*CONTEXT_BRANCHES} else "",
            "method": method,
            "alpha": float(alpha),
            "factor": factor,
            "profile": profile,
            "category": category,
            "vector": vector,
            "vector_alpha": float(vector_alpha),
            "layers": layers,
            "positions": (positions or "all") if vector else "",
            "style": style,
            **settings,
            "base_top_p": float(base_top_p),
            "branches": branches_text(trained),
        }
        rows.append({"arm_id": arm_id(row), **row, "variant": ""})
    return pd.DataFrame(rows)


def reads_contexts(method: str, branches: Iterable[str] = ()) -> bool:
    """Whether a branch of the method is left to a context when the given ones are trained models."""
    return bool({*check_method(method).branches} & {*CONTEXT_BRANCHES} - {*branches})


def _check_signal(method: str, profile: str, category: str, trained: Mapping[str, str]) -> None:
    for branch in trained:
        if branch not in {*check_method(method).branches} & {*TRAINABLE}:
            raise ValueError(f"method {method!r} has no branch {branch!r} to be a trained model")
    if (profile == "population") != bool(category):
        raise ValueError(
            f"profile {profile!r} with category {category!r}: only 'population' names a category"
        )
    if method == "caa" and profile != "population":
        return
    if reads_contexts(method, trained) == (profile == "none"):
        models = f" and trained {', '.join(trained)}" if trained else ""
        raise ValueError(f"method {method!r}{models} does not go with profile {profile!r}")


def _check_vector(method: str, vector: str, vector_alpha: float) -> None:
    if method == "caa" and not vector:
        raise ValueError("method 'caa' needs a vector")
    if vector and method not in ("caa", *LOGIT_METHODS):
        raise ValueError(
            f"method {method!r} with vector {vector!r}: a vector goes with 'caa' or a logit rule"
        )
    if not math.isfinite(vector_alpha):
        raise ValueError(f"vector_alpha must be finite, not {vector_alpha}")
    if (vector_alpha != 0) != (bool(vector) and method != "caa"):
        raise ValueError(
            f"method {method!r} with vector {vector!r} and vector_alpha {vector_alpha}: vector_alpha is the "
            "strength of a vector beside a logit rule; that of 'caa' is alpha"
        )


def _check_factor(method: str, factor: str) -> None:
    if method == "sda" and not factor:
        raise ValueError("method 'sda' needs a factor: the name of a table of a = F(S), or a fixed a as text")
    if factor and method not in ("caa", *LOGIT_METHODS):
        raise ValueError(f"method {method!r} has no alpha for factor {factor!r} to multiply")


def _check_nucleus(method: str, base_top_p: float) -> None:
    if not 0 < base_top_p <= 1:
        raise ValueError(f"base_top_p must be in (0, 1], not {base_top_p}")
    if base_top_p < 1 and method not in LOGIT_METHODS:
        raise ValueError(f"base_top_p {base_top_p} is for {', '.join(LOGIT_METHODS)}, not for {method!r}")


def _check_alpha(method: str, alpha: float) -> None:
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, not {alpha}")
    if method in LOGIT_METHODS and alpha < 0:
        raise ValueError(f"alpha of {method} must be 0 or more, not {alpha}")


def _contexts_hash(contexts: Contexts, branches: set[str]) -> str:
    read = {name: {b: text for b, text in texts.items() if b in branches} for name, texts in contexts.items()}
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:8]


def arm_id(settings: dict) -> str:
    """Readable name of an arm with a hash of all its settings, the same on every machine."""
    text = json.dumps({key: value for key, value in settings.items() if key != "arm_id"}, sort_keys=True)
    short = hashlib.sha256(text.encode()).hexdigest()[:8]
    parts = [settings["method"], settings["vector"], settings["profile"], f"{settings['alpha']:g}", short]
    return "-".join(part for part in parts if part and part != "none")


def named_factor(what: str, values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """A factor as `decode` takes it: `{"<what>@<hash>": {prompt_id: number}}`."""
    numbers = {str(prompt): float(value) for prompt, value in values.items()}
    text = "\n".join(f"{prompt}={value!r}" for prompt, value in sorted(numbers.items()))
    return {f"{what}@{hashlib.sha256(text.encode()).hexdigest()[:8]}": numbers}


def amplification_factor(scores: pd.DataFrame, function: str = "sigmoid") -> dict[str, dict[str, float]]:
    """SDA's a = F(S) of each prompt, as a factor.

    Args:
        scores: prompt_id, score in (0, 100], see `score_first_answers`; prompts without a score have no factor.
        function: name of F, see `amplification`.

    Raises:
        ValueError: a score outside (0, 100], naming its prompt.
    """
    known = scores.dropna(subset="score")
    wrong = known[~known["score"].between(0, 100, inclusive="right")]
    if len(wrong):
        row = wrong.iloc[0]
        raise ValueError(f"score {row['score']} of prompt {row['prompt_id']} is not in (0, 100]")
    values = amplification(known["score"].to_numpy(), function)
    return named_factor(function, dict(zip(known["prompt_id"], values, strict=True)))


def with_variants(arms: pd.DataFrame) -> pd.DataFrame:
    """Arms with the column `variant`: empty for those like their method's first arm, else how they differ from it.

    Args:
        arms: the arms table, the study's main arms first.
    """
    rows = arms.to_dict("records")
    first: dict[str, Mapping] = {}
    for row in rows:
        first.setdefault(row["method"], row)
    return arms.assign(variant=[_variant(row, first[row["method"]]) for row in rows])


def _variant(arm: Mapping, main: Mapping) -> str:
    words = {
        "vector_alpha": f"beside the vector at {arm['vector_alpha']:g}",
        "factor": _factor_words(arm),
        "positions": f"at {arm['positions']}",
        "js_sigma": "temperature by divergence" if arm["js_sigma"] else "one temperature",
        "temperature": f"T {arm['temperature']:g}" if arm["temperature"] else "greedy",
    }
    # Positions are no setting of an arm without a vector, and one beside a vector is named by that already.
    differs = [c for c in words if arm[c] != main[c] and not (c == "positions" and arm["vector_alpha"])]
    return ", ".join(words[column] for column in differs)


def _factor_words(arm: Mapping) -> str:
    name = str(arm["factor"]).partition("@")[0]
    if arm["method"] == "sda":
        return f"a = {name}"
    return {"gate": "gated", "": "not gated"}.get(name, f"times {name}")
