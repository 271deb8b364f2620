"""From prompts and arms to the answers asked for: which branches each needs, and how it is sampled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import pandas as pd

from steerlib.decoding.contexts import (
    BranchModels,
    Contexts,
    branch_ids,
    branch_names,
    check_branch_models,
    default_contexts,
    owner,
)
from steerlib.decoding.sampling import Sampling
from steerlib.models import FrozenModel
from steerlib.reading import TokenIds, check_length, read_history
from steerlib.residual import Factor, VectorFamily, VectorKey, family_of, strength
from steerlib.rules import check_method


@dataclass(frozen=True)
class Stream:
    """One context and what reads it.

    Attributes:
        ids: token ids of the context.
        vector: the steering vector added to its residual stream.
        alpha: strength of that vector.
        positions: where it is added, see `steered_positions`.
        model: which model reads it: empty for the frozen one, else the name of a trained branch, see `owner`.
    """

    ids: TokenIds
    vector: VectorKey = ()
    alpha: float = 0.0
    positions: str = "all"
    model: str = ""


@dataclass(frozen=True)
class Request:
    """One answer: an arm, a prompt and a seed.

    Attributes:
        alpha: strength of the logit rule: the arm's times the prompt's factor.
        branches: stream of each branch by name; "base" is always there. Where there is a "steered" one, the rule
            reads it as its base.
        base_top_p: mass of the base's nucleus outside which nothing is chosen; 1 for everything.
    """

    arm_id: str
    prompt_id: str
    seed: int
    method: str
    alpha: float
    sampling: Sampling
    branches: Mapping[str, Stream]
    base_top_p: float = 1.0


def category_of(arm: Mapping, prompt: Mapping) -> str:
    """The category that steers a prompt under an arm: the user's own, the placebo's, or the population's."""
    by_profile = {"own": prompt.get("category"), "shuffled": prompt.get("shuffled_category")}
    return by_profile.get(arm["profile"]) or arm["category"]


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
    """All answers of a grid, prompt by prompt, so that neighbours share contexts.

    Args:
        frozen: the model.
        prompts: the prompts table.
        arms: the arms table; an aligner rewrites texts and has no request here.
        seeds: of the sampling noise; greedy arms are asked for the first seed alone, all seeds would be equal.
        contexts: texts of the branches by category; the defaults of each arm's style where None.
        vectors: families of steering vectors at hand.
        factors: see `decode`.
        branch_models: trained branches that the arms name, see `decode`.

    Raises:
        ValueError: an empty prompt, or one that leaves no room for the answer (the prompt is named); no such vector;
            a prompt without the factor that an arm names; branch models that `check_branch_models` refuses.
    """
    arms = arms[arms["method"].map(lambda method: check_method(method).acts_on != "text").astype(bool)]
    check_branch_models(frozen, arms, branch_models or {})
    branches_of = _Branches(frozen, contexts, vectors, branch_models or {})
    requests = []
    for prompt in prompts.to_dict("records"):
        for arm in arms.to_dict("records"):
            alpha = strength(arm, prompt["prompt_id"], factors)
            sampling = sampling_of(arm)
            branches = branches_of(prompt, arm, alpha.vector, sampling.max_new_tokens)
            for seed in seeds if sampling.temperature else seeds[:1]:
                requests.append(
                    Request(
                        arm_id=arm["arm_id"],
                        prompt_id=prompt["prompt_id"],
                        seed=int(seed),
                        method=arm["method"],
                        alpha=alpha.logits,
                        sampling=sampling,
                        branches=branches,
                        base_top_p=arm["base_top_p"],
                    )
                )
    return requests


class _Branches:
    """The streams of a prompt under an arm; a context is tokenised once."""

    def __init__(
        self,
        frozen: FrozenModel,
        contexts: Contexts | None,
        vectors: Sequence[VectorFamily],
        models: BranchModels,
    ) -> None:
        self.frozen, self.contexts, self.vectors, self.models = frozen, contexts, vectors, models
        self.rendered: dict = {}

    def __call__(
        self, prompt: Mapping, arm: Mapping, vector_alpha: float, max_new_tokens: int
    ) -> dict[str, Stream]:
        trained = branch_names(arm["branches"])
        steering = self._steering(prompt, arm, vector_alpha)
        # A vector beside a logit rule steers every branch that the rule reads, its base as well.
        reads = check_method(arm["method"]).branches
        streams = {}
        for branch in dict.fromkeys(("base", *reads, *(("steered",) if steering else ()))):
            ids = self._ids(prompt, arm, "base" if branch in trained else branch)
            model = owner(self.frozen, self.models, branch) if branch in trained else ""
            steered = () if branch == "base" or model else steering
            streams[branch] = Stream(ids, *steered, model=model)
            reader = self.models.get(model, self.frozen)
            check_length(reader, ids, max_new_tokens, what=f"prompt {prompt['prompt_id']}")
        return streams

    def _ids(self, prompt: Mapping, arm: Mapping, branch: str) -> TokenIds:
        category, history = category_of(arm, prompt), prompt.get("history") or ""
        key = (prompt["prompt"], history, branch, category, arm["style"])
        if key not in self.rendered:
            self.rendered[key] = branch_ids(
                self.frozen,
                prompt["prompt"],
                branch,
                category=category,
                style=arm["style"],
                contexts=self.contexts or default_contexts(arm["style"]),
                history=read_history(history),
            )
        return self.rendered[key]

    def _steering(
        self, prompt: Mapping, arm: Mapping, alpha: float
    ) -> tuple[VectorKey, float, str] | tuple[()]:
        if not arm["family"]:
            return ()
        family = family_of(arm, self.vectors)
        key = (family.digest, family.user(prompt.get("user_id", "")))
        return (key, alpha, arm["positions"]) if alpha else ()
