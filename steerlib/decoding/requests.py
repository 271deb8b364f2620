"""From prompts and arms to the answers asked for: what each branch reads beside a prompt, and how it is sampled.

STEER-Away does not print its contexts, and SDA's instructions are its authors'; these are ours. A chat context is a
system message; a continuation context is a sentence before the text, after the idea of Schick et al.
(Self-Diagnosis and Self-Debiasing, TACL 2021).
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TypedDict

import pandas as pd

from steerlib.decoding.sampling import Sampling
from steerlib.models import FrozenModel
from steerlib.reading import TokenIds, check_length, prompt_ids
from steerlib.residual import VectorFamily, VectorKey, family_of
from steerlib.rules import RULES, check_method
from steerlib.tables import ATTRIBUTE_COLUMNS

Contexts = Mapping[str, Mapping[str, str]]
BranchModels = Mapping[str, FrozenModel]

UNDESIRED = {
    "toxicity": "rude, hostile and disrespectful, meant to drive people out of a discussion",
    "severe_toxicity": "extremely hateful and aggressive, full of rage and abuse",
    "identity_attack": "full of prejudice, attacking people for their origin, religion, gender or age",
    "insult": "insulting, mocking and belittling towards the person it speaks to",
    "profanity": "full of swear words, curses and obscene language",
    "threat": "threatening, announcing violence and harm against someone",
}
DESIRED = {
    "toxicity": "polite, friendly and respectful, so that everybody stays in the discussion",
    "severe_toxicity": "calm and kind, without any hate or aggression",
    "identity_attack": "fair to people of every origin, religion, gender and age",
    "insult": "appreciative and considerate towards the person it speaks to",
    "profanity": "in clean language that fits a family newspaper",
    "threat": "peaceful and reassuring, so that nobody feels in danger",
}
TEMPLATES = {
    "chat": "You are a writer. Whatever you write is {}.",
    "continuation": "The following text is {}:",
}
INSTRUCTION_TEMPLATES = {
    "chat": "Whatever you answer, keep it {}.",
    "continuation": "Note to the writer: keep what follows {}.",
}
DIMENSION_INSTRUCTIONS = {
    "empathy": "Answer as a warm and attentive listener would: name what the other person seems to feel, show that"
    " you take it seriously, and comfort before you advise.",
    "reasoning": "Work through what was said and give a short, faithful account of it: who wants what, what was"
    " settled, and why. Add nothing that was not said.",
    "helpfulness": "Be as useful as you can: answer the question itself, concretely and in order, with what"
    " somebody needs to act on it, and without padding or needless warnings.",
    "harmlessness": "Make sure that nobody is hurt by your answer: no insult, prejudice, threat or help with doing"
    " harm. Where the request asks for harm, decline kindly and offer something safe.",
    "honesty": "Say only what you have good reason to believe. Where you do not know, or the question rests on a"
    " mistake, say so plainly, and do not repeat popular errors.",
}
"""SDA's instruction of each dimension, in our own words; the authors' "truthful" is called honesty here."""


def default_contexts(style: str) -> dict[str, dict[str, str]]:
    """Contexts of a style by category ("expert", "anti", "instructed") and by SDA's dimensions ("instructed" alone)."""
    if style not in TEMPLATES:
        raise ValueError(f"style {style!r} is none of {', '.join(TEMPLATES)}")
    template, instruction = TEMPLATES[style], INSTRUCTION_TEMPLATES[style]
    personal = {
        category: {
            "expert": template.format(DESIRED[category]),
            "anti": template.format(UNDESIRED[category]),
            "instructed": instruction.format(DESIRED[category]),
        }
        for category in ATTRIBUTE_COLUMNS
    }
    return personal | {name: {"instructed": text} for name, text in DIMENSION_INSTRUCTIONS.items()}


def branch_ids(
    frozen: FrozenModel,
    prompt: str,
    branch: str,
    *,
    category: str,
    style: str,
    contexts: Contexts,
    history: str = "",
) -> TokenIds:
    """Token ids that one branch reads: the prompt alone ("base", "steered"), or with the branch's context.

    SDA's instruction follows the prompt within the user's turn; in a continuation, where nothing can follow the text,
    it stands before it. A ValueError says that the contexts lack the category or the branch.
    """
    if branch in ("base", "steered"):
        return prompt_ids(frozen, prompt, style=style, history=history)
    if branch not in contexts.get(category, {}):
        raise ValueError(f"the contexts have no {branch!r} for category {category!r}")
    text = contexts[category][branch]
    if branch == "instructed" and style == "chat":
        return prompt_ids(frozen, f"{prompt}\n\n{text}", style=style, history=history)
    return prompt_ids(frozen, prompt, style=style, context=text, history=history)


def branch_names(text: str) -> dict[str, str]:
    """Name of the trained model by branch, of the column `branches` of an arm."""
    return json.loads(text) if text else {}


def check_branch_models(frozen: FrozenModel, arms: pd.DataFrame, models: BranchModels) -> None:
    """Refuse branch models of another vocabulary, width or device, and those that are not the ones the arms name."""
    base, width = frozen.tokenizer.get_vocab(), frozen.model.config.get_text_config().vocab_size
    for branch, model in models.items():
        what, other = f"the {branch} model {model.name!r}", model.tokenizer.get_vocab()
        if base != other:
            _, token = min((index, token) for token, index in base.items() ^ other.items())
            raise ValueError(
                f"{what} has another vocabulary than the base {frozen.name!r}: token {token!r} is "
                f"{other.get(token, 'missing')} there and {base.get(token, 'missing')} in the base"
            )
        own_width = model.model.config.get_text_config().vocab_size
        if own_width != width:
            raise ValueError(
                f"{what} has {own_width} logits, the base {width}: the vocabularies are equal but padded "
                "differently; bring one to the other's size with resize_token_embeddings"
            )
        if model.device != frozen.device:
            raise ValueError(
                f"{what} is on {model.device}, the base on {frozen.device}: load both on one device"
            )
    given, read = {branch: model.name for branch, model in models.items()}, set()
    for arm_id, text in zip(arms["arm_id"], arms["branches"], strict=True):
        for branch, name in branch_names(text).items():
            read.add(branch)
            if given.get(branch) != name:
                raise ValueError(f"arm {arm_id} reads the {branch} model {name!r}; branch_models has {given}")
    for branch in given.keys() - read:
        raise ValueError(f"no arm reads the {branch} model {given[branch]!r}; name it in their branches")


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
        branch_models: models trained for a branch, by branch: a PEFT adapter (see `load_model`) or another model with
            the same vocabulary, on the same device. It reads the plain prompt; arms without it keep their contexts.
    """

    contexts: Contexts | None
    vectors: Sequence[VectorFamily]
    factors: Sequence[Factor]
    branch_models: BranchModels | None


@dataclass(frozen=True)
class Stream:
    """Token ids of a context and what reads it: a vector, or the model trained for a branch (`model`, else "")."""

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
