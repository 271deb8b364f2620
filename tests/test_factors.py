"""What alpha is multiplied by: a judge's scores of first answers, F of them, and their digest."""

import pandas as pd
import pytest

from steerlib.decoding import Factor, amplification_factor
from steerlib.judges import score_first_answers

PROMPTS = pd.DataFrame(
    [("p0", "Why?", "insult"), ("p1", "How so?", "honesty"), ("p2", "Who?", "threat")],
    columns=["prompt_id", "prompt", "category"],
)
ANSWERS = pd.DataFrame(
    [("p0", 1, "later"), ("p0", 0, "first"), ("p1", 0, "true"), ("p2", 0, "silence")],
    columns=["prompt_id", "seed", "text"],
)


class Written:
    """A judge that gives what is written here and remembers what it was asked."""

    id = "written"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    def rate(self, items, dimension):
        self.asked += [(prompt, answer, dimension) for prompt, answer in items]
        return [{"first": (50.0,), "true": (100.0,), "silence": None}[answer] for _, answer in items]


def test_each_first_answer_is_judged_on_its_prompts_dimension_and_only_once(tmp_path):
    judge = Written()
    with pytest.warns(UserWarning, match="1 of 2"):
        found = score_first_answers(judge, PROMPTS, ANSWERS, tmp_path)
    assert found.prompt_id.tolist() == ["p0", "p1", "p2"]
    assert found.dimension.tolist() == ["harmlessness", "honesty", "harmlessness"]
    assert found.score.tolist()[:2] == [50, 100]
    assert found.score.isna().tolist() == [False, False, True]
    asked = list(judge.asked)
    with pytest.warns(UserWarning):
        score_first_answers(judge, PROMPTS, ANSWERS, tmp_path)
    assert judge.asked == asked
    assert ("Why?", "later", "harmlessness") not in asked
    with pytest.raises(ValueError, match="prompt p2 has no first answer"):
        score_first_answers(Written(), PROMPTS, ANSWERS[ANSWERS.prompt_id != "p2"], tmp_path)


def test_the_factor_of_sda_is_f_of_the_score_and_missing_scores_have_none():
    scores = pd.DataFrame({"prompt_id": ["a", "b", "c"], "score": [50.0, 100.0, None]})
    found = amplification_factor(scores)
    assert found.name == "sigmoid"
    assert found.values == {"a": pytest.approx(0.4621, abs=1e-4), "b": 0.0}
    with pytest.raises(ValueError, match=r"score 120\.0"):
        amplification_factor(scores.assign(score=120.0))


def test_the_digest_of_a_factor_is_of_its_numbers_whatever_their_order():
    one = Factor("gate", {"a": 1, "b": 0})
    assert one.digest == Factor("gate", {"b": 0.0, "a": 1.0}).digest
    assert one.digest != Factor("gate", {"a": 1, "b": 1}).digest
