"""Steering in three lines: plain strings go in, a DataFrame comes out; `decode` and `alpha_path` do the work."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from steerlib.decoding.alpha_path import alpha_path as path_of
from steerlib.decoding.arms import make_arms
from steerlib.decoding.decode import decode
from steerlib.decoding.requests import Inputs
from steerlib.decoding.sampling import Sampling
from steerlib.models import FrozenModel
from steerlib.reading import after_thinking
from steerlib.residual import VectorFamily, Vectors, in_unit

COLLAPSE_RATIO = 4.0
"""Perplexity ratio above which an answer is flagged. For single greedy answers: the unsteered one is the likeliest text
there is, and a fluent other one easily has twice its perplexity; broken text has ten times and more."""
GIVEN = "given"
"""The category under which the caller's contexts stand."""


def steer(
    model: FrozenModel,
    prompt: str | Sequence[str],
    *,
    expert: str = "",
    anti: str = "",
    vector: Vectors | None = None,
    alpha: float | Sequence[float] = 1.0,
    unit: str = "vector",
    positions: str = "all",
    style: str = "continuation",
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    scorer: Callable[[list[str]], pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """Answers to prompts at each alpha, with what steering did to them and what it cost.

        anti alone          z_B + alpha (z_B - z_A)         `anti_expert`
        expert and anti     z_B + alpha (z_E - z_A)         `expert_anti_expert`
        vector              h_l + alpha v_l                 `SteeringVector.apply`

    Args:
        prompt: the text to continue, or the user's words in style "chat"; one or several.
        expert, anti: desired and undesired context: a text before the prompt, a system message in style "chat".
        vector: steering vectors by layer, for instance a `SteeringVector`, instead of contexts.
        alpha: one strength or several, 0 or more with contexts; 0 is the unsteered answer.
        unit, positions: of the vector, see `in_unit` and `steered_range`.
        max_new_tokens, temperature, top_p, repetition_penalty, seed: see `Sampling`; all alphas share the noise.
        scorer: adds the column `toxicity`, see `load_scorer`.

    Returns one row per prompt and alpha, in the order given: `prompt` (where several are given), `alpha`, `text`;
    `kl_per_token`, KL(steered || base) in nats; `perplexity` of the text under the unsteered model and
    `perplexity_ratio` to that of its own answer; `collapsed`, true where the ratio is above `COLLAPSE_RATIO` or there
    is none, as for an empty answer. A ValueError for an empty or too long prompt, an expert alone, contexts and a
    vector or neither, or a setting out of range.
    """
    method, signal = _method(expert, anti, vector)
    alphas = [float(one) for one in np.atleast_1d(np.asarray(alpha, dtype=float))]
    choice: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    sampling, families = Sampling(**choice, repetition_penalty=repetition_penalty), []
    if vector is not None:
        families = [VectorFamily(GIVEN, {"": in_unit(model, vector, unit)}, unit=unit)]
        signal |= {"family": families[0], "positions": positions}
    common: dict[str, Any] = {"model": model.name, "style": style, "sampling": sampling}
    steered = make_arms(method, dict.fromkeys(alphas), **signal, **common)
    arms = pd.concat([make_arms("base", **common), steered], ignore_index=True)
    given: Inputs = {"contexts": signal.get("contexts"), "vectors": families}
    rows = decode(model, _frame(prompt), arms, seeds=[seed], **given)
    rows = rows.merge(arms[["arm_id", "method", "control", "alpha"]], on="arm_id")
    rows["kl_per_token"] = rows.kl_to_base / rows.n_tokens
    rows["perplexity"] = np.exp(rows.nll_base / rows.n_tokens)
    of_base = rows[rows.control == "base"].set_index("prompt_id").perplexity
    rows["perplexity_ratio"] = rows.perplexity / rows.prompt_id.map(of_base)
    rows["collapsed"] = ~(rows.perplexity_ratio <= COLLAPSE_RATIO)
    several = not isinstance(prompt, str)
    wanted = pd.MultiIndex.from_product([prompt if several else [prompt], alphas], names=["prompt", "alpha"])
    rows = rows[rows.control != "base"].rename(columns={"prompt_id": "prompt"})
    columns = ["text", "kl_per_token", "perplexity", "perplexity_ratio", "collapsed"]
    table = rows.set_index(["prompt", "alpha"])[columns].loc[wanted].reset_index()
    table = table if several else table.drop(columns="prompt")
    if scorer is None:
        return table
    return table.assign(toxicity=scorer([*map(after_thinking, table.text)])["toxicity"].to_numpy())


def alpha_path(
    model: FrozenModel,
    prompt: str | Sequence[str],
    *,
    expert: str = "",
    anti: str = "",
    alpha_max: float = 2.0,
    style: str = "continuation",
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Every distinct answer for alpha in [0, alpha_max] and the exact alphas at which it changes.

    A sampled path may have the nucleus `min_p`, see `Sampling`; top_p has no exact path. Other arguments as in `steer`,
    errors as there and in `decoding.alpha_path`.

    Returns one row per segment of alpha: `prompt` (where several are given), `alpha_low`, `alpha_high`, `text`,
    `perplexity` under the unsteered model, and `complete`, false where `text` is only what the answers of a crowded
    segment have in common so far.
    """
    method, signal = _method(expert, anti, None)
    choice: dict[str, Any] = {"temperature": temperature, "repetition_penalty": repetition_penalty}
    sampling = Sampling(**choice, top_p=1.0, min_p=min_p, max_new_tokens=max_new_tokens)
    arm = make_arms(method, [alpha_max], **signal, style=style, sampling=sampling)
    segments = path_of(model, _frame(prompt), arm, seeds=[seed], contexts=signal["contexts"])
    segments = segments.rename(columns={"prompt_id": "prompt"})
    segments["perplexity"] = np.exp(segments.nll_base / segments.n_tokens)
    columns = ["alpha_low", "alpha_high", "text", "perplexity", "complete"]
    return segments[columns if isinstance(prompt, str) else ["prompt", *columns]]


def _method(expert: str, anti: str, vector: Vectors | None) -> tuple[str, dict[str, Any]]:
    """The method that the arguments ask for, and what `make_arms` is told of its contexts."""
    if (vector is not None) == bool(expert or anti):
        raise ValueError("give expert= and anti=, or anti=, or vector=: one kind of steering, and not none")
    if expert and not anti:
        raise ValueError(
            "expert alone has nothing to move away from: give anti= too, or put it into the prompt"
        )
    if vector is not None:
        return "caa", {}
    texts = {"expert": expert, "anti": anti} if expert else {"anti": anti}
    signal = {"contexts": {GIVEN: texts}, "profile": "population", "category": GIVEN}
    return "expert_anti_expert" if expert else "anti_expert", signal


def _frame(prompt: str | Sequence[str]) -> pd.DataFrame:
    """The prompts as a table; a prompt is its own id, so that its sampling noise does not depend on its neighbours."""
    texts = [prompt] if isinstance(prompt, str) else list(dict.fromkeys(prompt))
    return pd.DataFrame({"prompt_id": texts, "prompt": texts})
