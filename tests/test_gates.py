"""Conditional steering, and relative norms of what arms add."""

import numpy as np
import pandas as pd
import pytest
import torch

from steerlib.decoding import Factor, make_arms
from steerlib.reading import prompt_ids
from steerlib.residual import VectorFamily, prompt_residuals
from steerlib.tables import write_table
from steerlib.vectors import choose_threshold, prompt_projections, relative_norms

TEXTS = ["Why?", "How so?", "Who, then?", "Where to, and when?"]
PROMPTS = pd.DataFrame({"prompt_id": list("abcd"), "user_id": list("uvuv"), "prompt": TEXTS})
PROMPTS["category"] = "insult"
VECTOR = {layer: torch.linspace(-layer, 2, 32, dtype=torch.float64) for layer in (1, 2)}
EVERYBODY = VectorFamily("population", {"": VECTOR})


def labelled(values, labels):
    values = pd.Series(values, [f"p{i}" for i in range(len(values))], dtype=float)
    return values, pd.Series(labels, values.index[: len(labels)])


def test_a_projection_is_a_length_along_the_unit_vector(tiny):
    along = prompt_projections(tiny, PROMPTS, VECTOR, layer=1, style="continuation")
    residual = prompt_residuals(tiny, PROMPTS, layers=[1], style="continuation")[1]
    assert along.index.tolist() == list("abcd")
    np.testing.assert_allclose(along, residual @ VECTOR[1] / VECTOR[1].norm())
    longer = prompt_projections(tiny, PROMPTS, {1: 5 * VECTOR[1]}, layer=1, style="continuation")
    np.testing.assert_allclose(along, longer)
    for vector in ({1: VECTOR[1]}, {2: torch.zeros(32)}):
        with pytest.raises(ValueError, match="layer 2"):
            prompt_projections(tiny, PROMPTS, vector, layer=2, style="chat")


@pytest.mark.parametrize(
    ("values", "labels", "expected"),
    [
        # Each kind of prompt counts the same, however many there are.
        ([0.0] * 8 + [1.0, 2.0], [False] * 7 + [True, False, True], (1.5, 0.75)),
        # Of equally good thresholds the highest is taken: in the second case 1.5 separates as well.
        ([1, 2, 3, 4], [True, False, True, False], (np.inf, 0.5)),
        ([1, 2, 3, 4], [False, True, False, True], (3.5, 0.75)),
    ],
)
def test_the_threshold_separates_best_whatever_the_order(values, labels, expected):
    projections, wanted = labelled(values, labels)
    assert choose_threshold(projections, wanted) == expected
    assert choose_threshold(projections.iloc[::-1], wanted) == expected


def test_prompts_that_cannot_be_separated_are_refused():
    for given, named in (
        (labelled([1, 2], [True, True]), "True"),
        (labelled([1, 2], [False, False]), "False"),
        (labelled([1, np.nan], [True, False]), "projection of prompt p1"),
        (labelled([1, 2], [True]), "prompt p1 has"),
    ):
        with pytest.raises(ValueError, match=named):
            choose_threshold(*given)


def test_relative_norms_by_hand_and_as_a_table_of_the_run(tiny, tmp_path):
    arms = pd.concat([make_arms("base"), make_arms("caa", [-2.0, 0.0], family=EVERYBODY)])
    table = relative_norms(tiny, PROMPTS, arms, [EVERYBODY])
    write_table(tmp_path, "relative_norms", table)
    strong, none = (table[table.arm_id == arm] for arm in arms.arm_id[1:])
    assert set(table.arm_id) == set(arms.arm_id[1:]) and (none.relative_norm == 0).all()
    strong = strong.set_index(["prompt_id", "layer"])
    for prompt in PROMPTS.itertuples():
        ids = torch.tensor([prompt_ids(tiny, prompt.prompt, style="continuation")])
        hidden = tiny.model(ids, output_hidden_states=True).hidden_states
        for layer, vector in VECTOR.items():
            norm = float(hidden[layer + 1][0, -1].norm())
            assert strong.norm[prompt.prompt_id, layer] == pytest.approx(norm)
            expected = 2 * float(vector.norm()) / norm
            assert strong.relative_norm[prompt.prompt_id, layer] == pytest.approx(expected)
    assert relative_norms(tiny, PROMPTS, arms[:1], []).empty


def mean_by_prompt(table):
    return table.groupby("prompt_id").relative_norm.mean()


def test_a_relative_norm_is_that_of_the_users_vector_its_strength_and_its_gate(tiny):
    everybodys = make_arms("caa", [1.0], family=EVERYBODY)
    whole = mean_by_prompt(relative_norms(tiny, PROMPTS, everybodys, [EVERYBODY]))
    own = VectorFamily("own", {"u": VECTOR, "v": {la: 2 * v for la, v in VECTOR.items()}}, vector_user="own")
    of_users = make_arms("caa", [1.0], family=own, profile="own")
    by_user = mean_by_prompt(relative_norms(tiny, PROMPTS, of_users, [own]))
    np.testing.assert_allclose(by_user / whole, [1, 2, 1, 2])
    gate = Factor("gate", {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0})
    gated = make_arms("caa", [1.0], family=EVERYBODY, factor=gate)
    by_gate = mean_by_prompt(relative_norms(tiny, PROMPTS, gated, [EVERYBODY], factors=[gate]))
    np.testing.assert_allclose(by_gate / whole, [1, 0, 1, 0])
    beside = make_arms("anti_expert", [1.5], family=EVERYBODY, vector_alpha=-3.0, profile="own")
    np.testing.assert_allclose(mean_by_prompt(relative_norms(tiny, PROMPTS, beside, [EVERYBODY])) / whole, 3)
