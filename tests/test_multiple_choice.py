"""Multiple choice: sources, the text of a question, option probabilities under every arm, accuracy and calibration."""

import numpy as np
import pandas as pd
import pytest
import torch
from reference import FORMULAS, branch_logits, branch_of_arm
from tiny import tiny_model
from transformers import GPT2Config

from steerlib.decoding import RULES, Factor, VectorFamily, aligner_arms, make_arms
from steerlib.evaluation import (
    ask_questions,
    read_questions,
    sample_questions,
    summarise_choices,
)
from steerlib.evaluation.multiple_choice import calibration_gaps, letter_ids, question_prompt
from steerlib.reading import prompt_ids
from steerlib.rules import Rule
from steerlib.tables import check_table
from steerlib.toxicity import ATTRIBUTES

ROOM = "steerlib.evaluation.multiple_choice"


def test_the_demo_set_is_balanced_over_letters_and_subjects():
    questions, dev = read_questions(), read_questions(split="dev")
    assert questions["answer"].value_counts().to_dict() == dict.fromkeys("ABCD", 15)
    assert questions["subject"].value_counts().tolist() == [10] * 6
    assert sorted(dev["subject"]) == sorted(questions["subject"].unique())
    assert questions["question_id"].is_unique


def test_both_layouts_of_mmlus_folder_and_the_hubs_give_the_same_questions(tmp_path, monkeypatch):
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
    hub = {"question": 'What is "None"?', "subject": "formal_logic", "choices": ["None", "NA", "a, b", "4"]}
    pd.DataFrame([hub | {"answer": 1}]).to_parquet(tmp_path / "hub.parquet")
    monkeypatch.setattr(f"{ROOM}.hub_file", lambda *_, **__: tmp_path / "hub.parquet")
    found.append(read_questions("cais/mmlu"))
    for other in found[1:]:
        pd.testing.assert_frame_equal(found[0], other)
    row = found[0].loc[0, ["question_id", "A", "B", "answer"]].tolist()
    assert row == ["formal_logic/test/0", "None", "NA", "B"]


def test_the_real_folder_of_mmlu_is_read_whole(real_data):
    folder = real_data("mmlu/dev").parent
    dev, test = read_questions(str(folder), split="dev"), read_questions(str(folder))
    assert dev["subject"].nunique() == test["subject"].nunique() == 57
    assert (len(dev), len(test)) == (285, 14042)
    assert (test["question"].str.strip() != "").all()
    assert sample_questions(test, 1000)["subject"].value_counts().between(17, 18).all()


def test_bad_sources_rows_and_letters_of_two_tokens_are_refused_naming_them(tiny, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_questions(str(tmp_path / "nowhere"))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "x_test.csv").write_text("q,a,b,c,d,A\nq,a,b,c,d,E\n")
    with pytest.raises(ValueError, match=r"x, row 2.*'E'"):
        read_questions(str(tmp_path))
    with pytest.raises(ValueError, match="'train'"):
        read_questions(split="train")
    with pytest.raises(ValueError, match="' A'"):
        letter_ids(tiny)  # its tokens are characters, so that the space is a token of its own
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="cais/mmlu"):
        read_questions("cais/mmlu")


def test_a_sample_is_even_over_subjects_and_does_not_depend_on_the_order_of_rows():
    questions = read_questions()
    drawn = sample_questions(questions, 20, seed=4)
    assert sorted(drawn["subject"].value_counts()) == [3, 3, 3, 3, 4, 4]
    pd.testing.assert_frame_equal(drawn, sample_questions(questions[::-1], 20, seed=4))
    assert not drawn.equals(sample_questions(questions, 20, seed=5))
    assert len(sample_questions(questions, 1000)) == 60


def test_the_prompt_has_the_reference_layout():
    row = {"subject": "high_school_x", "question": " Why? ", "A": "w", "B": "x", "C": "y", "D": "z"}
    assert question_prompt(row, [row | {"question": "How?", "answer": "C"}]) == (
        "The following are multiple choice questions (with answers) about high school x.\n\n"
        "How?\nA. w\nB. x\nC. y\nD. z\nAnswer: C\n\n"
        "Why?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )


def test_calibration_by_hand():
    p = np.array([[0.85, 0.05, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05], [0.25, 0.25, 0.25, 0.25]])
    answers = ["A", "B", "A"]
    error = np.abs(calibration_gaps(p, answers).mean(axis=0)).sum()
    assert error == pytest.approx((2 * abs(0.85 - 0.5) + abs(0.25 - 1)) / 3)


def some_choices(questions):
    right = np.eye(4)[questions["answer"].map(dict(zip("ABCD", range(4), strict=True)))]
    half = right.copy()
    half[::2] = np.roll(half[::2], 1, axis=1)
    rows = []
    for p, arm, category in ((right, "base", ""), (half, "arm", "insult"), (half, "arm", "threat")):
        part = pd.DataFrame(p, columns=["p_A", "p_B", "p_C", "p_D"]).assign(arm_id=arm, category=category)
        part["question_id"], part["correct"] = questions["question_id"].to_numpy(), (p == right).all(axis=1)
        rows.append(part)
    return pd.concat(rows, ignore_index=True)


def test_accuracy_is_summarised_with_intervals_by_question():
    questions = read_questions()
    choices, settings = some_choices(questions), {"base_arm": "base", "source": "demo"}
    found = summarise_choices(choices, questions, **settings)
    one = found[found["subgroup"] == "all"].set_index(["arm_id", "metric"])
    exact = [100, 100 * 0.025 ** (1 / 60), 100]
    assert one.loc[("base", "accuracy"), ["value", "low", "high"]].tolist() == pytest.approx(exact)
    assert one.loc[("base", "calibration_error"), "value"] == 0
    change = one.loc[("arm", "accuracy_change")]
    assert (change["value"], change["n"], change["n_clusters"]) == (-50, 120, 60)
    assert -64 < change["low"] < -62
    threat = choices.assign(correct=choices["category"] == "threat")
    found = summarise_choices(threat, questions, **settings).query("arm_id == 'arm' and metric == 'accuracy'")
    of_groups = found.set_index("subgroup")["value"].to_dict()
    assert of_groups == {"all": 50, "category=insult": 0, "category=threat": 100}
    with pytest.raises(ValueError, match="'arm'"):
        summarise_choices(choices.iloc[1:], questions, **settings)


CONTEXTS = {
    c: {"expert": f"Be kind, no {c}.", "anti": f"Be vile, {c}!", "instructed": f"No {c}, please."}
    for c in ATTRIBUTES
}
OWN = {"profile": "own", "contexts": CONTEXTS}
DRAW = torch.Generator().manual_seed(2)
V = VectorFamily("v", {"": {layer: torch.randn(32, generator=DRAW) for layer in (2, 3)}})
W = VectorFamily("w", {"": {1: torch.randn(32, generator=DRAW)}})
QUESTIONS = read_questions()[::10].reset_index(drop=True)


@pytest.fixture
def letters(tiny, monkeypatch):
    """Ids of the letters: tokens of the tiny model are characters, so the letter follows "Answer:" and a space."""
    ids = [tiny.tokenizer.encode(letter)[0] for letter in "ABCD"]
    monkeypatch.setattr(f"{ROOM}.letter_ids", lambda frozen: ids)  # noqa: ARG005
    return ids


def test_arms_of_all_kinds_answer_as_each_alone_and_unsettled_ones_are_left_out(tiny, letters, monkeypatch):
    formula = lambda z, a: z["expert"] - a * z["instructed"] / 3  # noqa: E731
    steer = lambda z, alpha: formula(z, alpha[:, None])  # noqa: E731
    rule = Rule("made_up", ("expert", "instructed"), steer, "Made up", "#123456")
    monkeypatch.setitem(RULES, "made_up", rule)
    monkeypatch.setitem(FORMULAS, "made_up", formula)
    of_users, shuffled = (VectorFamily("own", {"u1": V.of("")}, whose) for whose in ("own", "shuffled"))
    left_out = [
        make_arms("anti_expert", [1.0], profile="shuffled", contexts=CONTEXTS),
        make_arms("caa", [1.0], family=of_users, profile="own"),
        make_arms("caa", [1.0], family=shuffled, profile="shuffled"),
        make_arms("sda", [2.0], factor=Factor("sigmoid", {"p": 0.3}), **OWN),
        make_arms("caa", [1.0], family=V, factor=Factor("gate", {"p": 1.0})),
        aligner_arms(make_arms("base"), tiny),
    ]
    kept = [
        make_arms("base"),
        make_arms("caa", [-1.0, 0.0, 2.0], family=V),
        make_arms("caa", [1.0], family=W, positions="generation"),
        make_arms("expert_anti_expert", [0.5, 1.5], family=V, vector_alpha=0.7, **OWN),
        make_arms("anti_expert", [0.5], family=W, vector_alpha=-1, positions="prompt", **OWN),
        make_arms("anti_expert", [1.0], profile="population", category="threat", contexts=CONTEXTS),
        make_arms("prompt_only", **OWN),
        make_arms("sda", [0.8], **OWN),
        make_arms("made_up", [0.7], **OWN),
    ]
    arms, kept = pd.concat([*left_out, *kept]), pd.concat(kept, ignore_index=True)
    dev = read_questions(split="dev")
    given = {"contexts": CONTEXTS, "vectors": [V, W], "dev": dev, "shots": 1}
    found = check_table("choices", ask_questions(tiny, QUESTIONS, arms, **given))
    asked = found.groupby("arm_id", sort=False)["category"].agg(lambda one: sorted(set(one)))
    # A vector for everybody has no profile; a method without a context is asked under none.
    everywhere = (kept["category"] == "") & (kept["profile"] != "none")
    assert asked.index.tolist() == kept["arm_id"].tolist()
    told = zip(everywhere, kept["category"], strict=True)
    assert asked.tolist() == [sorted(ATTRIBUTES) if personal else [c] for personal, c in told]
    by_id, by_question = kept.set_index("arm_id", drop=False), QUESTIONS.set_index("question_id", drop=False)
    for row in found.sample(40, random_state=1).itertuples():
        arm, question = by_id.loc[row.arm_id], by_question.loc[row.question_id]
        text = question_prompt(question, dev[dev["subject"] == question["subject"]].to_dict("records"))
        context, branches = CONTEXTS.get(row.category, {}), ("base", *RULES[arm.method].branches)
        read = {b: branch_of_arm(tiny, arm, b, text, context.get(b, "")) for b in branches}
        z = {b: branch_logits(tiny, stream, vectors=[V, W]) for b, stream in read.items()}
        p = FORMULAS[arm.method](z, arm.alpha)[0, letters].softmax(-1).tolist()
        assert [row.p_A, row.p_B, row.p_C, row.p_D] == pytest.approx(p, abs=1e-9), arm
        assert row.correct == ("ABCD"[int(np.argmax(p))] == question["answer"])


def test_a_trained_branch_reads_the_question_without_context_in_its_own_model(tiny, letters):
    other = tiny_model(GPT2Config(vocab_size=tiny.model.config.vocab_size, n_embd=32, n_layer=2, n_head=2))
    trained = {"anti": other.name}
    arms = [make_arms("anti_expert", [1.5], branches=trained)]
    arms.append(make_arms("expert_anti_expert", [1.5], branches=trained, **OWN))
    found = ask_questions(tiny, QUESTIONS, pd.concat(arms), contexts=CONTEXTS, branch_models={"anti": other})
    assert found["arm_id"].value_counts().tolist() == [36, 6]
    rows = found[found["arm_id"] == arms[0]["arm_id"].item()]
    for question, row in zip(QUESTIONS.to_dict("records"), rows.itertuples(), strict=True):
        ids = torch.tensor([prompt_ids(tiny, question_prompt(question), style="continuation")])
        base, anti = (model.model(ids).logits[0, -1] for model in (tiny, other))
        expected = (base + 1.5 * (base - anti))[letters].softmax(-1).tolist()
        assert [row.p_A, row.p_B, row.p_C, row.p_D] == pytest.approx(expected, abs=1e-9)


@pytest.mark.usefixtures("letters")
def test_what_is_missing_or_too_long_is_refused_naming_it(tiny):
    base = make_arms("base")
    with pytest.raises(ValueError, match="name the contexts"):
        ask_questions(tiny, QUESTIONS, base)
    with pytest.raises(ValueError, match=QUESTIONS.question_id[0]):
        ask_questions(tiny, QUESTIONS.assign(question="why " * 200), base, contexts=CONTEXTS)
    with pytest.raises(ValueError, match=f"2 shots.*{QUESTIONS.subject[0]}"):
        ask_questions(tiny, QUESTIONS, base, contexts=CONTEXTS, dev=read_questions(split="dev"), shots=2)
    lacking = CONTEXTS | {"severe_toxicity": {"expert": "x"}}
    with pytest.raises(ValueError, match=r"'instructed'.*'severe_toxicity'"):
        ask_questions(tiny, QUESTIONS, make_arms("instructed", **OWN), contexts=lacking)
