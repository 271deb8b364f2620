"""What the branches read beside a prompt: contexts by category and dimension, or models trained for a branch.

STEER-Away does not print its contexts, and SDA's instructions are its authors'; these are ours. A chat context is a
system message; a continuation context is a sentence before the text, after the idea of Schick et al.
(Self-Diagnosis and Self-Debiasing, TACL 2021).
"""

import json
from collections.abc import Mapping

import pandas as pd

from steerlib.models import FrozenModel
from steerlib.reading import TokenIds, prompt_ids
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
    read = set()
    for arm_id, text in zip(arms["arm_id"], arms["branches"], strict=True):
        for branch, name in branch_names(text).items():
            read.add(branch)
            given = models[branch].name if branch in models else None
            if given != name:
                there = "none is given" if given is None else f"{given!r} is given"
                raise ValueError(f"arm {arm_id} reads the {branch} model {name!r}; {there} in branch_models")
    for branch in models.keys() - read:
        raise ValueError(
            f"no arm reads the {branch} model {models[branch].name!r}; name it in their branches"
        )
