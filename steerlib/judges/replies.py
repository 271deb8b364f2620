"""Scores out of a judge's reply, read strictly."""

import json

LOWEST, HIGHEST = 1, 100
"""The scale that a judge is asked to use."""


def reply_scores(reply: str, keys: tuple[str, ...]) -> tuple[float, ...] | None:
    """Scores of a reply that is a JSON object with exactly these keys, each a whole number from 1 to 100.

    Args:
        reply: what the judge wrote, for instance `{"score": 73}`.
        keys: names of the scores, in the order wanted.

    Returns:
        The scores, or None for anything else: other keys, other numbers, words around the object.
    """
    text = reply.strip()
    # Many a model sets JSON as code; that frame is the one liberty taken.
    if text.startswith("```") and text.endswith("```"):
        text = text.strip("`").removeprefix("json").strip()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # ValueError also for a number of thousands of digits
        return None
    if not isinstance(found, dict) or set(found) != set(keys):
        return None
    values = [found[key] for key in keys]
    whole = all(type(value) is int and LOWEST <= value <= HIGHEST for value in values)
    return tuple(float(value) for value in values) if whole else None
