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

PLAIN = torch.tensor([[1.0, 0.0, -1.0]])
INSTRUCTED = torch.tensor([[0.0, 2.0, 1.0]])
ANTI = torch.tensor([[3.0, 1.0, 0.0]])


def test_each_rule_by_hand():
    # 1 + 2 (0 - 3) = -5; 0 + 2 (2 - 1) = 2; -1 + 2 (1 - 0) = 1
    assert_close(expert_anti_expert(PLAIN, INSTRUCTED, ANTI, 2.0), torch.tensor([[-5.0, 2.0, 1.0]]))
    # 1 + 2 (1 - 3) = -3; 0 + 2 (0 - 1) = -2; -1 + 2 (-1 - 0) = -3
    assert_close(anti_expert(PLAIN, ANTI, 2.0), torch.tensor([[-3.0, -2.0, -3.0]]))
    # k a = 2 x 0.5 = 1: 0 + (0 - 1) = -1; 2 + (2 - 0) = 4; 1 + (1 + 1) = 3
    assert_close(sda(PLAIN, INSTRUCTED, 0.5), torch.tensor([[-1.0, 4.0, 3.0]]))


def test_the_amplification_has_the_papers_values():
    scores = np.array([100, 95, 90, 80, 70, 60, 50, 40, 30, 20, 10])
    expected = [0, 0.026, 0.055, 0.124, 0.211, 0.322, 0.462, 0.635, 0.823, 0.964, 0.9998]
    np.testing.assert_allclose(amplification(scores), expected, atol=5.1e-4)


def test_the_score_functions_by_hand_at_fifty():
    by_hand = {
        "sigmoid": 2 * (1 / (1 + math.exp(-1)) - 0.5),
        "exponential_shifted": math.exp(-1.5),
        "exponential": math.exp(-0.5),
        "inverse": 2,
        "linear_signed": 0,
        "linear": 0.5,
        "cosine": math.sqrt(0.5),
    }
    assert by_hand.keys() == SCORE_FUNCTIONS.keys()
    for name, expected in by_hand.items():
        assert amplification(50.0, name) == pytest.approx(expected), name


@pytest.mark.parametrize("score", [0.0, -1.0, 100.5, float("nan")])
def test_a_score_outside_the_range_is_refused_naming_its_row_and_an_unknown_function_by_name(score):
    with pytest.raises(ValueError, match=r"score .* in row 2 is not in \(0, 100\]"):
        amplification(np.array([50, 60, score]))
    with pytest.raises(ValueError, match="'tanh'"):
        amplification(50.0, "tanh")


def test_the_divergence_is_nought_for_equal_and_ln_2_for_disjoint_branches():
    same = js_divergence(PLAIN, PLAIN + 7)
    apart = js_divergence(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]]))
    assert_close(torch.cat([same, apart]), torch.tensor([0, math.log(2)], dtype=torch.float64))


def test_the_temperature_is_t0_where_the_branches_agree_and_half_at_sigma():
    js = js_divergence(PLAIN, INSTRUCTED).item()
    same = js_temperature(PLAIN, PLAIN, t0=0.6, sigma=0.01, t_min=0.2)
    half = js_temperature(PLAIN, INSTRUCTED, t0=0.6, sigma=js)
    floored = js_temperature(PLAIN, INSTRUCTED, t0=0.6, sigma=0.01, t_min=0.2)
    assert torch.cat([same, half, floored]).tolist() == pytest.approx([0.6, 0.3, 0.2])


def test_every_rule_with_an_alpha_names_its_control():
    for rule in filter(lambda one: one.has_alpha, RULES.values()):
        assert rule.control in ("shuffled_profile", "random_vector"), rule.name
