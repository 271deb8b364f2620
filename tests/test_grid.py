import dataclasses

import pytest
import torch

from steerlib.decoding import Factor, Sampling, VectorFamily, default_contexts, study_arms

SAMPLING = Sampling(temperature=0.6, top_p=0.95, js_sigma=0.01, min_temperature=0.2)
ONE = {1: torch.ones(2)}
VECTORS = [
    VectorFamily("population", {"": ONE}),
    VectorFamily("random", {"": {1: -torch.ones(2)}}, control="random_vector"),
    VectorFamily("dislike", {"u1": ONE, "u2": ONE}, "own"),
    VectorFamily("dislike", {"u1": ONE}, "shuffled", "shuffled_profile"),
]
AMPLIFICATION, GATE = Factor("sigmoid", {"p": 0.3}), Factor("gate", {"p": 1.0})


def arms(methods, controls, sampling=SAMPLING, **settings):
    grid = {"alphas": [1.0], "caa_alphas": [0.5], "composed_alphas": [7.5], "sda_ks": [2.0]}
    settings = {"vectors": VECTORS, **grid, **settings}
    return study_arms(
        methods,
        controls,
        model="m",
        contexts=default_contexts("chat"),
        positions="all",
        style="chat",
        sampling=sampling,
        **settings,
    )


def rows(table, *columns):
    return list(table[list(columns)].itertuples(index=False, name=None))


def test_sda_stands_beside_what_is_left_of_it_without_one_of_its_parts():
    found = arms(
        ["sda"],
        ["instructed", "steering_only", "temperature_only", "fixed", "shuffled"],
        amplification=AMPLIFICATION,
    )
    assert rows(found, "method", "alpha", "factor", "profile", "js_sigma") == [
        ("base", 0, "", "none", 0),
        ("sda", 2, "sigmoid", "own", 0.01),
        ("sda", 2, "sigmoid", "shuffled", 0.01),
        ("instructed", 0, "", "own", 0),
        ("sda", 2, "sigmoid", "own", 0),
        ("instructed", 0, "", "own", 0.01),
        ("sda", 2, "", "own", 0.01),
    ]
    assert found.arm_id.is_unique
    assert found.min_temperature.tolist() == [0, 0.2, 0.2, 0, 0, 0.2, 0.2]


def test_ablations_that_would_repeat_an_arm_are_left_out():
    plain = dataclasses.replace(SAMPLING, js_sigma=0.0, min_temperature=0.0)
    found = arms(["sda"], ["instructed", "steering_only", "temperature_only", "fixed"], sampling=plain)
    assert found.method.tolist() == ["base", "sda", "instructed"]


def test_each_family_of_vectors_is_one_set_of_arms_with_alphas_of_its_own():
    found = arms(["caa"], ["shuffled", "random"])
    assert rows(found, "family", "profile", "control", "alpha") == [
        ("", "none", "base", 0),
        ("population", "none", "", 0.5),
        ("random", "none", "random_vector", 0.5),
        ("dislike", "own", "", 7.5),
        ("dislike", "shuffled", "shuffled_profile", 7.5),
    ]


def test_gated_and_time_limited_arms_are_the_populations_alone():
    found = arms(["caa"], [], gate=GATE, more_positions=["first_k:8"])
    assert rows(found, "family", "positions", "factor") == [
        ("", "", ""),
        ("population", "all", ""),
        ("population", "first_k:8", ""),
        ("population", "all", "gate"),
        ("dislike", "all", ""),
    ]


def test_a_vector_beside_a_logit_rule_is_an_arm_of_its_own():
    found = arms(["expert_anti_expert"], ["shuffled"], vector_alpha=0.3)
    assert rows(found, "method", "profile", "family", "vector_alpha") == [
        ("base", "none", "", 0),
        ("expert_anti_expert", "own", "", 0),
        ("expert_anti_expert", "shuffled", "", 0),
        ("expert_anti_expert", "own", "population", 0.3),
    ]


def test_an_unknown_control_is_refused_naming_those_there_are():
    with pytest.raises(ValueError, match=r"control 'nonsense' is none of prompt_only, .*instructed"):
        arms(["sda"], ["nonsense"])


def test_each_method_has_its_trained_branches_and_no_placebo_without_a_context():
    methods, controls = ["anti_expert", "expert_anti_expert"], ["prompt_only", "shuffled"]
    found = arms(methods, controls, vectors=[], branches={"anti": "third"})
    assert rows(found, "method", "profile", "branches") == [
        ("base", "none", ""),
        ("anti_expert", "none", '{"anti": "third"}'),
        ("expert_anti_expert", "own", '{"anti": "third"}'),
        ("expert_anti_expert", "shuffled", '{"anti": "third"}'),
        ("prompt_only", "own", ""),
    ]
