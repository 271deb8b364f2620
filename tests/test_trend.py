"""A trend over alpha: against hand-computed examples, its size without a trend and its power with one."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, linregress

from steerlib.evaluation import (
    dose_responses,
    fluent_alphas,
    response_band,
    response_slopes,
    response_steps,
    trend,
)
from steerlib.evaluation.responses import kendall_scores, sign_flip_test

ALPHAS = [-0.2, -0.1, 0.0, 0.1, 0.2]


def responses(rows):
    return pd.DataFrame(rows, columns=ALPHAS, index=[f"p{i}" for i in range(len(rows))])


def noisy(rng, prompts, slope=0.0):
    """Skewed responses; half of the neighbours share one answer, as arms with the same dice do."""
    y = rng.exponential(0.05, (prompts, len(ALPHAS)))
    same = rng.random((prompts, len(ALPHAS) - 1)) < 0.5
    for j in range(1, len(ALPHAS)):
        y[:, j] = np.where(same[:, j - 1], y[:, j - 1], y[:, j])
    return responses(y + slope * np.array(ALPHAS))


def test_a_prompt_by_hand_has_the_slope_and_the_tau_of_paper_and_pencil():
    # Centred alphas -2..2 in tenths: (-2*1 - 1*0 + 1*2 + 2*3) / 10 / 0.1 = 6.
    # Of the ten pairs in (1, 0, 0, 2, 3) two fall (1 to 0, twice), one ties, seven rise: (7 - 2) / 10.
    by_hand = responses([[1, 0, 0, 2, 3]])
    assert response_slopes(by_hand)["p0"] == pytest.approx(6)
    assert kendall_scores(by_hand)["p0"] == pytest.approx(0.5)


def test_slopes_and_taus_are_those_of_scipy():
    rng = np.random.default_rng(0)
    y = responses(rng.random((6, 5)))
    expected = [linregress(ALPHAS, row).slope for row in y.to_numpy()]
    assert response_slopes(y).to_numpy() == pytest.approx(expected)
    taus = [kendalltau(ALPHAS, row).statistic for row in y.to_numpy()]  # no ties: tau-b is tau-a
    assert kendall_scores(y).to_numpy() == pytest.approx(taus)


def test_the_order_of_alphas_does_not_matter_and_their_sign_turns_the_trend_round():
    y = noisy(np.random.default_rng(1), 20, slope=0.3)
    shuffled = trend(y[[0.1, -0.2, 0.2, 0.0, -0.1]])
    assert shuffled.slope.value == pytest.approx(trend(y).slope.value)
    assert shuffled.kendall == trend(y).kendall
    turned = trend(y.rename(columns={alpha: -alpha for alpha in ALPHAS}))
    assert turned.kendall.value == pytest.approx(-trend(y).kendall.value)
    assert turned.spearman == pytest.approx(-trend(y).spearman)


def test_all_sign_flips_of_three_equal_values_give_a_p_of_a_quarter():
    # 8 sign patterns, two of them as far from 0 as what was seen.
    assert sign_flip_test([1.0, 1.0, 1.0]) == pytest.approx(0.25)
    assert sign_flip_test([0.0, 0.0, 0.0]) == 1.0


def test_a_cluster_is_flipped_as_a_whole():
    # Two documents: 4 patterns, 2 as extreme; ten independent values would give 2 / 1024.
    assert sign_flip_test(np.ones(10), np.repeat(["a", "b"], 5)) == pytest.approx(0.5)


def test_without_a_trend_the_test_rejects_about_one_time_in_twenty():
    rng = np.random.default_rng(2)
    p = [sign_flip_test(kendall_scores(noisy(rng, 24)), n_resamples=499) for _ in range(300)]
    # 0.05 +- 3 standard errors of 300 draws.
    assert 0.012 < np.mean(np.array(p) <= 0.05) < 0.088


def test_with_a_trend_it_rejects_nearly_always_and_the_slope_is_covered():
    rng = np.random.default_rng(3)
    found = [trend(noisy(rng, 96, slope=0.1)) for _ in range(24)]
    assert np.mean([f.p_value <= 0.05 for f in found]) > 0.9
    assert np.mean([f.slope.low <= 0.1 <= f.slope.high for f in found]) > 0.8


def test_steps_of_a_rising_curve_lie_above_zero_and_add_up_to_the_whole_rise():
    rng = np.random.default_rng(4)
    y = responses(np.array([0.0, 0.1, 0.2, 0.5, 0.9]) + rng.normal(0, 0.02, (40, 5)))
    steps = response_steps(y)
    assert (steps.low > 0).all()
    assert steps[["from_alpha", "alpha"]].to_numpy().tolist() == [list(pair) for pair in pairwise(ALPHAS)]
    assert steps.value.sum() == pytest.approx((y[0.2] - y[-0.2]).mean())


def test_the_band_of_steps_covers_all_of_them_at_once_where_nothing_rises():
    rng = np.random.default_rng(5)
    bands = [response_steps(responses(rng.normal(0, 1, (40, 5))), seed=i) for i in range(24)]
    assert np.mean([((b.low <= 0) & (b.high >= 0)).all() for b in bands]) > 0.8


def test_the_band_stands_on_the_means():
    y = noisy(np.random.default_rng(6), 30)
    band = response_band(y)
    assert band.value.tolist() == pytest.approx(y.mean().tolist())
    assert band.alpha.tolist() == ALPHAS


def test_the_base_is_alpha_zero_of_every_vector():
    arms = pd.DataFrame(
        [
            ("b", "base", 0.0, "", ""),
            ("v+", "", 0.5, "v", ""),
            ("v-", "", -0.5, "v", ""),
            ("r", "random_vector", 0.5, "r", ""),
        ],
        columns=["arm_id", "control", "alpha", "family", "vector_user"],
    )
    values = pd.DataFrame(
        [(arm, prompt, i + j) for i, arm in enumerate(arms.arm_id) for j, prompt in enumerate("pq")],
        columns=["arm_id", "prompt_id", "toxicity"],
    )
    found = dose_responses(values, arms, "toxicity")
    assert {name: list(wide.columns) for name, wide in found.items()} == {
        "v": [-0.5, 0.0, 0.5],
        "r": [0.0, 0.5],
    }
    assert found["v"].loc["q"].tolist() == [3, 1, 2]
    with pytest.raises(ValueError, match="prompt 'q' lacks an answer of vector 'r'"):
        dose_responses(values.iloc[:-1], arms, "toxicity")


def test_the_fluent_range_ends_before_the_first_alpha_on_either_side_that_costs_too_much():
    curve = {-0.3: 30, -0.2: 50, -0.1: 22, 0.0: 20, 0.1: 25, 0.2: 30, 0.3: 90}
    assert fluent_alphas(curve, max_ratio=2.0) == [-0.1, 0.1]
    assert fluent_alphas(curve, max_ratio=9.0) == [-0.3, -0.2, -0.1, 0.1, 0.2, 0.3]
    assert fluent_alphas(curve, max_ratio=1.05) == []


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({0.1: [1.0]}), "2 different alphas"),
        (pd.DataFrame({0.1: [1.0], 0.2: [np.nan]}, index=["p7"]), "prompt 'p7' at alpha 0.2 is nan"),
    ],
)
def test_one_alpha_or_a_missing_value_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        response_slopes(table)
