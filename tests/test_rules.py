import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from steerlib.rules import (
    RULES,
    SCORE_FUNCTIONS,
    amplification,
    anti_expert,
    expert_anti_expert,
    js_divergence,
    js_temperature,
    sda,
)

Z_BASE = torch.tensor([[1.0, 0.0, -1.0]])
Z_EXPERT = torch.tensor([[0.0, 2.0, 1.0]])
Z_ANTI = torch.tensor([[3.0, 1.0, 0.0]])


def test_expert_anti_expert_by_hand():
    # 1 + 2 (0 - 3) = -5; 0 + 2 (2 - 1) = 2; -1 + 2 (1 - 0) = 1
    assert_close(expert_anti_expert(Z_BASE, Z_EXPERT, Z_ANTI, 2.0), torch.tensor([[-5.0, 2.0, 1.0]]))


def test_anti_expert_is_classifier_free_guidance_with_scale_one_plus_alpha():
    alpha = 2.2
    conditional, negative = Z_BASE.log_softmax(-1), Z_ANTI.log_softmax(-1)
    guided = negative + (1 + alpha) * (conditional - negative)
    assert_close(anti_expert(Z_BASE, Z_ANTI, alpha).softmax(-1), guided.softmax(-1))


PLAIN = torch.tensor([[1.0, 0.0, -1.0]])
INSTRUCTED = torch.tensor([[0.0, 2.0, 1.0]])


def test_sda_by_hand():
    # k a = 2 x 0.5 = 1: 0 + (0 - 1) = -1; 2 + (2 - 0) = 4; 1 + (1 + 1) = 3
    assert_close(sda(PLAIN, INSTRUCTED, 0.5), torch.tensor([[-1.0, 4.0, 3.0]]))


def test_the_amplification_has_the_papers_values():
    scores = np.array([100, 95, 90, 80, 70, 60, 50, 40, 30, 20, 10])
    expected = [0, 0.026, 0.055, 0.124, 0.211, 0.322, 0.462, 0.635, 0.823, 0.964, 0.9998]
    np.testing.assert_allclose(amplification(scores), expected, atol=5.1e-4)
    np.testing.assert_allclose(
        amplification(scores), 2 * (1 / (1 + np.exp(1 - 100 / scores)) - 0.5), atol=1e-12
    )


def test_the_other_score_functions_by_hand_at_fifty():
    by_hand = {
        "exponential_shifted": math.exp(-1.5),
        "exponential": math.exp(-0.5),
        "inverse": 2,
        "linear_signed": 0,
        "linear": 0.5,
        "cosine": math.sqrt(0.5),
    }
    assert by_hand.keys() | {"sigmoid"} == SCORE_FUNCTIONS.keys()
    for name, expected in by_hand.items():
        assert amplification(50.0, name) == pytest.approx(expected), name


@pytest.mark.parametrize("score", [0.0, -1.0, 100.5, float("nan")])
def test_a_score_outside_the_range_is_refused_naming_its_row_and_an_unknown_function_by_name(score):
    with pytest.raises(ValueError, match=r"score .* in row 2 is not in \(0, 100\]"):
        amplification(np.array([50, 60, score]))
    with pytest.raises(ValueError, match="'tanh'"):
        amplification(50.0, "tanh")


def test_the_divergence_by_hand_is_nought_for_equal_and_ln_2_for_disjoint_branches():
    same = js_divergence(PLAIN, PLAIN + 7)
    apart = js_divergence(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]]))
    assert_close(torch.cat([same, apart]), torch.tensor([0, math.log(2)], dtype=torch.float64))
    # P1 = (1/2, 1/2), P2 = (1, 0), M = (3/4, 1/4): (ln 2/3 + ln 2)/4 + ln(4/3)/2
    found = js_divergence(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log())
    expected = (math.log(2 / 3) + math.log(2)) / 4 + math.log(4 / 3) / 2
    assert found.item() == pytest.approx(expected, abs=1e-7)


def test_the_temperature_is_t0_where_the_branches_agree_and_half_at_sigma():
    js = js_divergence(PLAIN, INSTRUCTED).item()
    same = js_temperature(PLAIN, PLAIN, t0=0.6, sigma=0.01, t_min=0.2)
    half = js_temperature(PLAIN, INSTRUCTED, t0=0.6, sigma=js)
    floored = js_temperature(PLAIN, INSTRUCTED, t0=0.6, sigma=0.01, t_min=0.2)
    assert torch.cat([same, half, floored]).tolist() == pytest.approx([0.6, 0.3, 0.2])


def test_every_rule_is_its_line_at_any_alpha_and_its_zero_at_nought():
    names = ("base", "expert", "anti", "instructed", "steered")
    z = dict(
        zip(names, torch.randn(5, 4, 9, generator=torch.Generator().manual_seed(2)).double(), strict=True)
    )
    alpha = torch.tensor([0.0, 0.3, 1.0, 2.2], dtype=torch.float64)
    for rule in RULES.values():
        intercept, slope = rule.line(z)
        assert_close(rule.steer(z, alpha), intercept + alpha[:, None] * slope)
        if rule.acts_on == "logits":
            assert torch.equal(intercept, RULES[rule.zero].steer(z, alpha))
            assert rule.control in ("shuffled_profile", "random_vector")
        else:
            assert not slope.any()
