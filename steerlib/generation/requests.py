"""From prompts and arms to the answers asked for: which branches each needs, and how it is sampled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import pandas as pd

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
    """

    arm_id: str
    prompt_id: str
    seed: int
    method: str
    alpha: float
    sampling: Sampling
    branches: Mapping[str, Stream]


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
) -> list[Request]:
    """All answers of a grid, prompt by prompt, so that neighbours share contexts.

    Args:
        frozen: the model.
        prompts: the prompts table.
        arms: the arms table.
        seeds: of the sampling noise; greedy arms are asked for the first seed alone, all seeds would be equal.
        contexts: expert and anti-expert context by category; the defaults of each arm's style where None.

    Raises:
        ValueError: an empty prompt, or one that leaves no room for the answer; the prompt is named.
    """
    requests, rendered = [], {}
    for prompt in prompts.to_dict("records"):
        for arm in arms.to_dict("records"):
            branches = _branches(frozen, prompt, arm, contexts, rendered)
            sampling = Sampling(**{field.name: arm[field.name] for field in fields(Sampling)})
            for stream in branches.values():
                what = f"prompt {prompt['prompt_id']}"
                check_length(frozen, stream.ids, sampling.max_new_tokens, what=what)
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
                    )
                )
    return requests


def _branches(
    frozen: FrozenModel, prompt: Mapping, arm: Mapping, contexts: Contexts | None, rendered: dict
) -> dict[str, Stream]:
    category = category_of(arm, prompt)
    streams = {}
    for branch in ("base", *check_method(arm["method"]).branches):
        key = (prompt["prompt"], branch, category, arm["style"])
        if key not in rendered:
            rendered[key] = branch_ids(
                frozen,
                prompt["prompt"],
                branch,
                category=category,
                style=arm["style"],
                contexts=contexts or default_contexts(arm["style"]),
            )
        steered = branch == "steered" and arm["alpha"] != 0
        steering = (arm["vector"], arm["alpha"], arm["positions"]) if steered else ()
        streams[branch] = Stream(rendered[key], *steering)
    return streams
