"""From prompts and arms to the answers asked for: which branches each needs, and how it is sampled."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TypedDict

import pandas as pd

from steerlib.decoding.contexts import (
    BranchModels,
    Contexts,
    branch_ids,
    branch_names,
    check_branch_models,
    default_contexts,
)
from steerlib.decoding.sampling import Sampling
from steerlib.models import FrozenModel
from steerlib.reading import TokenIds, check_length
from steerlib.residual import VectorFamily, VectorKey, family_of
from steerlib.rules import RULES, check_method


@dataclass(frozen=True)
class Factor:
    """What alpha is multiplied by, by prompt_id: SDA's a = F(S), or the gate (0 or 1) of conditional steering."""

    name: str
    values: Mapping[str, float]

    @cached_property
    def digest(self) -> str:
        """Hash of the values: answers under other factors are other arms."""
        text = "\n".join(f"{prompt}={float(value)!r}" for prompt, value in sorted(self.values.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def strength(arm: Mapping, prompt_id: str, factors: Sequence[Factor]) -> tuple[float, float]:
    """How strongly an arm (a row of the arms table) steers a prompt: alpha of the logits and alpha of the vector.

        alpha F,    F = 1, or the prompt's value of the factor that the arm names

    A ValueError says that there is no such factor, or none for this prompt.
    """
    name, alpha = arm["factor"], arm["alpha"]
    by_name = {factor.name: factor.values for factor in factors}
    if name and name not in by_name:
        raise ValueError(f"arm {arm['arm_id']}: no factor is called {name!r}; there are {[*by_name]}")
    value = float(by_name[name].get(prompt_id, math.nan)) if name else 1.0
    if not math.isfinite(value):
        raise ValueError(f"arm {arm['arm_id']}: factor {name!r} of prompt {prompt_id} is {value}")
    of_vector = alpha if RULES[arm["method"]].acts_on == "residual" else arm["vector_alpha"]
    return alpha * value, of_vector * value


class Inputs(TypedDict, total=False):
    """What arms name beside the model; keywords of `decode`, `run_sweep` and all that asks for answers.

    Attributes:
        contexts: by category, the text of each branch; None for the defaults of each arm's style.
        vectors: families of steering vectors.
        factors: what strengths are multiplied by, prompt by prompt.
        branch_models: models trained for a branch, by branch: a PEFT adapter (see `load_model`) or another model with
            the same vocabulary, on the same device. It reads the plain prompt; arms without it keep their contexts.
    """

    contexts: Contexts | None
    vectors: Sequence[VectorFamily]
    factors: Sequence[Factor]
    branch_models: BranchModels | None


@dataclass(frozen=True)
class Stream:
    """Token ids of a context and what reads it: a vector at a strength and positions, see `steered_positions`.

    `model` is "" for the frozen one, else the branch that it was trained for.
    """

    ids: TokenIds
    vector: VectorKey = ()
    alpha: float = 0.0
    positions: str = "all"
    model: str = ""


@dataclass(frozen=True)
class Request:
    """One answer: an arm, a prompt and a seed; alpha is that of the logit rule, the prompt's factor included.

    `branches` has the stream of each branch by name; "base" is always there. Where there is a "steered" one, the rule
    reads it as its base.
    """

    arm_id: str
    prompt_id: str
    seed: int
    method: str
    alpha: float
    sampling: Sampling
    branches: Mapping[str, Stream]


def sampling_of(arm: Mapping | pd.Series) -> Sampling:
    """The sampling settings of a row of the arms table."""
    return Sampling(**{field.name: arm[field.name] for field in fields(Sampling)})


def make_requests(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    seeds: Sequence[int],
    contexts: Contexts | None = None,
    vectors: Sequence[VectorFamily] = (),
    factors: Sequence[Factor] = (),
    branch_models: BranchModels | None = None,
) -> list[Request]:
    """All answers of a grid, prompt by prompt, so that neighbours share contexts. Inputs as in `Inputs`.

    Args:
        prompts: the prompts table, or any frame with prompt_id, prompt and what the arms read: category,
            shuffled_category, user_id, history.
        arms: the arms table; an arm of a method that rewrites texts asks for nothing here.
        seeds: of the sampling noise; greedy arms are asked for the first alone, for all would be equal.

    A ValueError names a prompt that is empty or too long, or a vector, a factor or a branch model that is absent.
    """
    models = branch_models or {}
    arms = arms[arms["method"].map(lambda method: check_method(method).acts_on != "text").astype(bool)]
    check_branch_models(frozen, arms, models)
    rendered: dict[tuple, TokenIds] = {}

    def ids(prompt: Mapping, arm: Mapping, branch: str) -> TokenIds:
        # The category that steers: the user's own, another one, or the population's.
        of_user = {"own": prompt.get("category"), "shuffled": prompt.get("shuffled_category")}
        category, history = of_user.get(arm["profile"]) or arm["category"], prompt.get("history") or ""
        key = (prompt["prompt"], history, branch, category, arm["style"])
        if key not in rendered:
            texts = contexts or default_contexts(arm["style"])
            settings = {"category": category, "style": arm["style"], "contexts": texts}
            rendered[key] = branch_ids(frozen, prompt["prompt"], branch, history=history, **settings)
        return rendered[key]

    requests = []
    for prompt in prompts.to_dict("records"):
        for arm in arms.to_dict("records"):
            alpha, of_vector = strength(arm, prompt["prompt_id"], factors)
            sampling, trained, steering = sampling_of(arm), branch_names(arm["branches"]), ()
            if arm["family"]:
                family = family_of(arm, vectors)
                key = (family.digest, family.user(prompt.get("user_id", "")))
                steering = (key, of_vector, arm["positions"]) if of_vector else ()
            # A vector beside a logit rule steers every branch that the rule reads, its base as well.
            reads = ("base", *check_method(arm["method"]).branches, *(("steered",) if steering else ()))
            branches = {}
            for branch in dict.fromkeys(reads):
                model = branch if branch in trained else ""
                context = ids(prompt, arm, "base" if model else branch)
                branches[branch] = Stream(
                    context, *(() if branch == "base" or model else steering), model=model
                )
                what = f"prompt {prompt['prompt_id']}"
                check_length(models.get(model, frozen), context, sampling.max_new_tokens, what=what)
            for seed in seeds if sampling.temperature else seeds[:1]:
                which = (arm["arm_id"], prompt["prompt_id"], int(seed), arm["method"])
                requests.append(Request(*which, alpha, sampling, branches))
    return requests
