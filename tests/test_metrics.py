"""Toxicity distance, perplexity, diversity: the papers' arithmetic and limits."""

import numpy as np
import pandas as pd
import pytest

from steerlib.evaluation import paired_interval
from steerlib.evaluation.answers import (
    distinct_n,
    effective_number,
    length,
    overshoots,
    repetition,
    top_share,
    toxicity_distance,
)
from steerlib.tables import ATTRIBUTE_COLUMNS


def test_distance_is_the_mean_absolute_difference_over_six_attributes():
    a, b = [[0.6, 0.0, 0.0, 0.0, 0.0, 0.3]], [[0.3, 0.0, 0.0, 0.0, 0.0, 0.6]]
    assert toxicity_distance(a, b) == pytest.approx([0.1])
    assert np.array_equal(toxicity_distance(a, b), toxicity_distance(b, a))


def test_the_columns_of_a_frame_are_taken_by_name():
    a = pd.DataFrame(np.random.default_rng(0).random((3, 6)), columns=list(ATTRIBUTE_COLUMNS))
    assert not toxicity_distance(a, a[a.columns[::-1]]).any()


def test_other_shapes_and_missing_scores_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 6\), not \(4, 6\)"):
        toxicity_distance(np.zeros((3, 6)), np.zeros((4, 6)))
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        toxicity_distance(np.zeros((3, 5)), np.zeros((3, 5)))
    scores = np.zeros((3, 6))
    scores[2, 4] = np.nan
    with pytest.raises(ValueError, match="profanity in row 2"):
        toxicity_distance(np.zeros((3, 6)), scores)


def test_the_changes_of_the_caa_table_follow_from_its_means():
    pairs = zip([0.01877, *[0.01848] * 4], [0.01609, 0.01660, 0.01601, 0.01696, 0.01853], strict=True)
    found = [paired_interval([base], [method], statistic="change_percent").value for base, method in pairs]
    assert found == pytest.approx([-14.28, -10.17, -13.37, -8.23, 0.27], abs=0.005)


def test_overshoot_is_an_answer_less_toxic_than_the_accepted_one():
    answers, accepted = np.full((2, 6), 0.1), np.full((2, 6), 0.2)
    accepted[1] = 0.05
    assert overshoots(answers, accepted).tolist() == [True, False]


def test_length_distinct_2_and_repetition_by_hand():
    assert length(["a b c", "", "a"]).tolist() == [3, 0, 1]
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 6)
    assert distinct_n(["", ""]) == 0
    assert repetition(["a b c d a b c d", "a b c", ""]).tolist() == [pytest.approx(0.2), 0, 0]


def test_the_effective_number_is_n_for_equal_prompts_and_1_for_a_single_one():
    rows = np.array([[0.2, 0.2, 0.2, 0.2], [0.8, 0.0, 0.0, 0.0]])
    assert effective_number(rows).tolist() == [pytest.approx(4), 1]
    assert top_share(rows).tolist() == [pytest.approx(0.75), 1]
    assert np.isnan(effective_number([0.0, 0.0]))
