"""SDA beside what it has to beat: which arms and answers, net margins in both orders, the judge's own habits."""

import numpy as np
import pandas as pd
import pytest

from steerlib.decoding import Factor, Sampling, make_arms
from steerlib.evaluation import (
    circularity,
    first_temperature,
    judge_pairs,
    margin_metrics,
    margins_by,
    place_bias,
    read_margins,
    sda_comparators,
)
from steerlib.evaluation.intervals import share_interval
from steerlib.tables import check_table

PLAIN, STEEP = Sampling(temperature=0.7), Sampling(temperature=0.7, js_sigma=0.25)
SIGMOID = Factor("sigmoid", {"p": 0.5, "q": 0.5, "d": 0.5})
ARMS = pd.concat(
    [
        make_arms("base", sampling=PLAIN),
        make_arms("sda", [2.0], profile="own", factor=SIGMOID, sampling=STEEP),
        make_arms("sda", [2.0], profile="shuffled", factor=SIGMOID, sampling=STEEP),
        make_arms("instructed", profile="own", sampling=STEEP, ablation=True),
        make_arms("instructed", profile="own", sampling=PLAIN),
        make_arms("sda", [2.0], profile="own", sampling=PLAIN),
        make_arms("sda", [2.0], profile="own", factor=SIGMOID, sampling=PLAIN, ablation=True),
    ],
    ignore_index=True,
)
BASE, SDA, _, _, INSTRUCTED, _, STEERING = ARMS.arm_id
PROMPTS = pd.DataFrame({"prompt_id": [*"pqd"], "prompt": ["Why?", "How?", "When?"], "user_id": [*"uvw"]})
PROMPTS["split"] = ["test", "test", "dev"]
ANSWERS = pd.DataFrame(
    [(arm, prompt, 0, f"{prompt}{number}") for number, arm in enumerate(ARMS.arm_id) for prompt in "pqd"],
    columns=["arm_id", "prompt_id", "seed", "text"],
)
ASKED = {"arm": SDA, "dimension": {"p": "harmlessness", "q": "empathy", "d": "empathy"}}


class Larger:
    """Prefers the answers whose number is larger."""

    id = "test:larger"

    def rate(self, items, dimension):  # noqa: ARG002
        return [tuple(10.0 * int(answer[1]) + 1 for answer in answers) for _, *answers in items]


def test_sda_is_held_against_base_bare_instruction_and_steering_alone():
    assert sda_comparators(ARMS) == {"base": BASE, "instructed": INSTRUCTED, "steering_only": STEERING}
    assert sda_comparators(ARMS[ARMS.arm_id.isin([BASE])]) == {"base": BASE}
    greedy = pd.concat([ARMS, make_arms("base", sampling=Sampling(temperature=0.0))], ignore_index=True)
    assert first_temperature(greedy).arm_id.tolist() == ARMS.arm_id.tolist()


def test_each_test_answer_stands_beside_the_comparators_answer_to_the_same_prompt(tmp_path):
    two = {"base": BASE, "instructed": INSTRUCTED}
    found = judge_pairs(Larger(), ANSWERS, PROMPTS, tmp_path, comparators=two, **ASKED)
    columns = ["comparator", "prompt_id", "text", "other", "cluster", "score", "other_score"]
    assert found[columns].sort_values(columns[:2]).to_numpy().tolist() == [
        ["base", "p", "p1", "p0", "u", 11, 1],
        ["base", "q", "q1", "q0", "v", 11, 1],
        ["instructed", "p", "p1", "p4", "u", 11, 41],
        ["instructed", "q", "q1", "q4", "v", 11, 41],
    ]
    part = ANSWERS[(ANSWERS.arm_id != BASE) | (ANSWERS.prompt_id != "q")]
    with pytest.raises(ValueError, match=BASE):
        judge_pairs(Larger(), part, PROMPTS, tmp_path, comparators={"base": BASE}, **ASKED)


def test_margins_of_each_dimension_and_comparator_are_rows_of_the_metrics_table(tmp_path):
    comparators = sda_comparators(ARMS)
    seen = judge_pairs(Larger(), ANSWERS, PROMPTS, tmp_path, comparators=comparators, **ASKED)
    margins = margins_by(seen)
    found = margins.groupby("comparator").value.agg(list).to_dict()
    assert found == {"base": [1, 1], "instructed": [-1, -1], "steering_only": [-1, -1]}
    metrics = margin_metrics(margins, arm=SDA, comparators=comparators, judge=Larger.id)
    check_table("metrics", metrics)
    back, columns = read_margins(metrics, ARMS), ["dimension", "comparator", "value", "low", "high"]
    pd.testing.assert_frame_equal(back[columns], margins[columns])
    assert (back["n"] == 1).all()
    assert read_margins(metrics.head(0), ARMS).empty


def test_the_margin_by_hand_has_the_interval_of_shares_from_minus_one_to_one():
    # better three times, worse, equal, better: (4 - 1) / 6
    table = pd.DataFrame({"score": [80, 70, 90, 20, 50, 9], "other_score": [60, 69, 10, 40, 50, 1]})
    table = table.assign(score_second=table["score"], other_score_first=table["other_score"])
    table = table.assign(dimension="d", comparator="c", cluster=[*"aaabcd"])
    found = margins_by(table).iloc[0]
    assert found[["value", "win", "even", "lose", "missing"]].tolist() == [0.5, 4, 1, 1, 0]
    expected = share_interval([1, 1, 1, -1, 0, 1], table["cluster"], within=(-1, 1))
    assert (found.low, found.high, found.n_clusters) == (expected.low, expected.high, 4)


SHOWN = pd.DataFrame({"score": [70.0, 50.0], "other_score": [55.0, 50.0], "score_second": [60.0, 40.0]})
SHOWN = SHOWN.assign(
    other_score_first=[65.0, 60.0], dimension="honesty", comparator="base", cluster=["u", "v"]
)
"""By a judge that gives the first place ten points: 60 against 55, then 40 against 50, both plus place."""


def test_both_orders_averaged_cancel_a_bonus_of_the_first_place():
    found = margins_by(SHOWN).iloc[0]
    assert (found.win, found.lose) == (1, 1)
    bonus, turned = place_bias(SHOWN)
    assert bonus.value == 10
    # 70:55 then 60:65 turns; 50:50 then 40:60 does not, for the first was even
    assert turned == 0.5


def test_pairs_without_a_score_in_both_orders_are_counted_and_left_out():
    table = SHOWN.assign(other_score_first=[np.nan, 60.0])
    assert margins_by(table)[["lose", "missing", "n_clusters"]].iloc[0].tolist() == [1, 1, 1]
    assert place_bias(table)[0].n == 1
    for refusing, named in ((margins_by, "honesty, base"), (place_bias, "none of 2")):
        with pytest.raises(ValueError, match=named):
            refusing(table.assign(score=np.nan))


def test_a_judge_of_its_own_scores_is_warned_of():
    judge = "endpoint:gpt@a.org:1234abcd"
    assert circularity(judge, judge) != circularity(judge, "endpoint:gpt@b.org:99999999") != ""
    assert circularity("local:Llama 3:8b:1234abcd", "local:Llama 3:70b:1234abcd") == ""
    assert circularity("scorer:one", "scorer:two") == circularity(judge, "scorer:one") == ""
