import json

import pandas as pd
import pytest
import torch

from steerlib.reading import prompt_ids
from steerlib.residual import Factor
from steerlib.tables import write_table
from steerlib.vectors import VectorFamily, doses, prompt_residuals, residual_norms

PROMPTS = pd.DataFrame(
    {"prompt_id": ["p1", "p2"], "user_id": ["u", "w"], "prompt": ["Why?", "How so, then?"]}
)
NORMS = pd.DataFrame(
    [("p1", 1, 10.0), ("p1", 2, 20.0), ("p2", 1, 5.0), ("p2", 2, 40.0)],
    columns=["prompt_id", "layer", "norm"],
)
VECTOR = {1: torch.tensor([3.0, 4.0]), 2: torch.tensor([0.0, 10.0])}
FAMILY = VectorFamily("v", {"": VECTOR})


def arm(**change):
    of = {"family": "v", "vector_user": "", "vector": FAMILY.digest}
    row = {"arm_id": "a", "method": "caa", "alpha": 2.0, "vector_alpha": 0.0, "factor": ""}
    return pd.DataFrame([{**row, **of, **change}])


def by_place(table):
    return table.set_index(["prompt_id", "layer"])["dose"].to_dict()


def test_a_dose_by_hand():
    table = doses(arm(), NORMS, [FAMILY], PROMPTS)
    assert by_place(table) == {("p1", 1): 1.0, ("p1", 2): 1.0, ("p2", 1): 2.0, ("p2", 2): 0.5}
    assert table.norm.tolist() == NORMS.norm.tolist()


def test_a_dose_has_no_sign_and_grows_with_alpha():
    negative = doses(arm(alpha=-4.0), NORMS, [FAMILY], PROMPTS)
    assert by_place(negative)["p1", 1] == 2.0
    assert (doses(arm(alpha=0.0), NORMS, [FAMILY], PROMPTS).dose == 0).all()


def test_beside_a_logit_rule_the_vectors_own_strength_counts():
    combined = arm(method="anti_expert", alpha=1.5, vector_alpha=4.0)
    assert by_place(doses(combined, NORMS, [FAMILY], PROMPTS))["p1", 1] == 2.0


def test_personal_vectors_are_those_of_the_prompts_user():
    family = VectorFamily("v", {"u": VECTOR, "w": {1: 2 * VECTOR[1]}}, "own")
    own = arm(vector_user="own", vector=family.digest)
    assert by_place(doses(own, NORMS, [family], PROMPTS)) == {("p1", 1): 1.0, ("p1", 2): 1.0, ("p2", 1): 4.0}


def test_a_closed_gate_gives_no_dose_and_a_number_scales_it():
    gate = [Factor("gate", {"p1": True, "p2": False})]
    gated = by_place(doses(arm(factor="gate"), NORMS, [FAMILY], PROMPTS, factors=gate))
    assert (gated["p1", 1], gated["p2", 1]) == (1.0, 0.0)
    assert by_place(doses(arm(factor="0.5"), NORMS, [FAMILY], PROMPTS))["p1", 1] == 0.5


def test_arms_without_a_vector_have_no_rows_and_the_table_can_be_written(tmp_path):
    arms = pd.concat([arm(arm_id="base", method="base", family="", vector=""), arm()])
    table = doses(arms, NORMS, [FAMILY], PROMPTS)
    assert set(table.arm_id) == {"a"}
    write_table(tmp_path, "doses", table)
    assert doses(arms[:1], NORMS, [], PROMPTS).empty


DEEPER = VectorFamily("v", {"": {3: VECTOR[1]}})


@pytest.mark.parametrize(
    ("change", "vectors", "message"),
    [
        ({}, [VectorFamily("w", {"": VECTOR})], "arm a needs the vectors 'v .*'; given are w "),
        ({"vector": DEEPER.digest}, [DEEPER], "no norm of prompt p1 at layer 3"),
        ({"factor": "gate"}, [FAMILY], "arm a: no factor is called 'gate'"),
    ],
)
def test_what_is_missing_is_named(change, vectors, message):
    with pytest.raises(ValueError, match=message):
        doses(arm(**change), NORMS, vectors, PROMPTS)


@pytest.mark.parametrize("style", ["chat", "continuation"])
def test_norms_are_those_of_the_last_position_of_the_prompt(tiny, style):
    norms = residual_norms(tiny, PROMPTS, layers=[0, 2], style=style).set_index(["prompt_id", "layer"]).norm
    for prompt in PROMPTS.itertuples():
        ids = torch.tensor([prompt_ids(tiny, prompt.prompt, style=style)])
        hidden = tiny.model(ids, output_hidden_states=True).hidden_states
        for layer in (0, 2):
            expected = float(hidden[layer + 1][0, -1].norm())
            assert norms[prompt.prompt_id, layer] == pytest.approx(expected)


def test_earlier_turns_are_part_of_what_is_read(tiny):
    turns = json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    settings = {"layers": [1], "style": "chat"}
    plain = prompt_residuals(tiny, PROMPTS[:1], **settings)[1]
    none = prompt_residuals(tiny, PROMPTS[:1].assign(history=""), **settings)[1]
    some = prompt_residuals(tiny, PROMPTS[:1].assign(history=turns), **settings)[1]
    assert torch.equal(plain, none)
    assert not torch.allclose(plain, some)
