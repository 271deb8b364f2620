"""Simulated users who rate as the demo's do, in arrays: for studies that need many users."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steerlib.profiles.demo.make_demo import (
    ALONE,
    BASE,
    BASE_SD,
    DISLIKED,
    DISLIKED_MOST,
    NOISE_SD,
    lines,
)
from steerlib.tables import ATTRIBUTE_COLUMNS

SIX = list(ATTRIBUTE_COLUMNS)
ANSWERS = 4
"""Rated answers of a conversation: two civil ones, then two that may be unkind."""


@dataclass(frozen=True)
class DemoTexts:
    """Scores of every answer that the demo's script can put together: O openings, K unkind sentences.

    Attributes:
        civil: (O, 2, 6) of the civil continuations.
        alone: (K, 6) of the unkind sentences.
        joined: (O, 2, K, 6) of a civil continuation followed by an unkind sentence.
        strength: (K, 6) how strong each sentence was written in each category, 0, 1 or 2.
    """

    civil: NDArray
    alone: NDArray
    joined: NDArray
    strength: NDArray


def demo_texts(scorer: Callable[[list[str]], pd.DataFrame]) -> DemoTexts:
    """The demo's texts under a scorer; each is scored once.

    Args:
        scorer: texts -> six attributes in [0, 1], row by row.
    """
    civil = [text for opening in lines("openings.jsonl") for text in opening["civil"]]
    unkind = lines("unkind.jsonl")
    alone = [row["text"] for row in unkind]
    joined = [f"{first} {second}" for first in civil for second in alone]
    scores = scorer(civil + alone + joined)[SIX].to_numpy(dtype=np.float64)
    parts = np.split(scores, [len(civil), len(civil) + len(alone)])
    strength = np.zeros((len(unkind), len(SIX)))
    for row, sentence in enumerate(unkind):
        strength[row, SIX.index(sentence["category"])] = sentence["strength"]
    return DemoTexts(
        civil=parts[0].reshape(-1, 2, len(SIX)),
        alone=parts[1],
        joined=parts[2].reshape(-1, 2, len(unkind), len(SIX)),
        strength=strength,
    )


def simulated_ratings(
    texts: DemoTexts,
    planted: NDArray,
    conversations: int,
    *,
    rng: np.random.Generator,
    noise: float = NOISE_SD,
    unkind_share: float = 0.5,
) -> tuple[NDArray, NDArray]:
    """Ratings and toxicity of what simulated users were shown, by the rule of the demo's script.

    Args:
        texts: the demo's texts with their scores.
        planted: (U,) index of each user's planted category, 0..5.
        conversations: of each user; no opening comes twice to one user.
        rng: random numbers.
        noise: standard deviation of a rating that has nothing to do with toxicity; the demo has 9.
        unkind_share: share of unkind answers, in 0..1/2; the demo has 1/2, exactly two of four.

    Returns:
        rating (U, 4 * conversations) in 1..100, and toxicity (U, 4 * conversations, 6).

    Raises:
        ValueError: more conversations than openings, or a share outside 0..1/2.
    """
    openings, sentences = len(texts.civil), len(texts.alone)
    if not 1 <= conversations <= openings:
        raise ValueError(f"{conversations} conversations a user are not in 1..{openings}, the openings")
    if not 0 <= unkind_share <= 0.5:
        raise ValueError(f"unkind_share {unkind_share} is not in 0..0.5")
    users = len(planted)
    opening = rng.random((users, openings)).argsort(axis=1)[:, :conversations, None]
    shape = (users, conversations, 2)
    sentence, civil = rng.integers(sentences, size=shape), rng.integers(2, size=shape)
    unkind = (rng.random(shape) < 2 * unkind_share)[..., None]
    alone = (rng.random(shape) < ALONE)[..., None]
    answer = np.where(alone, texts.alone[sentence], texts.joined[opening, civil, sentence])
    answer = np.where(unkind, answer, texts.civil[opening, civil])
    strength = np.where(unkind, texts.strength[sentence], 0.0)
    disliked = np.where(np.eye(len(SIX))[planted] == 1, DISLIKED_MOST, DISLIKED)
    loss = (strength * disliked[:, None, None]).sum(axis=3)
    base = rng.normal(BASE, BASE_SD, (users, 1, 1))
    liking = base - np.concatenate([np.zeros(shape), loss], axis=2)
    liking += rng.normal(0, noise, liking.shape)
    toxicity = np.concatenate([texts.civil[opening[..., 0]], answer], axis=2)
    rating = np.clip(np.rint(liking), 1, 100)
    return rating.reshape(users, -1), toxicity.reshape(users, -1, len(SIX))
