"""The six attributes of toxicity, by the names Perspective gives them."""

from collections.abc import Iterable
from difflib import get_close_matches

from steerlib.tables import ATTRIBUTE_COLUMNS

ATTRIBUTES: tuple[str, ...] = ATTRIBUTE_COLUMNS

LABEL_NAMES = {attribute: attribute for attribute in ATTRIBUTES} | {
    "toxic": "toxicity",
    "severe_toxic": "severe_toxicity",
    "obscene": "profanity",
    "identity_hate": "identity_attack",
}
"""How classifiers trained on the Jigsaw comments name the same six, to the name used here."""


def check_attribute(name: str) -> str:
    """The name itself, if it is one of the six attributes.

    Raises:
        ValueError: it is not; the message shows the nearest name and all six.
    """
    if name in ATTRIBUTES:
        return name
    plain = str(name).lower().replace(" ", "_").replace("-", "_")
    nearest = get_close_matches(plain, LABEL_NAMES, n=1)
    hint = f"; did you mean {LABEL_NAMES[nearest[0]]!r}?" if nearest else "."
    raise ValueError(f"{name!r} is not an attribute{hint} The six are {', '.join(ATTRIBUTES)}")


def match_labels(names: Iterable[str], *, owner: str) -> dict[str, str]:
    """Which of the given names stands for each of the six attributes.

    Case is ignored, and the names of the Jigsaw labels are known (`obscene` is profanity); where both an
    attribute's own name and another are given, its own is taken.

    Args:
        names: labels of a classifier or columns of a table; others than the six are left out.
        owner: whose names they are, for the message.

    Returns:
        {attribute: name}, in the order of `ATTRIBUTES`.

    Raises:
        ValueError: an attribute has no name among them; all that are missing are named.
    """
    given = list(names)
    ordered = sorted(given, key=lambda name: str(name).lower() in ATTRIBUTES)
    found = {LABEL_NAMES[str(name).lower()]: name for name in ordered if str(name).lower() in LABEL_NAMES}
    missing = [attribute for attribute in ATTRIBUTES if attribute not in found]
    if missing:
        raise ValueError(f"{owner} has no {', '.join(missing)}; it has {', '.join(map(str, given))}")
    return {attribute: found[attribute] for attribute in ATTRIBUTES}


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list.

    Raises:
        ValueError: a single string was given instead of several, or one of them is no string.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts must be a list of strings, not the single string {texts[:40]!r}")
    listed = list(texts)
    for row, text in enumerate(listed):
        if not isinstance(text, str):
            raise ValueError(f"text in row {row} is {text!r}, not a string")
    return listed
