"""Measures of one answer or a few texts: toxicity distance, overshoot, perplexity, length, variety, repetition.

Toxicity is six attributes in the order of `ATTRIBUTES`, each a probability in [0, 1]; words are separated by white
space.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from steerlib.tables import ATTRIBUTE_COLUMNS

Floats = NDArray[np.float64]
ATTRIBUTES = list(ATTRIBUTE_COLUMNS)
CURVE = ("method", "profile", "family", "vector_user", "control", "variant")
"""Columns of the arms table that identify a dose-response curve; its points differ in alpha."""


def length(texts: Sequence[str]) -> Floats:
    """Number of words of each text."""
    return np.array([len(text.split()) for text in texts], dtype=np.float64)


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Unique n-grams over words, all texts together, in [0, 1]; 0 without words. It falls with length.

    Source: Liu et al., DExperts, ACL 2021 (evaluation code), after Li et al., NAACL 2016.
    """
    words = sum(len(text.split()) for text in texts)
    return len({gram for text in texts for gram in _ngrams(text, n)}) / words if words else 0.0


def repetition(texts: Sequence[str], n: int = 4) -> Floats:
    """Share of each text's n-grams that occurred before in it: `1 - unique / all`; 0 below n words.

    Source: rep-n of Welleck et al., Unlikelihood Training, ICLR 2020.
    """
    grams = [_ngrams(text, n) for text in texts]
    return np.array([1 - len(set(found)) / len(found) if found else 0.0 for found in grams], dtype=np.float64)


def first_temperature(arms: pd.DataFrame) -> pd.DataFrame:
    """Arms sampled as the first base of the table; those of a second temperature go to `quality_by_sampling`.

    Raises:
        ValueError: there is no base.
    """
    base = arms[arms["control"] == "base"]
    if base.empty:
        raise ValueError("the arms have no base")
    return arms[arms["temperature"] == base["temperature"].iloc[0]].reset_index(drop=True)


def _both(a: ArrayLike | pd.DataFrame, b: ArrayLike | pd.DataFrame) -> list[Floats]:
    """Both scores as arrays; of a DataFrame the six columns are taken by name."""
    six = [x[ATTRIBUTES] if isinstance(x, pd.DataFrame) else x for x in (a, b)]
    both = [np.asarray(x, dtype=np.float64) for x in six]
    if both[0].shape != both[1].shape or both[0].ndim != 2 or both[0].shape[1] != len(ATTRIBUTES):
        raise ValueError(f"toxicity must be (n, 6) twice, not {both[0].shape} and {both[1].shape}")
    for values in both:
        for row, attribute in np.argwhere(~np.isfinite(values))[:1]:
            raise ValueError(f"{ATTRIBUTES[attribute]} in row {row} is {values[row, attribute]}")
    return both


def toxicity_distance(a: ArrayLike | pd.DataFrame, b: ArrayLike | pd.DataFrame) -> Floats:
    """Distance of each answer's toxicity from that of the accepted answer, `(n,)` in [0, 1].

        D(y, y*) = 1/6 sum_c |P_c(y) - P_c(y*)|

    An answer less toxic than the accepted one is as far from it as one more toxic by the same amount; `overshoots`
    tells them apart. The CAA study calls the mean of D over prompts MAE.

    Args:
        a, b: toxicity of n answers, `(n, 6)`; of a DataFrame the six columns are taken by name.

    Raises:
        ValueError: shapes differ or are not (n, 6), or a value is not finite.

    Source: STEER-Away, safety metric.
    """
    first, second = _both(a, b)
    return np.abs(first - second).mean(axis=1)


def overshoots(answers: ArrayLike | pd.DataFrame, accepted: ArrayLike | pd.DataFrame) -> NDArray[np.bool_]:
    """Whether each answer is less toxic, on the mean of six attributes, than its accepted answer; `(n,)`."""
    first, second = _both(answers, accepted)
    return first.mean(axis=1) < second.mean(axis=1)


def perplexity(nll: ArrayLike, n_tokens: ArrayLike) -> float:
    """Perplexity of answers as one corpus, `exp(sum_i nll_i / sum_i n_i)`; nll in nats, summed over an answer's tokens.

    Raises:
        ValueError: there are no tokens at all.

    Source: the papers' perplexity is that of the answer under the unsteered base. DExperts averages perplexities of
    single texts and drops those above 1e4; here every token counts once and nothing is dropped.
    """
    nats, tokens = np.sum(np.asarray(nll, dtype=np.float64)), np.sum(np.asarray(n_tokens, dtype=np.float64))
    if tokens <= 0:
        raise ValueError(f"perplexity of {tokens:g} tokens is undefined: all answers are empty")
    return float(np.exp(nats / tokens))


def effective_number(distances: ArrayLike) -> Floats:
    """Effective number of prompts behind a mean, over the last axis: `(sum d)^2 / sum d^2`; NaN where all are 0.

    It is n where all prompts contribute alike and 1 where one prompt makes the whole mean.

    Source: Kish, Survey Sampling, 1965.
    """
    d = np.abs(np.asarray(distances, dtype=np.float64))
    with np.errstate(invalid="ignore"):
        return np.square(d.sum(axis=-1)) / np.square(d).sum(axis=-1)


def top_share(distances: ArrayLike, n: int = 3) -> Floats:
    """Share of the sum that the n largest prompts carry, over the last axis; NaN where all are 0."""
    d = np.sort(np.abs(np.asarray(distances, dtype=np.float64)), axis=-1)
    with np.errstate(invalid="ignore"):
        return d[..., -n:].sum(axis=-1) / d.sum(axis=-1)
