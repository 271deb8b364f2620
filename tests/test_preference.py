"""Pairwise preference accuracy: by hand, ties, intervals by user, and the simple models beside it."""

import numpy as np
import pandas as pd
import pytest

from steerlib.evaluation import cluster_interval, compare_preferences, length_margins, safety_margins
from steerlib.evaluation.intervals import share_interval
from steerlib.tables import ATTRIBUTE_COLUMNS


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
