"""How many ratings it takes to find a user's category: simulated users rate as the demo does, so the truth is known."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import t

from steerlib.figures.style import label, new_figure
from steerlib.profiles.demo.make_demo import (
    ALONE,
    BASE,
    BASE_SD,
    DISLIKED,
    DISLIKED_MOST,
    NOISE_SD,
)
from steerlib.profiles.sensitivities import ESTIMATORS, estimate, percentiles, primary_category
from steerlib.profiles.sources import DEMO, read_rows
from steerlib.tables import ATTRIBUTE_COLUMNS

SIX = list(ATTRIBUTE_COLUMNS)
ANSWERS = 4
"""Rated answers of a conversation: two civil ones, then two that may be unkind."""
LOOK = {"paper": ("#e69f00", "o"), "exposure_adjusted": ("#56b4e9", "s")}


class DemoTexts(NamedTuple):
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
    """The demo's texts under a scorer; each is scored once."""
    civil = [text for pair in read_rows(DEMO / "openings.jsonl")["civil"] for text in pair]
    unkind = read_rows(DEMO / "unkind.jsonl").to_dict("records")
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
        planted: (U,) index of each user's planted category, 0..5.
        conversations: of each user; no opening comes twice to one user.
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


def recovery_study(
    texts: DemoTexts,
    *,
    ratings: Sequence[int],
    users: int = 48,
    simulations: int = 100,
    noise: float = NOISE_SD,
    unkind_share: float = 0.5,
    seed: int = 0,
) -> pd.DataFrame:
    """Which category each estimator finds in simulated users with a planted one, against their number of ratings.

    A simulation is one set of users, the six categories planted equally often, who rate as in the demo. All of them
    have the same number of ratings, the first of those that they give.

    Args:
        ratings: numbers of ratings a user, each a multiple of 4 (a conversation has four answers).
        users: of a simulation, a multiple of 6.
        noise, unkind_share: see `simulated_ratings`.

    Returns:
        ratings, estimator, simulation, planted, found, users: how many users of a planted category were found to
        have which; only counts above 0.

    Raises:
        ValueError: a number of ratings that is no multiple of 4, or of users that is none of 6.
    """
    bad = [number for number in ratings if number < ANSWERS or number % ANSWERS]
    if bad or users < len(SIX) or users % len(SIX):
        raise ValueError(f"ratings must be multiples of {ANSWERS}, users of {len(SIX)}, not {bad or users}")
    planted = np.arange(users) % len(SIX)
    codes = np.arange(users)
    parts = []
    for simulation in range(simulations):
        rng = np.random.default_rng([seed, simulation])
        longest = max(ratings) // ANSWERS
        rated, toxicity = simulated_ratings(
            texts, planted, longest, rng=rng, noise=noise, unkind_share=unkind_share
        )
        for number, estimator in product(ratings, ESTIMATORS):
            dislike = 1.0 - rated[:, :number].ravel() / 100.0
            shown = toxicity[:, :number].reshape(-1, len(SIX))
            s = pd.DataFrame(estimate(codes.repeat(number), dislike, shown, estimator), columns=SIX)
            found = primary_category(percentiles(s), s)
            part = {"ratings": number, "estimator": estimator, "simulation": simulation}
            parts.append(pd.DataFrame(part | {"planted": np.take(SIX, planted), "found": found}))
    everybody = pd.concat(parts, ignore_index=True)
    return everybody.value_counts(sort=False).rename("users").reset_index()


def recovery_shares(study: pd.DataFrame) -> pd.DataFrame:
    """Share of users of `recovery_study` whose planted category is found; chance is 1/6.

    ratings, estimator, share (mean over simulations), low, high (95 %, t over simulations), simulations. The estimator
    "difference" is the paired difference exposure_adjusted minus paper, in the same simulations.
    """
    hits = study["users"].where(study["planted"] == study["found"], 0)
    groups = [study[name] for name in ("ratings", "simulation", "estimator")]
    share = (hits.groupby(groups).sum() / study["users"].groupby(groups).sum()).unstack("estimator")
    share = share.assign(difference=share["exposure_adjusted"] - share["paper"])
    table = share.stack().groupby(["ratings", "estimator"]).agg(["mean", "sem", "size"]).reset_index()
    half = table["sem"] * t.ppf(0.975, np.maximum(table["size"] - 1, 1))
    table = table.assign(low=table["mean"] - half, high=table["mean"] + half)
    table = table.rename(columns={"mean": "share", "size": "simulations"})
    return table[["ratings", "estimator", "share", "low", "high", "simulations"]]


def recovery_confusion(study: pd.DataFrame, *, estimator: str, ratings: int) -> pd.DataFrame:
    """Which category is found where another was planted, `(6, 6)`: rows planted, columns found, shares of the row.

    Of the users of `recovery_study` with one number of ratings; a KeyError where it has none, or no such estimator.
    """
    chosen = study[(study["estimator"] == estimator) & (study["ratings"] == ratings)]
    if chosen.empty:
        raise KeyError(f"the study has no estimator {estimator!r} with {ratings} ratings")
    counts = chosen.pivot_table(index="planted", columns="found", values="users", aggfunc="sum")
    counts = counts.reindex(index=SIX, columns=SIX).fillna(0.0)
    return counts.div(counts.sum(axis=1), axis=0)


def plot_recovery(shares: pd.DataFrame) -> Figure:
    """Share of planted categories found (`recovery_shares`) against the number of ratings, with 95 % bands."""
    fig, axes = new_figure(height=3.4)
    axis = axes[0, 0]
    for estimator, (colour, marker) in LOOK.items():
        rows = shares[shares["estimator"] == estimator].sort_values("ratings")
        axis.plot(rows["ratings"], rows["share"], color=colour, marker=marker, label=label(estimator))
        axis.fill_between(rows["ratings"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
    axis.axhline(1 / len(SIX), color="black", linestyle=(0, (1, 2)), linewidth=1, label="chance")
    axis.set_xscale("log", base=2)
    numbers = sorted(shares["ratings"].unique())
    axis.set_xticks(numbers, [f"{number}" for number in numbers])
    axis.minorticks_off()
    title = f"Simulated users, {shares['simulations'].iloc[0]} sets; band: 95 % over sets"
    axis.set(
        xlabel="ratings of each user", ylabel="share of users whose planted\ncategory is found", title=title
    )
    axis.set_ylim(0, 1)
    axis.legend(loc="upper left")
    return fig


def plot_confusion(confusions: Mapping[str, pd.DataFrame]) -> Figure:
    """Which category is found where another was planted (`recovery_confusion`), a panel an estimator."""
    fig, axes = new_figure(1, len(confusions), height=3.9, sharey=True)
    names = [label(name) for name in SIX]
    for axis, (name, table) in zip(axes[0], confusions.items(), strict=True):
        values = table.loc[SIX, SIX].to_numpy()
        image = axis.imshow(values, vmin=0, vmax=1, cmap="cividis")
        for row, column in np.ndindex(values.shape):
            ink = "black" if values[row, column] > 0.55 else "white"
            text = f"{values[row, column]:.2f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
        axis.set_xticks(range(len(SIX)), names, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(SIX)), names)
        axis.set_xlabel(f"found by {label(name)}", labelpad=2)
        axis.grid(visible=False)
    axes[0, 0].set_ylabel("planted")
    fig.colorbar(image, ax=axes[0].tolist(), label="share of the planted", shrink=0.75)
    return fig
