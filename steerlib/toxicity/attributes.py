"""The six attributes of toxicity, by the names Perspective gives them."""

import warnings
from collections.abc import Iterable

from steerlib.tables import ATTRIBUTE_COLUMNS

ATTRIBUTES: tuple[str, ...] = ATTRIBUTE_COLUMNS

LABEL_NAMES = {attribute: attribute for attribute in ATTRIBUTES} | {
    "toxic": "toxicity",
    "severe_toxic": "severe_toxicity",
    "obscene": "profanity",
    "identity_hate": "identity_attack",
}
"""Attribute of each label: its own name, or that of the Jigsaw comments."""


def check_attribute(name: str) -> str:
    """The name itself; a ValueError where it is none of the six attributes."""
    if name not in ATTRIBUTES:
        raise ValueError(f"{name!r} is not an attribute; the six are {', '.join(ATTRIBUTES)}")
    return name


def match_labels(names: Iterable[str], *, owner: str) -> dict[str, str]:
    """The given name of each attribute, `{attribute: name}`; an attribute without one is left out, with a warning.

    Case is ignored; where both an attribute's own name and Jigsaw's are given, its own is taken; other names are left
    out. A ValueError that none of the names is toxicity says whose they are (`owner`).
    """
    ordered = sorted(map(str, names), key=lambda name: name.lower() in ATTRIBUTES)
    found = {LABEL_NAMES[name.lower()]: name for name in ordered if name.lower() in LABEL_NAMES}
    missing = [attribute for attribute in ATTRIBUTES if attribute not in found]
    if "toxicity" in missing:
        raise ValueError(f"{owner} has no toxicity; it has {', '.join(ordered)}")
    if missing:
        warnings.warn(f"{owner} has no {', '.join(missing)}: these scores are missing (NaN)", stacklevel=3)
    return {attribute: found[attribute] for attribute in ATTRIBUTES if attribute in found}


def check_texts(texts: Iterable[str], *, what: str = "text") -> list[str]:
    """The texts as a list; a ValueError where a single string was given, or one of them is no string."""
    if isinstance(texts, str):
        raise ValueError(f"texts must be a list of strings, not the single string {texts[:40]!r}")
    listed = list(texts)
    for row, text in enumerate(listed):
        if not isinstance(text, str):
            raise ValueError(f"{what} in row {row} is {text!r}, not a string")
    return listed
