"""Length, variety and repetition of texts, in words separated by white space."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def length(texts: Sequence[str]) -> Floats:
    """Number of words of each text."""
    return np.array([len(text.split()) for text in texts], dtype=np.float64)


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Variety of several answers to one prompt: unique n-grams over words, all texts together.

    Args:
        texts: the answers.
        n: words in an n-gram, 1 or more.

    Returns:
        In [0, 1]; 0 where there are no words. It falls with length, so lengths belong beside it.

    Raises:
        ValueError: n below 1.

    Source: Liu et al., DExperts, ACL 2021 (evaluation code), after Li et al., NAACL 2016.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, not {n}")
    words = sum(len(text.split()) for text in texts)
    unique = {gram for text in texts for gram in _ngrams(text, n)}
    return len(unique) / words if words else 0.0


def repetition(texts: Sequence[str], n: int = 4) -> Floats:
    """Share of a text's n-grams that already stood in it: `1 - unique / all`; 0 below n words.

    Source: rep-n of Welleck et al., Unlikelihood Training, ICLR 2020.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, not {n}")
    grams = [_ngrams(text, n) for text in texts]
    return np.array([1 - len(set(found)) / len(found) if found else 0.0 for found in grams], dtype=np.float64)
