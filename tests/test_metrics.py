"""Toxicity distance, reductions, perplexity, diversity: the papers' arithmetic and limits."""

import numpy as np
import pandas as pd
import pytest

from steerlib.evaluation import (
    change_percent,
    distinct_n,
    length,
    overshoots,
    perplexity,
    reduction_percent,
    repetition,
    signed_shift,
    toxicity_distance,
    win_rate,
)
from steerlib.toxicity.attributes import ATTRIBUTES


def test_distance_is_the_mean_absolute_difference_over_six_attributes():
    a = [[0.6, 0.0, 0.0, 0.0, 0.0, 0.3]]
    b = [[0.3, 0.0, 0.0, 0.0, 0.0, 0.6]]
    assert toxicity_distance(a, b) == pytest.approx([0.1])


def test_identical_answers_have_distance_0_and_the_distance_is_symmetric():
    rng = np.random.default_rng(0)
    a, b = rng.random((5, 6)), rng.random((5, 6))
    assert not toxicity_distance(a, a).any()
    assert np.array_equal(toxicity_distance(a, b), toxicity_distance(b, a))


def test_the_columns_of_a_frame_are_taken_by_name():
    a = pd.DataFrame(np.random.default_rng(0).random((3, 6)), columns=list(ATTRIBUTES))
    assert not toxicity_distance(a, a[a.columns[::-1]]).any()


def test_a_shape_mismatch_names_both_shapes():
    with pytest.raises(ValueError, match=r"\(3, 6\) and \(4, 6\)"):
        toxicity_distance(np.zeros((3, 6)), np.zeros((4, 6)))
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        toxicity_distance(np.zeros((3, 5)), np.zeros((3, 5)))


def test_a_missing_score_is_refused_naming_attribute_and_row():
    scores = np.zeros((3, 6))
    scores[2, 4] = np.nan
    with pytest.raises(ValueError, match="profanity in row 2 is nan"):
        toxicity_distance(np.zeros((3, 6)), scores)


@pytest.mark.parametrize(
    ("base", "method", "percent"),
    [
        (0.01877, 0.01609, -14.28),
        (0.01848, 0.01660, -10.17),
        (0.01848, 0.01601, -13.37),
        (0.01848, 0.01696, -8.23),
        (0.01848, 0.01853, 0.27),
    ],
)
def test_the_changes_of_the_caa_table_follow_from_its_means(base, method, percent):
    assert change_percent(base, method) == pytest.approx(percent, abs=0.005)
    assert reduction_percent(base, method) == pytest.approx(-percent, abs=0.005)


def test_the_reduction_is_a_ratio_of_means_not_a_mean_of_ratios():
    assert reduction_percent([1.0, 3.0], [0.0, 3.0]) == 25.0


def test_a_reduction_from_nothing_is_refused():
    with pytest.raises(ValueError, match=r"mean of base is 0\.0"):
        reduction_percent([0.0, 0.0], [0.0, 0.1])


def test_win_rate_counts_strictly_nearer_prompts_and_reports_ties():
    assert win_rate([0.3, 0.2, 0.1, 0.1], [0.1, 0.2, 0.2, 0.0]) == (2, 1, 1, 0.5)


def test_perplexity_weighs_every_token_once():
    assert perplexity([np.log(2) * 1, np.log(4) * 3], [1, 3]) == pytest.approx(2 ** (7 / 4))
    assert perplexity([0.0, np.log(8)], [0, 1]) == pytest.approx(8)


def test_perplexity_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match="0 tokens is undefined"):
        perplexity([0.0, 0.0], [0, 0])


def test_signed_shift_and_overshoot_tell_direction():
    answers, accepted = np.full((2, 6), 0.1), np.full((2, 6), 0.2)
    accepted[1] = 0.05
    assert signed_shift(answers, accepted)["threat"] == pytest.approx(-0.025)
    assert overshoots(answers, accepted).tolist() == [True, False]


def test_length_distinct_2_and_repetition_by_hand():
    assert length(["a b c", "", "a"]).tolist() == [3, 0, 1]
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 6)
    assert distinct_n(["", ""]) == 0
    assert repetition(["a b c d a b c d", "a b c", ""]).tolist() == [pytest.approx(0.2), 0, 0]
