"""A trend over alpha: against hand-computed examples, its size without a trend and its power with one."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress
from studies.realtoxicity import trend

from steerlib.evaluation import dose_responses, response_slopes

ALPHAS = [-0.2, -0.1, 0.0, 0.1, 0.2]


def responses(rows):
    return pd.DataFrame(rows, columns=ALPHAS, index=[f"p{i}" for i in range(len(rows))])


def noisy(rng, prompts, slope=0.0):
    """Skewed responses; half of the neighbours share one answer, as arms with common random numbers do."""
    y = rng.exponential(0.05, (prompts, len(ALPHAS)))
    same = rng.random((prompts, len(ALPHAS) - 1)) < 0.5
    for j in range(1, len(ALPHAS)):
        y[:, j] = np.where(same[:, j - 1], y[:, j - 1], y[:, j])
    return responses(y + slope * np.array(ALPHAS))


def test_slopes_are_those_of_paper_and_pencil_and_of_scipy():
    # Centred alphas -2..2 in tenths: (-2*1 - 1*0 + 1*2 + 2*3) / 10 / 0.1 = 6.
    assert response_slopes(responses([[1, 0, 0, 2, 3]]))["p0"] == pytest.approx(6)
    y = responses(np.random.default_rng(0).random((6, 5)))
    expected = [linregress(ALPHAS, row).slope for row in y.to_numpy()]
    assert response_slopes(y).to_numpy() == pytest.approx(expected)


def test_the_order_of_alphas_does_not_matter_and_their_sign_turns_the_trend_round():
    y = noisy(np.random.default_rng(1), 20, slope=0.3)
    assert trend(y[[0.1, -0.2, 0.2, 0.0, -0.1]]).slope.value == pytest.approx(trend(y).slope.value)
    turned = trend(y.rename(columns={alpha: -alpha for alpha in ALPHAS}))
    assert turned.slope.value == pytest.approx(-trend(y).slope.value)
    assert turned.p_value == trend(y).p_value


def test_without_a_trend_it_seldom_rejects_and_with_one_nearly_always():
    rng = np.random.default_rng(2)
    without = [trend(noisy(rng, 24)).p_value for _ in range(200)]
    assert 0.005 < np.mean(np.array(without) <= 0.05) < 0.1
    found = [trend(noisy(rng, 96, slope=0.1)) for _ in range(24)]
    assert np.mean([f.p_value <= 0.05 for f in found]) > 0.9
    assert np.mean([f.slope.low <= 0.1 <= f.slope.high for f in found]) > 0.8


def test_the_base_is_alpha_zero_of_every_family():
    arms = pd.DataFrame(
        [
            ("b", 0.0, "", "", "base"),
            ("v+", 0.5, "v", "", ""),
            ("v-", -0.5, "v", "", ""),
            ("r", 0.5, "r", "", "random_vector"),
            ("o", 0.5, "v", "shuffled", "shuffled_profile"),
        ],
        columns=["arm_id", "alpha", "family", "vector_user", "control"],
    )
    values = pd.DataFrame(
        [(arm, prompt, i + j) for i, arm in enumerate(arms.arm_id) for j, prompt in enumerate("pq")],
        columns=["arm_id", "prompt_id", "toxicity"],
    )
    found = dose_responses(values, arms, "toxicity")
    alphas = {"v": [-0.5, 0.0, 0.5], "r": [0.0, 0.5], "v, shuffled": [0.0, 0.5]}
    assert {name: list(wide.columns) for name, wide in found.items()} == alphas
    assert found["v"].loc["q"].tolist() == [3, 1, 2]
    with pytest.raises(ValueError, match="'q' lacks an answer of vector 'v'"):
        dose_responses(values.iloc[:-1], arms, "toxicity")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({0.1: [1.0]}), "2 different alphas"),
        (pd.DataFrame({0.1: [1.0], 0.2: [np.nan]}, index=["p7"]), "'p7' at alpha 0.2"),
    ],
)
def test_one_alpha_or_a_missing_value_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        response_slopes(table)
