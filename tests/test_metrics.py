"""Toxicity distance, perplexity, diversity: the papers' arithmetic and limits."""

import numpy as np
import pandas as pd
import pytest

from steerlib.evaluation import per_prompt
from steerlib.evaluation.answers import CARRIED, distinct_n, effective_number, length, repetition, top_share
from steerlib.tables import ATTRIBUTE_COLUMNS


def six(rows):
    return pd.DataFrame(rows, columns=list(ATTRIBUTE_COLUMNS))


def of_answers(answers, accepted):
    """Measures of an arm's answers, one a prompt."""
    prompts = pd.DataFrame({"prompt_id": range(len(accepted))})
    generations = prompts.assign(arm_id="a", text="x", **dict.fromkeys(CARRIED, 0.0))
    return per_prompt(generations, prompts, six(answers), six(accepted))


def test_distance_is_the_mean_absolute_difference_and_overshoot_an_answer_less_toxic_than_the_accepted_one():
    a, b = [0.6, 0.0, 0.0, 0.0, 0.0, 0.3], [0.3, 0.0, 0.0, 0.0, 0.0, 0.7]
    found = of_answers([a, b], [b, a])
    assert found["distance"].tolist() == pytest.approx([0.7 / 6, 0.7 / 6])
    assert found["overshoot"].tolist() == [1, 0]


def test_the_columns_of_scores_are_taken_by_name_and_missing_ones_are_refused():
    scores = six(np.random.default_rng(0).random((3, 6)))
    assert not of_answers(scores, scores[scores.columns[::-1]])["distance"].any()
    scores.loc[2, "profanity"] = np.nan
    with pytest.raises(ValueError, match="row 3, column profanity"):
        of_answers(scores, scores)


def test_length_distinct_2_and_repetition_by_hand():
    assert length(["a b c", "", "a"]).tolist() == [3, 0, 1]
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 6)
    assert distinct_n(["", ""]) == 0
    assert repetition(["a b c d a b c d", "a b c", ""]).tolist() == [pytest.approx(0.2), 0, 0]


def test_the_effective_number_is_n_for_equal_prompts_and_1_for_a_single_one():
    rows = np.array([[0.2, 0.2, 0.2, 0.2], [0.8, 0.0, 0.0, 0.0]])
    assert effective_number(rows).tolist() == [pytest.approx(4), 1]
    assert top_share(rows).tolist() == [pytest.approx(0.75), 1]
    assert np.isnan(effective_number(np.zeros(2)))
