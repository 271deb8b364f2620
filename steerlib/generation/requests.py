"""From prompts and arms to the answers asked for: which branches each needs, and how it is sampled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import pandas as pd

from steerlib.generation.branches import BranchModels, branch_names, check_branch_models, owner
from steerlib.generation.contexts import Contexts, branch_ids, default_contexts
from steerlib.generation.rules import check_method
from steerlib.generation.sampling import Sampling
from steerlib.generation.streams import Stream
from steerlib.models import FrozenModel, check_length


@dataclass(frozen=True)
class Request:
    """One answer: an arm, a prompt and a seed.

    Attributes:
        branches: stream of each branch by name; "base" is always there.
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


def make_requests(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    seeds: Sequence[int],
    contexts: Contexts | None = None,
    branch_models: BranchModels | None = None,
) -> list[Request]:
    """All answers of a grid, prompt by prompt, so that neighbours share contexts.

    Args:
        frozen: the model.
        prompts: the prompts table.
        arms: the arms table.
        seeds: of the sampling noise; greedy arms are asked for the first seed alone, all seeds would be equal.
        contexts: expert and anti-expert context by category; the defaults of each arm's style where None.
        branch_models: trained branches that the arms name, see `decode`.

    Raises:
        ValueError: an empty prompt, or one that leaves no room for the answer (the prompt is named); branch models
            that `check_branch_models` refuses.
    """
    models = branch_models or {}
    check_branch_models(frozen, arms, models)
    requests, rendered = [], {}
    for prompt in prompts.to_dict("records"):
        for arm in arms.to_dict("records"):
            branches = _branches(frozen, prompt, arm, contexts, rendered, models)
            sampling = Sampling(**{field.name: arm[field.name] for field in fields(Sampling)})
            for stream in branches.values():
                what = f"prompt {prompt['prompt_id']}"
                check_length(models.get(stream.model, frozen), stream.ids, sampling.max_new_tokens, what=what)
            for seed in seeds if sampling.temperature else seeds[:1]:
                requests.append(
                    Request(
                        arm_id=arm["arm_id"],
                        prompt_id=prompt["prompt_id"],
                        seed=int(seed),
                        method=arm["method"],
                        alpha=arm["alpha"],
                        sampling=sampling,
                        branches=branches,
                        base_top_p=arm["base_top_p"],
                    )
                )
    return requests


def _branches(
    frozen: FrozenModel,
    prompt: Mapping,
    arm: Mapping,
    contexts: Contexts | None,
    rendered: dict,
    models: BranchModels,
) -> dict[str, Stream]:
    category, trained = category_of(arm, prompt), branch_names(arm["branches"])
    streams = {}
    for branch in ("base", *check_method(arm["method"]).branches):
        reads = "base" if branch in trained else branch
        key = (prompt["prompt"], reads, category, arm["style"])
        if key not in rendered:
            rendered[key] = branch_ids(
                frozen,
                prompt["prompt"],
                reads,
                category=category,
                style=arm["style"],
                contexts=contexts or default_contexts(arm["style"]),
            )
        steered = branch == "steered" and arm["alpha"] != 0
        steering = (arm["vector"], arm["alpha"], arm["positions"]) if steered else ()
        model = owner(frozen, models, branch) if branch in trained else ""
        streams[branch] = Stream(rendered[key], *steering, model=model)
    return streams
