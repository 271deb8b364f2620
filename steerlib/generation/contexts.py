"""The contexts of the branches: what the frozen model reads before a prompt, for each of six categories.

STEER-Away does not print its contexts; these are ours. A chat context is a system message; a continuation
context is a sentence before the text, after the idea of Schick et al. (Self-Diagnosis and Self-Debiasing,
TACL 2021).
"""

from collections.abc import Mapping

from steerlib.models import FrozenModel, TokenIds, prompt_ids
from steerlib.toxicity.attributes import ATTRIBUTES

Contexts = Mapping[str, Mapping[str, str]]

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


def default_contexts(style: str) -> dict[str, dict[str, str]]:
    """Expert and anti-expert context of each category.

    Args:
        style: "chat" or "continuation".

    Returns:
        By category, a dictionary with "expert" (desired) and "anti" (undesired).

    Raises:
        ValueError: unknown style.
    """
    if style not in TEMPLATES:
        raise ValueError(f"style {style!r} is none of {', '.join(TEMPLATES)}")
    template = TEMPLATES[style]
    return {
        category: {
            "expert": template.format(DESIRED[category]),
            "anti": template.format(UNDESIRED[category]),
        }
        for category in ATTRIBUTES
    }


def branch_ids(
    frozen: FrozenModel, prompt: str, branch: str, *, category: str, style: str, contexts: Contexts
) -> TokenIds:
    """Token ids that one branch reads: the prompt alone (base), or behind the category's context.

    Raises:
        ValueError: the contexts lack the category or the branch.
    """
    if branch in ("base", "steered"):
        return prompt_ids(frozen, prompt, style=style)
    if branch not in contexts.get(category, {}):
        raise ValueError(f"the contexts have no {branch!r} for category {category!r}")
    return prompt_ids(frozen, prompt, style=style, context=contexts[category][branch])
