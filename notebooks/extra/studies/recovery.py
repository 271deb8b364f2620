"""How many ratings it takes to find a user's category: users are simulated, so the truth is known.

Simulated users who rate as the demo's do, in arrays: for studies that need many users.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t

from steerlib.profiles.demo.make_demo import (
    ALONE,
    BASE,
    BASE_SD,
    DISLIKED,
    DISLIKED_MOST,
    NOISE_SD,
    lines,
)
from steerlib.profiles.sensitivities import ESTIMATORS, estimate, percentiles, primary_category
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


RATINGS = (8, 16, 24, 48, 96)


def recovery_study(
    texts: DemoTexts,
    *,
    ratings: Sequence[int] = RATINGS,
    users: int = 48,
    simulations: int = 100,
    noise: float = NOISE_SD,
    unkind_share: float = 0.5,
    seed: int = 0,
) -> pd.DataFrame:
    """What each estimator finds in simulated users with a planted category, against their number of ratings.

    A simulation is one set of users, the six categories planted equally often, who rate as in the demo. In the
    design "equal" all of them have the same number of ratings, the first of those that they give; in "mixed"
    a fifth of the users has each number, as where some people rate more than others. With equal numbers
    "shrunk" moves everybody alike, and must find what "exposure_adjusted" finds.

    Args:
        texts: the demo's texts under a scorer, from `demo_texts`.
        ratings: numbers of ratings a user, each a multiple of 4 (a conversation has four answers).
        users: of a simulation, a multiple of 6.
        simulations: number of sets of users.
        noise: standard deviation of a rating's part that has nothing to do with toxicity; the demo has 9.
        unkind_share: share of unkind answers, in (0, 1/2]; the demo has 1/2.
        seed: of the random numbers.

    Returns:
        design, ratings, estimator, simulation, planted, found, users: how many users of a planted category
        were found to have which; only counts above 0.

    Raises:
        ValueError: a number of ratings that is no multiple of 4, or of users that is none of 6 or too small.
    """
    bad = [number for number in ratings if number < ANSWERS or number % ANSWERS]
    if bad or not ratings:
        raise ValueError(f"ratings must be multiples of {ANSWERS}, not {bad[0] if bad else 'none at all'}")
    if users < max(len(SIX), len(ratings)) or users % len(SIX):
        raise ValueError(f"users must be a multiple of {len(SIX)}, at least {len(ratings)}, not {users}")
    planted = np.arange(users) % len(SIX)
    longest = max(ratings) // ANSWERS
    parts = []
    for simulation in range(simulations):
        rng = np.random.default_rng([seed, simulation])
        shown = simulated_ratings(texts, planted, longest, rng=rng, noise=noise, unkind_share=unkind_share)
        mixed = np.asarray(ratings)[rng.permutation(users) % len(ratings)]
        designs = [("equal", np.full(users, number)) for number in ratings] + [("mixed", mixed)]
        for design, own in designs:
            for estimator in ESTIMATORS:
                found = _found(*shown, own, estimator)
                part = {"design": design, "ratings": own, "estimator": estimator, "simulation": simulation}
                parts.append(pd.DataFrame(part | {"planted": planted, "found": found}))
    everybody = pd.concat(parts, ignore_index=True)
    study = everybody.value_counts(sort=False).rename("users").reset_index()
    names = dict(enumerate(SIX))
    return study.assign(planted=study["planted"].map(names), found=study["found"].map(names))


def _found(rating: NDArray, toxicity: NDArray, own: NDArray, estimator: str) -> NDArray:
    """(U,) index of each user's primary category, from the first `own` ratings of each."""
    rated = np.arange(rating.shape[1]) < own[:, None]
    codes = np.nonzero(rated)[0]
    s = pd.DataFrame(estimate(codes, 1.0 - rating[rated] / 100.0, toxicity[rated], estimator), columns=SIX)
    return primary_category(percentiles(s), s).map(SIX.index).to_numpy()


def recovery_shares(study: pd.DataFrame) -> pd.DataFrame:
    """Share of users whose planted category is found; chance is 1/6.

    Args:
        study: what `recovery_study` returned.

    Returns:
        design, ratings, estimator, share (mean over simulations), low, high (95 %, t over simulations),
        simulations.
    """
    return _intervals(_by_simulation(study), "share")


def recovery_differences(study: pd.DataFrame, *, against: str = "paper") -> pd.DataFrame:
    """How much more often each estimator finds the planted category than another, in the same simulations.

    Args:
        study: what `recovery_study` returned.
        against: the estimator compared with.

    Returns:
        design, ratings, estimator, difference (of shares), low, high (95 %, paired t over simulations),
        simulations.

    Raises:
        KeyError: `against` is not in the study.
    """
    shares = _by_simulation(study)
    if against not in shares:
        raise KeyError(f"estimator {against!r} is not in the study, which has {', '.join(shares)}")
    return _intervals(shares.sub(shares[against], axis=0).drop(columns=against), "difference")


def recovery_confusion(study: pd.DataFrame, *, estimator: str, ratings: int) -> pd.DataFrame:
    """Which category is found where another was planted, all with the same number of ratings.

    Args:
        study: what `recovery_study` returned.
        estimator: one of its estimators.
        ratings: one of its numbers of ratings.

    Returns:
        (6, 6): rows the planted category, columns the found one, shares of the row.

    Raises:
        KeyError: the study has no such estimator or number.
    """
    chosen = study[
        (study["design"] == "equal") & (study["estimator"] == estimator) & (study["ratings"] == ratings)
    ]
    if chosen.empty:
        raise KeyError(f"the study has no estimator {estimator!r} with {ratings} ratings")
    counts = chosen.pivot_table(index="planted", columns="found", values="users", aggfunc="sum")
    counts = counts.reindex(index=SIX, columns=SIX).fillna(0.0)
    return counts.div(counts.sum(axis=1), axis=0)


def _by_simulation(study: pd.DataFrame) -> pd.DataFrame:
    """Share found: a row a design, number of ratings and simulation, a column an estimator."""
    hits = study["users"].where(study["planted"] == study["found"], 0)
    groups = [study[name] for name in ("design", "ratings", "simulation", "estimator")]
    share = hits.groupby(groups).sum() / study["users"].groupby(groups).sum()
    return share.unstack("estimator")[list(ESTIMATORS)]


def _intervals(values: pd.DataFrame, name: str) -> pd.DataFrame:
    groups = values.stack().rename(name).groupby(["design", "ratings", "estimator"], sort=False)
    table = groups.agg(["mean", "sem", "size"]).reset_index()
    half = table["sem"] * t.ppf(0.975, np.maximum(table["size"] - 1, 1))
    table = table.assign(low=table["mean"] - half, high=table["mean"] + half)
    table = table.rename(columns={"mean": name, "size": "simulations"})
    return table[["design", "ratings", "estimator", name, "low", "high", "simulations"]]
