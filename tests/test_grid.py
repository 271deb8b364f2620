import dataclasses

import pytest

from steerlib.decoding import Sampling, Strengths, default_contexts, study_arms

SAMPLING = Sampling(temperature=0.6, top_p=0.95, js_sigma=0.01, min_temperature=0.2)
VECTORS = ["population@1", "random@2", "dislike@3/u1", "dislike@3/u2", "dislike_shuffled@4/u1"]


def arms(methods, controls, sampling=SAMPLING, **settings):
    settings = {"vectors": VECTORS, "strengths": Strengths([1.0], [0.5], [7.5], [2.0]), **settings}
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
        amplification="sigmoid@7",
    )
    assert rows(found, "method", "alpha", "factor", "profile", "js_sigma") == [
        ("base", 0, "", "none", 0),
        ("sda", 2, "sigmoid@7", "own", 0.01),
        ("sda", 2, "sigmoid@7", "shuffled", 0.01),
        ("instructed", 0, "", "own", 0),
        ("sda", 2, "sigmoid@7", "own", 0),
        ("instructed", 0, "", "own", 0.01),
        ("sda", 2, "1", "own", 0.01),
    ]
    assert found.arm_id.is_unique
    assert found.min_temperature.tolist() == [0, 0.2, 0.2, 0, 0, 0.2, 0.2]


def test_ablations_that_would_repeat_an_arm_are_left_out():
    plain = dataclasses.replace(SAMPLING, js_sigma=0.0, min_temperature=0.0)
    found = arms(["sda"], ["instructed", "steering_only", "temperature_only", "fixed"], sampling=plain)
    assert found.method.tolist() == ["base", "sda", "instructed"]


def test_each_family_of_vectors_is_one_set_of_arms_with_alphas_of_its_own():
    found = arms(["caa"], ["shuffled", "random"])
    assert rows(found, "vector", "profile", "alpha") == [
        ("", "none", 0),
        ("population@1", "none", 0.5),
        ("random@2", "none", 0.5),
        ("dislike@3", "own", 7.5),
        ("dislike_shuffled@4", "shuffled", 7.5),
    ]


def test_without_their_controls_neither_random_nor_shuffled_vectors_steer():
    assert arms(["caa"], []).vector.tolist() == ["", "population@1", "dislike@3"]


def test_gated_and_time_limited_arms_are_the_populations_alone():
    found = arms(["caa"], [], gate="gate@8", more_positions=["first_k:8"])
    assert rows(found, "vector", "positions", "factor") == [
        ("", "", ""),
        ("population@1", "all", ""),
        ("population@1", "first_k:8", ""),
        ("population@1", "all", "gate@8"),
        ("dislike@3", "all", ""),
    ]


def test_a_vector_beside_a_logit_rule_is_an_arm_of_its_own():
    found = arms(["expert_anti_expert"], ["shuffled"], strengths=Strengths([1.0], vector_alpha=0.3))
    assert rows(found, "method", "profile", "vector", "vector_alpha") == [
        ("base", "none", "", 0),
        ("expert_anti_expert", "own", "", 0),
        ("expert_anti_expert", "shuffled", "", 0),
        ("expert_anti_expert", "own", "population@1", 0.3),
    ]


def test_an_unknown_control_is_refused_naming_those_there_are():
    with pytest.raises(ValueError, match=r"control 'placebo' is none of prompt_only, .*instructed"):
        arms(["sda"], ["placebo"])
