"""Multiple-choice questions: sources, rendering, probabilities, accuracy and calibration."""

import numpy as np
import pandas as pd
import pytest
import torch
from reference import FORMULAS
from tiny import tiny_model
from transformers import GPT2Config

from steerlib.decoding import RULES, expert_anti_expert, make_arms
from steerlib.evaluation import (
    ask_questions,
    brier,
    calibration_error,
    choice_probabilities,
    choice_rows,
    choices_under_steering,
    question_prompt,
    read_questions,
    sample_questions,
    shots_for,
    summarise_choices,
)
from steerlib.evaluation.questions import DEMO
from steerlib.reading import prompt_ids
from steerlib.tables import check_table
from steerlib.toxicity import ATTRIBUTES
from steerlib.vectors import VectorFamily, add_to_residual


def test_the_demo_set_is_balanced_our_own_and_not_called_mmlu():
    questions, dev = read_questions(), read_questions(split="dev")
    assert questions["answer"].value_counts().to_dict() == dict.fromkeys("ABCD", 15)
    assert questions["subject"].value_counts().tolist() == [10] * 6
    assert sorted(dev["subject"]) == sorted(questions["subject"].unique())
    assert questions["question_id"].is_unique
    assert all("not MMLU" in line for line in DEMO.read_text().splitlines())
    assert (questions[list("ABCD")].nunique(axis=1) == 4).all()


def test_both_layouts_of_mmlu_give_the_same_questions(tmp_path):
    lines = {
        "hendrycks": 'What is "None"?,None,NA,"a, b",4,B\n',
        "named": 'question,choice0,choice1,choice2,choice3,answer\nWhat is "None"?,None,NA,"a, b",4,1\n',
    }
    found = []
    for name, text in lines.items():
        folder = tmp_path / name / "test"
        folder.mkdir(parents=True)
        (folder / "formal_logic_test.csv").write_text(text)
        found.append(read_questions(str(tmp_path / name)))
    pd.testing.assert_frame_equal(*found)
    row = found[0].iloc[0]
    assert (row["question_id"], row["A"], row["B"], row["answer"]) == (
        "formal_logic/test/0",
        "None",
        "NA",
        "B",
    )


def test_the_real_folder_of_mmlu_is_read_whole(real_data):
    folder = real_data("mmlu/dev").parent
    dev, test = read_questions(str(folder), split="dev"), read_questions(str(folder))
    assert dev["subject"].nunique() == test["subject"].nunique() == 57
    assert len(dev) == 285
    assert len(test) == 14042
    assert (test["question"].str.strip() != "").all()
    assert sample_questions(test, 1000)["subject"].value_counts().between(17, 18).all()


def test_bad_sources_and_rows_are_refused_naming_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="give 'demo', 'cais/mmlu' or MMLU's folder"):
        read_questions(str(tmp_path / "nowhere"))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "x_test.csv").write_text("q,a,b,c,d,A\nq,a,b,c,d,E\n")
    with pytest.raises(ValueError, match=r"x_test\.csv, row 2: answer 'E'"):
        read_questions(str(tmp_path))
    with pytest.raises(ValueError, match="split 'train'"):
        read_questions(split="train")


def test_without_network_mmlu_says_what_to_do_instead(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"cais/mmlu .* cannot be fetched"):
        read_questions("cais/mmlu")


def test_the_hub_layout_is_read(monkeypatch, tmp_path):
    rows = {"question": ["q0", "q1"], "subject": ["s", "s"], "choices": [list("wxyz")] * 2, "answer": [0, 3]}
    pd.DataFrame(rows).to_parquet(tmp_path / "part.parquet")
    monkeypatch.setattr("steerlib.evaluation.questions.hub_file", lambda *_, **__: tmp_path / "part.parquet")
    found = read_questions("cais/mmlu")
    assert found["question_id"].tolist() == ["s/test/0", "s/test/1"]
    assert found["answer"].tolist() == ["A", "D"]
    assert found["C"].tolist() == ["y", "y"]


def test_a_sample_is_even_over_subjects_and_does_not_depend_on_the_order_of_rows():
    questions = read_questions()
    drawn = sample_questions(questions, 20, seed=4)
    assert sorted(drawn["subject"].value_counts()) == [3, 3, 3, 3, 4, 4]
    pd.testing.assert_frame_equal(drawn, sample_questions(questions[::-1], 20, seed=4))
    assert not drawn.equals(sample_questions(questions, 20, seed=5))
    assert len(sample_questions(questions, 1000)) == 60


def test_the_prompt_has_the_reference_layout():
    row = pd.Series(
        {"subject": "high_school_x", "question": " Why? ", **dict(zip("ABCD", "wxyz", strict=True))}
    )
    shot = pd.DataFrame([{**row, "question": "How?", "answer": "C"}])
    assert question_prompt(row, shot) == (
        "The following are multiple choice questions (with answers) about high school x.\n\n"
        "How?\nA. w\nB. x\nC. y\nD. z\nAnswer: C\n\n"
        "Why?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )
    assert question_prompt(row).count("Answer:") == 1


def test_more_shots_than_there_are_is_refused():
    dev = read_questions(split="dev")
    assert len(shots_for("numbers", dev, 1)) == 1
    with pytest.raises(ValueError, match="2 shots wanted, 'numbers' has 1"):
        shots_for("numbers", dev, 2)


def test_probabilities_are_a_softmax_over_the_letters_alone():
    z = torch.zeros(1, 10)
    z[0, 0] = 100.0
    z[0, 3] = np.log(3)
    assert choice_probabilities(z, [2, 3, 4, 5])[0] == pytest.approx([1 / 6, 3 / 6, 1 / 6, 1 / 6])
    with pytest.raises(ValueError, match="4 different letter ids"):
        choice_probabilities(z, [2, 2, 4, 5])


def test_every_alpha_from_the_letters_equals_the_rule_on_all_logits():
    torch.manual_seed(0)
    z = {name: torch.randn(5, 50, dtype=torch.float64) for name in ("base", "expert", "anti")}
    letters, alphas = [7, 3, 9, 11], [0.0, 0.5, 2.2]
    found = choices_under_steering(z, "expert_anti_expert", alphas, letters)
    assert found.shape == (3, 5, 4)
    for alpha, p in zip(alphas, found, strict=True):
        steered = expert_anti_expert(z["base"], z["expert"], z["anti"], alpha)
        assert p == pytest.approx(choice_probabilities(steered, letters), abs=1e-12)
    assert found[0] == pytest.approx(choice_probabilities(z["base"], letters), abs=1e-12)


def test_a_missing_branch_or_several_alphas_of_caa_are_refused():
    z = {"base": torch.zeros(1, 8), "steered": torch.zeros(1, 8)}
    with pytest.raises(KeyError, match="needs branch 'anti'"):
        choices_under_steering(z, "anti_expert", [1.0], range(4))
    with pytest.raises(ValueError, match="give one, not 2"):
        choices_under_steering(z, "caa", [1.0, 2.0], range(4))


def test_calibration_and_brier_by_hand():
    p = [[0.85, 0.05, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05], [0.25, 0.25, 0.25, 0.25]]
    answers = ["A", "B", "A"]
    assert calibration_error(p, answers) == pytest.approx((2 * abs(0.85 - 0.5) + abs(0.25 - 1)) / 3)
    assert brier(p, answers)[[0, 2]] == pytest.approx([0.15**2 + 3 * 0.05**2, 0.75])
    assert calibration_error([[1.0, 0, 0, 0]], ["A"]) == 0


def some_choices(questions):
    right = np.eye(4)[questions["answer"].map(dict(zip("ABCD", range(4), strict=True)))]
    half = right.copy()
    half[::2] = np.roll(half[::2], 1, axis=1)
    rows = [choice_rows(right, questions, arm_id="base", category="")]
    rows += [choice_rows(half, questions, arm_id="arm", category=c) for c in ("insult", "threat")]
    return pd.concat(rows)


def test_accuracy_is_summarised_with_intervals_by_question():
    questions = read_questions()
    found = summarise_choices(some_choices(questions), questions, base_arm="base", source="demo")
    one = found[found["subgroup"] == "all"].set_index(["arm_id", "metric"])
    exact = 100 * 0.025 ** (1 / 60)
    assert one.loc[("base", "accuracy"), ["value", "low", "high"]].tolist() == pytest.approx(
        [100, exact, 100]
    )
    assert one.loc[("base", "calibration_error"), "value"] == 0
    change = one.loc[("arm", "accuracy_change")]
    assert (change["value"], change["n"], change["n_clusters"]) == (-50, 120, 60)
    assert -64 < change["low"] < -62
    assert set(found["subgroup"]) == {"all", "category=insult", "category=threat"}


def test_accuracy_is_the_macro_average_over_contexts():
    questions = read_questions()
    questions = questions[(questions["subject"] != "numbers") | questions["question_id"].str.endswith("/0")]
    choices = some_choices(questions)
    wrong = choices["question_id"].str.startswith("numbers") & (choices["category"] != "threat")
    found = summarise_choices(choices.assign(correct=~wrong), questions, base_arm="base", source="demo")
    one = found[(found["arm_id"] == "arm")].set_index(["subgroup", "metric"])["value"]
    assert one["all", "accuracy"] == pytest.approx(100 * (51 - 0.5) / 51)
    contexts = [one[f"category={c}", "accuracy"] for c in ("insult", "threat")]
    assert one["all", "accuracy"] == pytest.approx(np.mean(contexts))


def test_an_arm_that_answered_other_questions_is_refused():
    questions = read_questions()
    choices = some_choices(questions)
    with pytest.raises(ValueError, match="'arm'"):
        summarise_choices(choices.iloc[1:], questions, base_arm="base", source="demo")


CONTEXTS = {
    c: {"expert": f"Be kind, no {c}, in any of the words.", "anti": f"Be vile, {c}!"} for c in ATTRIBUTES
}


@pytest.fixture
def lettered(tiny, monkeypatch):
    """The tiny model, whose tokens are characters: the letter is the token after "Answer:" and a space."""
    plain = [tiny.tokenizer.encode(letter)[0] for letter in "ABCD"]
    monkeypatch.setattr("steerlib.evaluation.multiple_choice.letter_ids", lambda frozen: plain)  # noqa: ARG005
    return tiny, plain


def asked_arms(*families, positions="all"):
    logit = {"profile": "own", "contexts": CONTEXTS}
    arms = [make_arms("base"), make_arms("prompt_only", **logit)]
    arms += [make_arms(m, [0.5, 2.0], **logit) for m in ("anti_expert", "expert_anti_expert")]
    arms += [make_arms("anti_expert", [1.0], profile="shuffled", contexts=CONTEXTS)]
    arms += [
        make_arms("anti_expert", [1.0], profile="population", category=c, contexts=CONTEXTS)
        for c in ("insult", "threat")
    ]
    arms += [make_arms("caa", [0.5, 4.0], family=family, positions=positions) for family in families]
    return pd.concat(arms, ignore_index=True)


def plain_choices(tiny, letters, text, arm, category, family):
    """One question under one arm, each branch read by itself."""

    def logits(context=""):
        ids = torch.tensor([prompt_ids(tiny, text, style="continuation", context=context)])
        return tiny.model(ids).logits[:, -1]

    z = {"base": logits()}
    for branch in RULES[arm.method].branches:
        if branch == "steered":
            with add_to_residual(tiny.model, family.of(""), alpha=arm.alpha, positions=arm.positions):
                z[branch] = logits()
        else:
            z[branch] = logits(CONTEXTS[category][branch])
    z_new = FORMULAS[arm.method](z, arm.alpha)
    return z_new[0, letters].softmax(-1).tolist()


@pytest.mark.parametrize("positions", ["all", "prompt", "first_k:1", "from:30"])
def test_answers_for_all_alphas_at_once_equal_one_question_and_one_alpha_at_a_time(lettered, positions):
    tiny, letters = lettered
    torch.manual_seed(1)
    family = VectorFamily("v", {"": {1: torch.randn(32), 2: torch.randn(32)}})
    questions = pd.concat(
        [read_questions().head(5), sample_questions(read_questions()[10:], 2)], ignore_index=True
    )
    dev = read_questions(split="dev")
    arms = asked_arms(family, positions=positions)
    if positions != "all":
        arms = arms[arms.method.isin(["base", "caa"])]
    settings = {"contexts": CONTEXTS, "vectors": [family], "dev": dev, "shots": 1}
    found = check_table("choices", ask_questions(tiny, questions, arms, batch_tokens=1200, **settings))
    by_id, asked = arms.set_index("arm_id", drop=False), questions.set_index("question_id", drop=False)
    for row in found.sample(min(len(found), 80), random_state=0).itertuples():
        arm, question = by_id.loc[row.arm_id], asked.loc[row.question_id]
        text = question_prompt(question, shots_for(question.subject, dev, 1))
        expected = plain_choices(tiny, letters, text, arm, row.category, family)
        assert [row.p_A, row.p_B, row.p_C, row.p_D] == pytest.approx(expected, abs=1e-9)
        assert row.correct == ("ABCD"[int(np.argmax(expected))] == question.answer)


def test_each_arm_is_asked_in_its_own_contexts_and_a_shuffled_one_not_at_all(lettered):
    tiny, _ = lettered
    arms = asked_arms()
    found = ask_questions(tiny, sample_questions(read_questions(), 2), arms, contexts=CONTEXTS)
    asked = found.groupby("arm_id")["category"].unique()
    for arm in arms.itertuples():
        if arm.profile == "shuffled":
            assert arm.arm_id not in asked
        elif arm.profile == "own":
            assert sorted(asked[arm.arm_id]) == sorted(ATTRIBUTES)
        else:
            assert asked[arm.arm_id].tolist() == [arm.category]


def test_a_trained_branch_reads_the_question_without_context_in_its_own_model(lettered):
    tiny, letters = lettered
    vocabulary = tiny.model.config.vocab_size
    other = tiny_model(GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2))
    trained = {"anti": other.name}
    questions = sample_questions(read_questions(), 2)
    arms = pd.concat(
        [
            make_arms("base"),
            make_arms("anti_expert", [1.5], branches=trained),
            make_arms("expert_anti_expert", [1.5], profile="own", contexts=CONTEXTS, branches=trained),
        ]
    )
    found = ask_questions(tiny, questions, arms, contexts=CONTEXTS, branch_models={"anti": other})
    assert found["arm_id"].value_counts().tolist() == [12, 2, 2]
    rows = found[found["arm_id"] == arms["arm_id"].iloc[1]]
    for question, row in zip(questions.itertuples(), rows.itertuples(), strict=True):
        ids = torch.tensor(
            [prompt_ids(tiny, question_prompt(questions.loc[question.Index]), style="continuation")]
        )
        base, anti = (model.model(ids).logits[0, -1] for model in (tiny, other))
        expected = (base + 1.5 * (base - anti))[letters].softmax(-1).tolist()
        assert [row.p_A, row.p_B, row.p_C, row.p_D] == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="reads the anti model 'tiny gpt2'; none is given"):
        ask_questions(tiny, questions, arms, contexts=CONTEXTS)


def test_an_unknown_vector_or_a_question_too_long_is_refused(lettered):
    tiny, _ = lettered
    questions = sample_questions(read_questions(), 2)
    arms = asked_arms(VectorFamily("v", {"": {1: torch.ones(32)}}))
    with pytest.raises(ValueError, match=r"needs the vectors 'v .*'; given are none"):
        ask_questions(tiny, questions, arms, contexts=CONTEXTS)
    long = questions.assign(question="why " * 200)
    with pytest.raises(ValueError, match=f"question {questions.question_id[0]}: .* more than the 512"):
        ask_questions(tiny, long, asked_arms(), contexts=CONTEXTS)
