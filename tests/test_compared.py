"""SDA beside what it has to beat: which arms, which answers, and margins there and back."""

import pandas as pd
import pytest

from steerlib.decoding import Sampling, make_arms
from steerlib.evaluation import (
    compared_answers,
    first_temperature,
    judge_compared,
    margin_metrics,
    margins_by,
    order_averaged,
    read_margins,
    sda_comparators,
)
from steerlib.tables import check_table

PLAIN, STEEP = Sampling(temperature=0.7), Sampling(temperature=0.7, js_sigma=0.25)
ARMS = pd.concat(
    [
        make_arms("base", sampling=PLAIN),
        make_arms("sda", [2.0], profile="own", factor="sigmoid@1", sampling=STEEP),
        make_arms("sda", [2.0], profile="shuffled", factor="sigmoid@1", sampling=STEEP),
        make_arms("instructed", profile="own", sampling=STEEP),
        make_arms("instructed", profile="own", sampling=PLAIN),
        make_arms("sda", [2.0], profile="own", factor="1", sampling=PLAIN),
        make_arms("sda", [2.0], profile="own", factor="sigmoid@1", sampling=PLAIN),
    ],
    ignore_index=True,
)
BASE, SDA, _, _, INSTRUCTED, _, STEERING = ARMS.arm_id
PROMPTS = pd.DataFrame(
    {"prompt_id": ["p", "q", "d"], "prompt": ["Why?", "How?", "When?"], "user_id": ["u", "v", "w"]}
).assign(split=["test", "test", "dev"])
ANSWERS = pd.DataFrame(
    [(arm, prompt, 0, f"{prompt}{number}") for number, arm in enumerate(ARMS.arm_id) for prompt in "pqd"],
    columns=["arm_id", "prompt_id", "seed", "text"],
)
DIMENSION = {"p": "harmlessness", "q": "empathy", "d": "empathy"}


class Longer:
    """Prefers the answers whose number is larger."""

    id = "test:larger"

    def rate(self, items, dimension):  # noqa: ARG002
        return [50.0 for _ in items]

    def compare(self, items, dimension):  # noqa: ARG002
        return [(10.0 * int(a[1]) + 1, 10.0 * int(b[1]) + 1) for _, a, b in items]


def test_sda_is_held_against_base_bare_instruction_and_steering_alone():
    assert sda_comparators(ARMS) == {"base": BASE, "instructed": INSTRUCTED, "steering_only": STEERING}
    assert sda_comparators(ARMS[ARMS.arm_id.isin([BASE])]) == {"base": BASE}


def test_each_answer_stands_beside_the_comparators_answer_to_the_same_prompt():
    found = compared_answers(
        ANSWERS, PROMPTS, arm=SDA, comparators={"base": BASE, "instructed": INSTRUCTED}, dimension=DIMENSION
    )
    assert found[["comparator", "prompt_id", "text", "other", "cluster"]].to_numpy().tolist() == [
        ["base", "p", "p1", "p0", "u"],
        ["base", "q", "q1", "q0", "v"],
        ["instructed", "p", "p1", "p4", "u"],
        ["instructed", "q", "q1", "q4", "v"],
    ]


def test_a_comparator_that_lacks_answers_is_refused():
    part = ANSWERS[(ANSWERS.arm_id != BASE) | (ANSWERS.prompt_id != "q")]
    with pytest.raises(ValueError, match=rf"base \({BASE}\) lacks 1 of 2 answers"):
        compared_answers(part, PROMPTS, arm=SDA, comparators={"base": BASE}, dimension=DIMENSION)


def test_margins_come_back_from_the_metrics_table_as_they_went_in(tmp_path):
    comparators = sda_comparators(ARMS)
    pairs = compared_answers(ANSWERS, PROMPTS, arm=SDA, comparators=comparators, dimension=DIMENSION)
    seen = judge_compared(Longer(), pairs, tmp_path)
    margins = margins_by(order_averaged(seen))
    assert dict(zip(margins.comparator, margins.value, strict=True)) == {
        "base": 1.0,
        "instructed": -1.0,
        "steering_only": -1.0,
    }
    metrics = check_table(
        "metrics", margin_metrics(margins, arm=SDA, comparators=comparators, judge=Longer.id)
    )
    back = read_margins(metrics, ARMS)
    columns = ["dimension", "comparator", "value", "low", "high", "win", "even", "lose"]
    pd.testing.assert_frame_equal(
        back[columns].sort_values(columns[:2], ignore_index=True),
        margins[columns].sort_values(columns[:2], ignore_index=True),
        check_dtype=False,
    )
    assert read_margins(metrics.head(0), ARMS).empty


def test_the_first_bases_temperature_is_the_studys():
    greedy = pd.concat([ARMS, make_arms("base", sampling=Sampling(temperature=0.0))], ignore_index=True)
    assert first_temperature(greedy).arm_id.tolist() == ARMS.arm_id.tolist()
    with pytest.raises(ValueError, match="no base"):
        first_temperature(ARMS[ARMS.method != "base"])
