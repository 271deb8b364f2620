import json

import numpy as np
import pandas as pd
import pytest
import torch
from studies.truthful import answer_logprobs, read_truthful, sample_truthful, truthful_scores

from steerlib.decoding.requests import branch_ids, default_contexts
from steerlib.reading import answer_ids

ROW = {"Category": "Law", "Question": "Is it so?", "Best Answer": "It is"}
ROW |= {"Correct Answers": "It is; So it is", "Incorrect Answers": "It is not; No; Never was it so"}


def candidates(n: int = 2) -> pd.DataFrame:
    texts = pd.DataFrame({"answer": ["Yes, it is.", "Of course.", "No!", "Never in my life.", "N"]})
    texts = texts.assign(true=[True, True, False, False, False], mc1=[True, False, True, True, True])
    texts = texts.assign(mc2=True, category="Law", origin="derived")
    parts = [texts.assign(question_id=f"q{i}", question=f"Is it {i}?") for i in range(n)]
    return pd.concat(parts, ignore_index=True)


def slow_sum(frozen, question, k, answer, style):
    """SDA's log-probability of one answer: each branch alone, without cache, in one pass; k = None is the base."""
    ids, z = answer_ids(frozen, answer, style=style), {}
    for name in ("base", "instructed"):
        contexts = default_contexts(style)
        context = branch_ids(frozen, question, name, category="honesty", style=style, contexts=contexts)
        with torch.inference_mode():
            z[name] = frozen.model(input_ids=torch.tensor([context + ids])).logits[0, len(context) - 1 : -1]
    steered = z["base"] if k is None else z["instructed"] + k * (z["instructed"] - z["base"])
    return steered.log_softmax(-1)[range(len(ids)), list(ids)].sum().item()


@pytest.mark.parametrize("style", ["chat", "continuation"])
def test_every_k_is_the_plain_sum_of_each_answer_alone(tiny, style):
    table = answer_logprobs(tiny, candidates(), ks=[0, 0.7, 3], style=style)
    assert len(table) == 2 * 5 * (3 + 2)
    asked = {"q0": "Is it 0?", "q1": "Is it 1?"}
    strength = {"base": None, "instructed": 0.0}
    ks = [strength.get(row.method, row.alpha) for row in table.itertuples()]
    told = zip(table.question_id.map(asked), ks, table.answer, strict=True)
    expected = [slow_sum(tiny, *one, style) for one in told]
    np.testing.assert_allclose(table.logprob, expected, atol=1e-9)


def test_mc1_and_mc2_by_hand_and_a_tie_with_a_false_answer_is_wrong():
    told = candidates(1)
    table = told[["question_id", "answer"]].assign(method="base", alpha=0.0)
    row = truthful_scores(told, table.assign(logprob=np.log([0.3, 0.1, 0.2, 0.25, 0.05]))).iloc[0]
    assert row.mc1 == 1  # 0.3 is above 0.2, 0.25 and 0.05
    assert row.mc2 == pytest.approx(0.4 / 0.9)
    tied = truthful_scores(told, table.assign(logprob=-1.0)).iloc[0]
    assert (tied.mc1, tied.mc2) == (0, pytest.approx(2 / 5))
    with pytest.raises(ValueError, match="not of the same answers"):
        truthful_scores(told, table.assign(logprob=-1.0).head(3))


def test_candidates_are_derived_from_the_questions_table(tmp_path):
    # An answer that is both right and wrong is left out.
    row = ROW | {f"{side} Answers": ROW[f"{side} Answers"] + "; Unknown" for side in ("Correct", "Incorrect")}
    (tmp_path / "TruthfulQA.jsonl").write_text(json.dumps(row))
    found = read_truthful(tmp_path).set_index("answer")
    assert set(found.origin) == {"derived"}
    right = ["It is.", "So it is."]
    assert found.true.to_dict() == dict.fromkeys(right, True) | dict.fromkeys(found.index[2:], False)
    assert found.index[found.mc1].tolist() == ["It is.", "It is not.", "No.", "Never was it so."]
    assert found.mc2.all()


def test_the_official_file_goes_before_the_table_and_says_so(tmp_path):
    official = {"question": "Is it so?", "mc1_targets": {"It is.": 1, "No.": 0}}
    official["mc2_targets"] = {"It is.": 1, "So it is.": 1, "No.": 0, "Never.": 0}
    (tmp_path / "mc_task.json").write_text(json.dumps([official]))
    (tmp_path / "TruthfulQA.jsonl").write_text(json.dumps(ROW))
    found = read_truthful(tmp_path)
    assert set(found.origin) == {"official"}
    assert found[found.mc1].answer.tolist() == ["It is.", "No."]
    assert found[found.mc2].true.tolist() == [True, False, True, False]
    one = {"choices": ["It is.", "No."], "labels": [1, 0]}  # the hub's form
    file = tmp_path / "validation.parquet"
    pd.DataFrame({"question": ["Is it so?"], "mc1_targets": [one], "mc2_targets": [one]}).to_parquet(file)
    assert read_truthful(file).true.tolist() == [True, False]


def test_the_real_table_gives_every_question_one_best_answer(real_data):
    found = read_truthful(real_data("sda_my_dataset"))
    assert found.question_id.nunique() == 790
    best = found[found.mc1 & found.true]
    assert len(best) == 790
    assert not found.duplicated(["question_id", "answer"]).any()
    drawn = sample_truthful(found, 37)
    assert drawn.drop_duplicates("question_id").category.nunique() == 37
