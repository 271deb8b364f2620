"""Questions under steering: what the readings of a question share, and arms that a question does not settle."""

import numpy as np
import pandas as pd
import pytest
import torch
from reference import FORMULAS

from steerlib.decoding import RULES, Factor, Sampling, VectorFamily, make_arms
from steerlib.evaluation import ask_questions, question_prompt, read_questions, sample_questions
from steerlib.reading import prompt_ids
from steerlib.toxicity import ATTRIBUTES
from steerlib.vectors import add_to_residual

CONTEXTS = {
    c: {"expert": f"Be kind, no {c}.", "anti": f"Be vile, {c}!", "instructed": f"No {c}, please."}
    for c in ATTRIBUTES
}
torch.manual_seed(2)
V = VectorFamily("v", {"": {2: torch.randn(32), 3: torch.randn(32)}})
W = VectorFamily("w", {"": {1: torch.randn(32)}})
VECTORS = [V, W]
QUESTIONS = sample_questions(read_questions(), 6)


@pytest.fixture
def letters(tiny, monkeypatch):
    """Ids of the letters: tokens of the tiny model are characters."""
    ids = [tiny.tokenizer.encode(letter)[0] for letter in "ABCD"]
    monkeypatch.setattr("steerlib.evaluation.multiple_choice.letter_ids", lambda frozen: ids)  # noqa: ARG005
    return ids


def read_alone(tiny, text, arm, branch, category):
    """Logits of one branch of one arm, read by itself."""
    context = CONTEXTS[category][branch] if branch in CONTEXTS.get(category, {}) else ""
    ids = torch.tensor([prompt_ids(tiny, text, style="continuation", context=context)])
    alpha = arm.alpha if arm.method == "caa" else arm.vector_alpha
    if not arm.vector or (arm.method, branch) == ("caa", "base"):
        return tiny.model(ids).logits[:, -1]
    with add_to_residual(
        tiny.model, {"v": V, "w": W}[arm.family].of(""), alpha=alpha, positions=arm.positions
    ):
        return tiny.model(ids).logits[:, -1]


def test_arms_of_all_kinds_answer_as_each_alone(tiny, letters):
    own, positions = {"profile": "own", "contexts": CONTEXTS}, {"positions": "generation"}
    arms = pd.concat(
        [
            make_arms("base"),
            make_arms("caa", [-1.0, 0.0, 0.5, 2.0], family=V),
            make_arms("caa", [1.0], family=W, **positions),
            make_arms("expert_anti_expert", [0.5, 1.5], family=V, vector_alpha=0.7, **own),
            make_arms("anti_expert", [0.5], family=W, vector_alpha=-1, **own, **positions),
            make_arms("instructed", **own),
            make_arms("sda", [2.0], factor=0.4, **own),
        ],
        ignore_index=True,
    )
    found = ask_questions(tiny, QUESTIONS, arms, contexts=CONTEXTS, vectors=VECTORS, batch_tokens=1500)
    assert len(found) == len(QUESTIONS) * (6 + 6 * 5)
    arm_of = {arm.arm_id: arm for arm in arms.itertuples()}
    texts = dict(
        zip(QUESTIONS.question_id, (question_prompt(q) for _, q in QUESTIONS.iterrows()), strict=True)
    )
    for row in found.sample(50, random_state=1).itertuples():
        arm = arm_of[row.arm_id]
        z = {
            name: read_alone(tiny, texts[row.question_id], arm, name, row.category)
            for name in ("base", *RULES[arm.method].branches)
        }
        alpha = torch.tensor([arm.alpha * float(arm.factor or 1)], dtype=torch.float64)
        expected = FORMULAS[arm.method](z, alpha)[0, letters].softmax(-1).tolist()
        assert [row.p_A, row.p_B, row.p_C, row.p_D] == pytest.approx(expected, abs=1e-9), arm


def tokens_read(tiny, ask):
    """Tokens that each block reads, pads included."""
    counts = np.zeros(tiny.n_layers, dtype=int)
    handles = []
    for layer, block in enumerate(tiny.blocks):

        def hook(module, args, kwargs, layer=layer):  # noqa: ARG001
            counts[layer] += kwargs["hidden_states"].shape[:2].numel()

        handles.append(block.self_attn.register_forward_pre_hook(hook, with_kwargs=True))
    ask()
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.usefixtures("letters")
def test_layers_below_the_vector_read_a_question_once_for_the_base_and_all_strengths(tiny):
    base, caa = make_arms("base"), make_arms("caa", [0.5, 1.0, 1.5, 2.0], family=V)
    alone = tokens_read(tiny, lambda: ask_questions(tiny, QUESTIONS, base, contexts=CONTEXTS))
    together = pd.concat([base, caa], ignore_index=True)
    found = tokens_read(
        tiny, lambda: ask_questions(tiny, QUESTIONS, together, contexts=CONTEXTS, vectors=VECTORS)
    )
    assert (found / alone).round(6).tolist() == [1, 1, 5, 5]


@pytest.mark.usefixtures("letters")
def test_arms_that_a_question_does_not_settle_are_left_out(tiny):
    of_users = {"u1": V.of("")}
    mine = VectorFamily("personal", of_users, "own")
    theirs = VectorFamily("personal", of_users, "shuffled", "shuffled_profile")
    arms = pd.concat(
        [
            make_arms("base"),
            make_arms("caa", [1.0], family=mine, profile="own"),
            make_arms("caa", [1.0], family=theirs, profile="shuffled"),
            make_arms("sda", [2.0], factor=Factor("tanh", {"p": 1.0}), profile="own", contexts=CONTEXTS),
            make_arms("caa", [1.0], family=V, factor=Factor("gate", {"p": 1.0})),
        ]
    )
    found = ask_questions(tiny, QUESTIONS, arms, contexts=CONTEXTS, vectors=[*VECTORS, mine, theirs])
    assert found.arm_id.unique().tolist() == [arms.arm_id.iloc[0]]


@pytest.mark.usefixtures("letters")
def test_a_context_that_is_missing_is_refused_naming_branch_and_category(tiny):
    arms = make_arms("instructed", profile="own", sampling=Sampling(temperature=0), contexts=CONTEXTS)
    contexts = {c: {"expert": "x", "anti": "y"} for c in ATTRIBUTES}
    with pytest.raises(ValueError, match="the contexts have no 'instructed' for category 'toxicity'"):
        ask_questions(tiny, QUESTIONS, arms, contexts=contexts)


def test_in_an_sda_run_questions_are_asked_under_the_dimensions_of_its_prompts(tiny, letters):  # noqa: ARG001
    contexts = {"honesty": {"instructed": "Say what is so."}, "empathy": {"instructed": "Comfort."}}
    arms = pd.concat(
        [make_arms("base"), make_arms("instructed", profile="own", contexts=contexts)], ignore_index=True
    )
    found = ask_questions(tiny, QUESTIONS, arms, contexts=contexts, categories=["empathy", "honesty"])
    asked = found.groupby("arm_id", sort=False).category.unique().map(sorted).tolist()
    assert asked == [[""], ["empathy", "honesty"]]
