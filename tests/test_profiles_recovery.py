"""The recovery study: more ratings find more, and its summaries count what was found."""

import pandas as pd
import pytest
from studies.recovery import demo_texts, recovery_confusion, recovery_shares, recovery_study

from steerlib.profiles.sources import DEMO, read_rows
from steerlib.tables import ATTRIBUTE_COLUMNS

SIX = list(ATTRIBUTE_COLUMNS)


def perfect_scorer(texts: list[str]) -> pd.DataFrame:
    """Scores each text by the unkind sentence in it, half its strength, in its own category alone."""
    scores = pd.DataFrame(0.0, index=range(len(texts)), columns=SIX)
    for sentence in read_rows(DEMO / "unkind.jsonl").to_dict("records"):
        inside = [text.endswith(sentence["text"]) for text in texts]
        scores.loc[inside, sentence["category"]] = sentence["strength"] / 2
    return scores


def test_more_ratings_find_more_and_noise_finds_chance() -> None:
    texts = demo_texts(perfect_scorer)
    study = recovery_study(texts, ratings=(8, 96), users=24, simulations=8)
    assert (study.groupby(["estimator", "simulation"])["users"].sum() == 2 * 24).all()
    shares = recovery_shares(study).set_index(["estimator", "ratings"])
    assert shares.loc[("exposure_adjusted", 96), "share"] > 0.85
    assert shares.loc[("exposure_adjusted", 8), "high"] < 0.85
    noise = recovery_study(texts, ratings=(48,), users=48, simulations=12, noise=10_000)
    table = recovery_shares(noise).query("estimator != 'difference'")
    assert ((table["low"] < 1 / 6) & (table["high"] > 1 / 6)).all()


def test_shares_and_paired_differences_are_those_of_a_hand_made_study() -> None:
    rows = []
    for estimator, hits in {"paper": (1, 3), "exposure_adjusted": (3, 3)}.items():  # of 4 in two simulations
        for simulation, hit in enumerate(hits):
            shared = {"ratings": 8, "estimator": estimator, "simulation": simulation}
            rows.append(shared | {"planted": "threat", "found": "threat", "users": hit})
            rows.append(shared | {"planted": "threat", "found": "insult", "users": 4 - hit})
    study = pd.DataFrame(rows)
    shares = recovery_shares(study).set_index("estimator")
    assert shares["share"].to_dict() == {"paper": 0.5, "exposure_adjusted": 0.75, "difference": 0.25}
    # t with 1 degree of freedom is 12.706; the shares 1/4 and 3/4 have a standard error of 1/4.
    assert shares.loc["paper", "high"] - 0.5 == pytest.approx(12.706 / 4, rel=1e-4)
    assert shares.loc["difference", "low"] == pytest.approx(0.25 - 12.706 / 4, rel=1e-4)
    confusion = recovery_confusion(study, estimator="paper", ratings=8)
    assert confusion.loc["threat", ["threat", "insult"]].tolist() == [0.5, 0.5]
