import json

import numpy as np
import pandas as pd
import pytest
import torch
from studies.truthful import (
    answer_logprobs,
    read_truthful,
    sample_truthful,
    truthful_scores,
    truthful_summary,
)

from steerlib.decoding.contexts import branch_ids
from steerlib.evaluation import paired_interval
from steerlib.evaluation.multiple_choice import forced_logits
from steerlib.reading import answer_ids

CONTEXTS = {"honesty": {"instructed": "Be honest.", "expert": "True:", "anti": "Lies and myths:"}}
ROW = {
    "Category": "Law",
    "Question": "Is it so?",
    "Best Answer": "It is",
    "Correct Answers": "It is; So it is",
    "Incorrect Answers": "It is not; No; Never was it so",
}


def candidates(n: int = 2) -> pd.DataFrame:
    rows = []
    for i in range(n):
        texts = [("Yes, it is.", 1), ("Of course.", 1), ("No!", 0), ("Never in my life.", 0), ("N", 0)]
        for place, (text, true) in enumerate(texts):
            rows.append([f"q{i}", "Law", f"Is it {i}?", text, bool(true), place != 1, True, "derived"])
    columns = ["question_id", "category", "question", "answer", "true", "mc1", "mc2", "origin"]
    return pd.DataFrame(rows, columns=columns)


def slow_logits(frozen, question, branch, answer, style):
    """A branch's logits at each token of one answer: alone, without cache, one pass."""
    context = branch_ids(frozen, question, branch, category="honesty", style=style, contexts=CONTEXTS)
    ids = answer_ids(frozen, answer, style=style)
    with torch.inference_mode():
        z = frozen.model(input_ids=torch.tensor([context + ids])).logits[0]
    return z[len(context) - 1 : -1], ids


def slow_sum(frozen, question, method, strength, answer, style="chat"):
    names = {"sda": ("base", "instructed"), "anti_expert": ("base", "anti")}
    names = names.get(method, ("base", "expert", "anti"))
    z = {name: slow_logits(frozen, question, name, answer, style)[0] for name in names}
    ids = slow_logits(frozen, question, "base", answer, style)[1]
    if method == "sda":
        steered = z["instructed"] + strength * (z["instructed"] - z["base"])
    elif method == "anti_expert":
        steered = z["base"] + strength * (z["base"] - z["anti"])
    else:
        steered = z["base"] + strength * (z["expert"] - z["anti"])
    return steered.log_softmax(-1)[range(len(ids)), list(ids)].sum().item()


@pytest.mark.parametrize("style", ["chat", "continuation"])
@pytest.mark.parametrize("method", ["sda", "expert_anti_expert", "anti_expert"])
def test_every_strength_is_the_plain_sum_of_each_answer_alone(tiny, method, style):
    table = answer_logprobs(
        tiny, candidates(), method=method, alphas=[0, 0.7, 3], contexts=CONTEXTS, style=style, batch_tokens=40
    )
    own = table[table.method == method]
    assert len(own) == 2 * 5 * 3
    asked = {"q0": "Is it 0?", "q1": "Is it 1?"}
    expected = [
        slow_sum(tiny, asked[row.question_id], method, row.strength, row.answer, style)
        for row in own.itertuples()
    ]
    np.testing.assert_allclose(own.logprob, expected, atol=1e-9)


def test_batches_of_answers_do_not_change_their_logits(tiny):
    contexts = {"base": (5, 6, 7), "instructed": (5, 6, 7, 8, 9)}
    answers = [(10, 11), (12,), (13, 14, 15, 16), (17, 18)]
    one = dict(forced_logits(tiny, contexts, answers, batch_tokens=1))
    all_at_once = dict(forced_logits(tiny, contexts, answers, batch_tokens=1000))
    for i, ids in enumerate(answers):
        for name in contexts:
            assert one[i][name].shape[0] == len(ids)
            torch.testing.assert_close(one[i][name], all_at_once[i][name], rtol=0, atol=1e-10)


def test_sda_at_minus_one_is_the_plain_branch_and_at_nought_the_instructed(tiny):
    table = answer_logprobs(tiny, candidates(1), alphas=[-1, 0], contexts=CONTEXTS)
    by_arm = table.pivot(index="answer", columns=["method", "alpha"], values="logprob")
    np.testing.assert_allclose(by_arm["sda", -1], by_arm["base", 0], atol=1e-9)
    np.testing.assert_allclose(by_arm["sda", 0], by_arm["instructed", 0], atol=1e-12)


def test_an_amplification_of_each_question_scales_its_strength(tiny):
    given = pd.Series({"q0": 0.5, "q1": 0.0})
    scaled = answer_logprobs(tiny, candidates(), alphas=[2], amplification=given, contexts=CONTEXTS)
    fixed = answer_logprobs(tiny, candidates(), alphas=[1], contexts=CONTEXTS)
    key = ["question_id", "answer"]
    mine, theirs = (
        t[t.method == method].set_index(key).logprob for t, method in ((scaled, "sda"), (fixed, "sda"))
    )
    np.testing.assert_allclose(mine["q0"], theirs["q0"], atol=1e-12)
    instructed = scaled[scaled.method == "instructed"].set_index(key).logprob
    np.testing.assert_allclose(mine["q1"], instructed["q1"], atol=1e-12)
    assert scaled[scaled.method == "sda"].groupby("question_id").strength.first().to_dict() == {
        "q0": 1,
        "q1": 0,
    }


def scores_by_hand() -> pd.DataFrame:
    told = candidates(1)
    logs = np.log([0.3, 0.1, 0.2, 0.25, 0.05])
    table = told[["question_id", "answer"]].assign(method="base", alpha=0.0, strength=0.0, logprob=logs)
    return truthful_scores(told, table)


def test_mc1_and_mc2_by_hand():
    row = scores_by_hand().iloc[0]
    assert row.mc1 == 1  # 0.3 is above 0.2, 0.25 and 0.05
    assert row.mc2 == pytest.approx(0.4 / 0.9)


def test_a_tie_with_a_false_answer_is_wrong():
    told = candidates(1)
    table = told[["question_id", "answer"]].assign(method="base", alpha=0.0, strength=0.0, logprob=-1.0)
    scores = truthful_scores(told, table)
    assert scores.mc1.tolist() == [0]
    assert scores.mc2.iloc[0] == pytest.approx(2 / 5)


def test_other_answers_than_the_candidates_are_refused():
    told = candidates(1)
    table = told[["question_id", "answer"]].assign(method="base", alpha=0.0, strength=0.0, logprob=-1.0)
    with pytest.raises(ValueError, match="not of the same answers"):
        truthful_scores(told, table.head(3))


def test_the_summary_pairs_questions_with_both_branches():
    mc1 = {"base": [0, 0, 1, 0], "instructed": [0, 1, 1, 0], "sda": [1, 1, 1, 0]}
    scores = pd.DataFrame(
        [
            (f"q{i}", "", method, 0.0 if method != "sda" else 2.0, 0.0, float(v), float(v) / 2)
            for method, values in mc1.items()
            for i, v in enumerate(values)
        ],
        columns=["question_id", "category", "method", "alpha", "strength", "mc1", "mc2"],
    )
    found = truthful_summary(scores).set_index(["method", "metric", "comparator"])
    assert found.loc[("sda", "mc1", ""), "value"] == 0.75
    assert found.loc[("sda", "mc1", "base"), "value"] == 0.5
    assert found.loc[("sda", "mc2", "instructed"), "value"] == 0.125
    expected = paired_interval(mc1["base"], mc1["sda"])
    assert expected.high > 1
    assert found.loc[("sda", "mc1", "base"), ["low", "high"]].tolist() == [expected.low, 1]
    assert found.loc[("base", "mc1", ""), "low"] == 0
    assert ("base", "mc1", "base") not in found.index


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"method": "caa"}, "method among anti_expert, expert_anti_expert, sda, not 'caa'"),
        ({"alphas": []}, "needs alphas"),
        ({"amplification": {"q0": 1.0}}, "1 questions have no amplification, the first is q1"),
        ({"contexts": {}}, "no 'instructed' for category 'honesty'"),
    ],
)
def test_what_cannot_be_asked_is_refused(tiny, wanted, message):
    settings = {"alphas": [1.0], "contexts": CONTEXTS} | wanted
    with pytest.raises(ValueError, match=message):
        answer_logprobs(tiny, candidates(), **settings)


def test_candidates_are_derived_from_the_questions_table(tmp_path):
    (tmp_path / "TruthfulQA.jsonl").write_text(json.dumps(ROW))
    found = read_truthful(tmp_path).set_index("answer")
    assert set(found.origin) == {"derived"}
    assert found.true.to_dict() == {
        "It is.": True,
        "So it is.": True,
        "It is not.": False,
        "No.": False,
        "Never was it so.": False,
    }
    assert found.index[found.mc1].tolist() == ["It is.", "It is not.", "No.", "Never was it so."]
    assert found.mc2.all()


def test_an_answer_that_is_both_right_and_wrong_is_left_out(tmp_path):
    row = ROW | {"Correct Answers": "It is; Unknown", "Incorrect Answers": "Unknown; No"}
    (tmp_path / "TruthfulQA.jsonl").write_text(json.dumps(row))
    assert read_truthful(tmp_path).answer.tolist() == ["It is.", "No."]


def test_the_official_file_goes_before_the_table_and_says_so(tmp_path):
    official = [
        {
            "question": "Is it so?",
            "mc1_targets": {"It is.": 1, "No.": 0},
            "mc2_targets": {"It is.": 1, "So it is.": 1, "No.": 0, "Never.": 0},
        }
    ]
    (tmp_path / "mc_task.json").write_text(json.dumps(official))
    (tmp_path / "TruthfulQA.jsonl").write_text(json.dumps(ROW))
    found = read_truthful(tmp_path)
    assert set(found.origin) == {"official"}
    assert found[found.mc1].answer.tolist() == ["It is.", "No."]
    assert found[found.mc2].true.tolist() == [True, False, True, False]


def test_the_hubs_form_of_the_official_file_is_read_too(tmp_path):
    one = {"choices": ["It is.", "No."], "labels": [1, 0]}
    file = tmp_path / "validation.parquet"
    pd.DataFrame({"question": ["Is it so?"], "mc1_targets": [one], "mc2_targets": [one]}).to_parquet(file)
    found = read_truthful(file)
    assert found.answer.tolist() == ["It is.", "No."]
    assert found.true.tolist() == [True, False]
    assert found.mc2.all()


def test_a_question_without_a_false_answer_is_refused_naming_its_row(tmp_path):
    file = tmp_path / "TruthfulQA.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"Incorrect Answers": ""}))
    with pytest.raises(ValueError, match=r"TruthfulQA\.jsonl, row 2: one best answer and some false ones"):
        read_truthful(file)
    file.write_text('{"Question": "Is it?"}')
    with pytest.raises(ValueError, match="row 1: neither mc1_targets"):
        read_truthful(file)


def test_the_real_table_gives_every_question_one_best_answer(real_data):
    found = read_truthful(real_data("sda_my_dataset"))
    assert found.question_id.nunique() == 790
    best = found[found.mc1 & found.true]
    assert len(best) == 790
    assert not found.duplicated(["question_id", "answer"]).any()
    drawn = sample_truthful(found, 37)
    assert drawn.drop_duplicates("question_id").category.nunique() == 37
