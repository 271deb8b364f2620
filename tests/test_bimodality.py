"""Two peaks: the statistic by hand, the level under every curve with one peak, and power against a real dip."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from steerlib.evaluation import paired_interval, point_peaks, two_peaks
from steerlib.evaluation.responses import _t

ALPHAS = [2.5, 5.0, 7.5, 10.0, 12.5, 15.0, 17.5]
USERS, PER_USER = 24, 4
CLUSTERS = np.arange(USERS).repeat(PER_USER)
FLAT = [0.0] * 7
ONE_PEAK = {
    "flat": FLAT,
    "falling": [0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0],
    "a plateau behind a cliff": [3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    "a peak in the middle of a plateau": [0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0],
}
DIP = [0.0, 0.5, 1.0, 0.2, 0.2, 1.0, 0.5]


def curve(means, seed):
    """Skewed values with a part of the prompt's, one of the user's and one of the user's at each alpha."""
    rng = np.random.default_rng(seed)
    shared = rng.exponential(1, USERS)[CLUSTERS, None] + rng.exponential(1, (USERS * PER_USER, 1))
    own = 0.4 * rng.standard_normal((USERS, 7))[CLUSTERS] + rng.exponential(1, (USERS * PER_USER, 7))
    return pd.DataFrame(shared + own + np.array(means), columns=ALPHAS)


@pytest.mark.parametrize("means", ONE_PEAK.values(), ids=ONE_PEAK)
def test_one_peak_is_taken_for_two_no_more_often_than_the_level_says(means):
    claims = [
        two_peaks(curve(means, seed), CLUSTERS, better="higher", n_resamples=500).verdict == "two peaks"
        for seed in range(200)
    ]
    assert np.mean(claims) <= 0.05 + 0.025


def test_a_real_dip_is_found_between_the_right_peaks():
    found = [two_peaks(curve(DIP, seed), CLUSTERS, better="higher", n_resamples=500) for seed in range(60)]
    claimed = [one for one in found if one.verdict == "two peaks"]
    assert len(claimed) > 50
    assert all(one.peak_1 < one.valley < one.peak_2 for one in claimed)
    at = pd.DataFrame(claimed)
    assert at["peak_1"].mode()[0] == 7.5
    assert at["peak_2"].mode()[0] == 15.0
    assert at["valley"].isin([10.0, 12.5]).mean() > 0.95


def test_the_statistic_is_the_weaker_side_of_the_deepest_dip():
    values = curve(DIP, 0)
    found = two_peaks(values, CLUSTERS, better="higher")

    def t(better, worse):
        one = paired_interval(values[worse], values[better], CLUSTERS, level=0.95)
        return one.value / ((one.high - one.low) / 2 / student.ppf(0.975, USERS - 1))

    every = {(a, b, c): min(t(a, b), t(c, b)) for a, b, c in combinations(ALPHAS, 3)}
    best = max(every, key=lambda triple: every[triple])
    # The jackknife leaves one user out of the mean too: K / (K - 1) apart for equal users.
    assert found.statistic == pytest.approx(every[best], rel=0.05)
    assert (found.peak_1, found.valley, found.peak_2) == best
    means = values.mean()
    assert found.dip == pytest.approx(min(means[best[0]], means[best[2]]) - means[best[1]])


def test_flipped_statistics_are_those_of_flipped_users():
    rng = np.random.default_rng(0)
    sums, sizes = rng.standard_normal((7, 3)), np.array([1.0, 2, 3, 1, 2, 5, 1])
    signs = rng.choice([-1.0, 1.0], (4, 7))
    for row, one in zip(signs, _t(signs, sums, sizes), strict=True):
        flipped = row[:, None] * sums
        mean = flipped.sum(axis=0) / 15
        error = np.sqrt(7 / 6 * ((flipped - sizes[:, None] * mean) ** 2).sum(axis=0)) / 15
        assert one == pytest.approx(mean / error)


def test_a_distance_and_the_reduction_from_base_give_the_same_verdict():
    distance = curve(DIP, 1) * -0.01 + 0.2
    reduction = 0.3 - distance
    assert two_peaks(distance, CLUSTERS)[:6] == pytest.approx(
        two_peaks(reduction, CLUSTERS, better="higher")[:6]
    )


def test_points_without_a_dip_are_not_two_peaks_and_name_none():
    rising = pd.DataFrame(np.arange(3.0) + np.zeros((20, 1)), columns=[1.0, 2.0, 3.0])
    rising += np.random.default_rng(0).normal(0, 1e-3, rising.shape)
    found = two_peaks(rising, better="higher")
    assert found.verdict == "two peaks are not shown"
    assert found.p == 1.0
    assert np.isnan(found.valley)


def test_columns_may_come_in_any_order_and_equal_alphas_add_nothing():
    values = curve(DIP, 2)
    assert two_peaks(values[values.columns[::-1]], CLUSTERS) == two_peaks(values, CLUSTERS)
    same = pd.concat([values, values[[17.5]].rename(columns={17.5: 20.0})], axis=1)
    assert (
        two_peaks(same, CLUSTERS, better="higher").valley
        == two_peaks(values, CLUSTERS, better="higher").valley
    )


def test_too_few_users_or_alphas_are_not_testable():
    values = curve(DIP, 3)
    assert two_peaks(values[:20], CLUSTERS[:20]).verdict == "not testable: 7 alphas, 5 users"
    assert two_peaks(values[[2.5, 5.0]], CLUSTERS).verdict == "not testable: 2 alphas, 24 users"


def test_bad_values_are_refused():
    values = curve(DIP, 4)
    with pytest.raises(ValueError, match="better must be 'lower' or 'higher', not 'max'"):
        two_peaks(values, better="max")
    with pytest.raises(ValueError, match="row 3 is nan"):
        two_peaks(values.mask(values.index.to_series() == 3), CLUSTERS)
    with pytest.raises(ValueError, match=r"alpha 2\.5 has two columns"):
        two_peaks(pd.concat([values, values[[2.5]]], axis=1))


def test_peaks_of_points_are_what_an_eye_sees():
    assert point_peaks(pd.Series({7.5: 0.3, 12.5: 0.5, 17.5: 0.2, 20.0: 0.4})) == [7.5, 17.5]
    assert point_peaks(pd.Series({1.0: 1, 2.0: 3, 3.0: 3, 4.0: 2}), better="higher") == []
    with pytest.raises(ValueError, match="points at different alphas"):
        point_peaks(pd.Series([1.0, 2.0], index=[1.0, 1.0]))
