"""Pairwise preference accuracy by hand and by user, simple models beside it, the study of the preference direction."""

import numpy as np
import pandas as pd
import pytest
import torch
from studies import preference_direction as study
from studies.preference_direction import compare_auc, kept_pair_residuals, scores_along, without_length

from steerlib.evaluation import cluster_interval, compare_preferences, length_margins, safety_margins
from steerlib.evaluation.intervals import share_interval
from steerlib.tables import ATTRIBUTE_COLUMNS
from steerlib.vectors import pair_residuals


def alone(margins, users):
    """The accuracy of one model by itself."""
    table = pd.DataFrame({"model": "m", "pair_id": range(len(margins)), "user_id": users, "margin": margins})
    return compare_preferences(table, reference="m").iloc[0]


def test_a_pair_counts_1_where_the_preferred_answer_is_ahead_and_half_in_a_tie_in_a_share_by_user():
    users = ["u", "u", "v", "v", "w"]
    found, expected = alone([2.0, -1.0, 0.0, 0.05, 3.0], users), share_interval([1, 0, 0.5, 1, 1], users)
    assert found[["value", "low", "high", "n", "n_clusters"]].tolist() == list(expected[:5])
    assert found.ties == 0.2


def preference():
    rng = np.random.default_rng(1)
    truth = rng.normal(0, 1, 200)
    return pd.concat(
        pd.DataFrame({"model": m, "pair_id": np.arange(200), "user_id": np.arange(200) // 5, "margin": x})
        for m, x in (("population", truth), ("personal", truth + 0.8), ("safety", 0.001 * truth))
    )


def test_models_are_compared_on_the_same_pairs_with_paired_intervals():
    table = preference().sample(frac=1, random_state=0)
    found = compare_preferences(table, reference="population")
    assert found["model"].value_counts().to_dict() == {"personal": 2, "safety": 2, "population": 1}
    by = found.set_index(["model", "comparator"])
    wide = table.pivot(index="pair_id", columns="model", values="margin") > 0
    gain = wide["personal"].astype(float) - wide["population"].astype(float)
    expected = cluster_interval(gain, np.arange(200) // 5)
    row = by.loc["personal", "population"]
    assert row[["value", "low", "high"]].tolist() == pytest.approx(expected[:3])
    assert row["low"] > 0
    same = by.loc["safety", "population"]  # another scale of the same order
    assert same["value"] == 0
    assert same["low"] < 0 < same["high"]


def test_safety_margins_are_below_0_where_the_preferred_answer_has_more_of_what_the_user_dislikes():
    six = list(ATTRIBUTE_COLUMNS)
    s = pd.DataFrame(0.0, index=["u", "v"], columns=six)
    s.loc["u", "insult"], s.loc["v", "threat"] = 0.5, 0.2
    likes = pd.DataFrame(0.1, index=range(3), columns=six).assign(insult=[0.6, 0.1, 0.6])
    dislikes = pd.DataFrame(0.1, index=range(3), columns=six).assign(threat=[0.1, 0.6, 0.1])
    found = safety_margins(s, ["u", "v", "v"], likes, dislikes)
    assert found.tolist() == pytest.approx([-0.25, 0.1, 0.0])
    with pytest.raises(KeyError, match="'x'"):
        safety_margins(s, ["u", "x", "v"], likes, dislikes)


def test_length_takes_its_direction_from_training_pairs_only():
    pairs = pd.DataFrame({"preferred": ["a b c", "a"], "dispreferred": ["a", "a b"]})
    shorter = pd.DataFrame({"preferred": ["a"], "dispreferred": ["a b c"]})
    longer = shorter.rename(columns={"preferred": "dispreferred", "dispreferred": "preferred"})
    assert length_margins(pairs, shorter).tolist() == [-2, 1]
    assert length_margins(pairs, longer).tolist() == [2, -1]
    with pytest.raises(ValueError, match="no training pairs"):
        length_margins(pairs, shorter.head(0))


def test_bad_margins_ties_and_pairs_are_refused():
    with pytest.raises(ValueError, match="pair 1"):
        alone([0.0, np.nan], ["u", "v"])
    with pytest.raises(ValueError, match="'base'"):
        compare_preferences(preference(), reference="base")
    with pytest.raises(ValueError, match="'safety'"):
        compare_preferences(preference().iloc[:-1], reference="population")


RNG = np.random.default_rng(0)


def test_scores_are_lengths_along_the_unit_vector():
    above, below = {3: torch.tensor([[1.0, 2.0], [0.0, 1.0]])}, {3: torch.tensor([[3.0, 0.0], [1.0, 1.0]])}
    scores = scores_along({3: torch.tensor([0.0, 5.0])}, above, below)
    assert [side.tolist() for side in scores[3]] == [[2.0, 1.0], [0.0, 1.0]]


def test_a_score_that_is_length_alone_is_nothing_without_it():
    lengths = RNG.normal(size=(2, 50))
    scores = 3 * lengths
    left = without_length(scores, lengths, train=scores, train_lengths=lengths)
    np.testing.assert_allclose(left, np.zeros((2, 50)), atol=1e-12)


def test_the_clustered_auc_agrees_with_delongs_where_nothing_is_clustered():
    above, below = RNG.normal(size=400) + 0.5, RNG.normal(size=400)
    found = compare_auc({"s": (above, below)}, np.arange(400), reference="s").iloc[0]
    wins = (above[:, None] > below[None, :]).astype(float)
    half = 1.96 * np.sqrt((wins.mean(1).var(ddof=1) + wins.mean(0).var(ddof=1)) / 400)
    expected = [wins.mean(), wins.mean() - half, wins.mean() + half]
    assert found[["value", "low", "high"]].tolist() == pytest.approx(expected, abs=0.004)


ROWS = [("Why?", "yes", "nope"), ("How so?", "ok", "k")]
PAIRS = pd.DataFrame(ROWS, columns=["prompt", "preferred", "dispreferred"], index=[4, 9])
SETTINGS = {"layers": [0, 2], "style": "continuation", "pool": "answer_mean"}


def test_residuals_are_recorded_once_and_then_read(tmp_path, tiny, monkeypatch):
    fresh = kept_pair_residuals(tmp_path, tiny, PAIRS, **SETTINGS)
    for kept, plain in zip(fresh, pair_residuals(tiny, PAIRS, **SETTINGS), strict=True):
        assert list(kept) == [0, 2]
        torch.testing.assert_close(kept[2].double(), plain[2], rtol=1e-5, atol=1e-4)
    monkeypatch.setattr(study, "pair_residuals", lambda *_, **__: pytest.fail("recorded again"))
    again = kept_pair_residuals(tmp_path, tiny, PAIRS, **SETTINGS)
    assert torch.equal(again[1][0], fresh[1][0])
