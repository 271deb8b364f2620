"""Intervals: against closed forms, at their limits, and their coverage on skewed clustered data."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, ttest_1samp
from studies.interval_coverage import draw_study, simulate
from studies.realtoxicity import sign_flip_test

from steerlib.evaluation import cluster_interval, max_t_band, paired_interval
from steerlib.evaluation.intervals import share_interval

REDUCTION = {"statistic": "reduction_percent"}
skewed = partial(draw_study, kind="skewed")


def test_clusters_of_one_prompt_give_the_usual_t_interval():
    base, method = np.random.default_rng(0).random((2, 30))
    expected = ttest_1samp(method - base, 0).confidence_interval()
    found = paired_interval(base, method)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (found.n, found.n_clusters, found.how) == (30, 30, "cluster-t")
    values, users = np.random.default_rng(0).random(40), np.repeat(np.arange(10), 4)
    expected = ttest_1samp(values.reshape(10, 4).mean(axis=1), 0).confidence_interval()
    found = cluster_interval(values, users)  # of equal clusters: the t interval of their means
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_bounds_of_a_ratio_are_those_that_the_sign_flip_test_does_not_reject():
    base, method, users = skewed(np.random.default_rng(4), 10)
    found = paired_interval(base, method, users, statistic="change_percent")
    low, high = 1 + found.low / 100, 1 + found.high / 100
    for inside, outside in ((low, low - 1e-6), (high, high + 1e-6)):
        assert sign_flip_test(method - inside * base, users) > 0.05
        assert sign_flip_test(method - outside * base, users) <= 0.05


def test_a_reduction_never_passes_100_percent_and_too_few_clusters_leave_it_unbounded():
    base, method, users = skewed(np.random.default_rng(0), 12, kept=0.01)
    found = paired_interval(base, method, users, **REDUCTION)
    assert 90 < found.low < found.high <= 100
    five = np.arange(len(base)) % 5  # 2 of 32 patterns are above 5 %
    assert paired_interval(base, method, five, **REDUCTION)[1:3] == (-np.inf, np.inf)
    change = paired_interval(base, method, users, statistic="change_percent")
    assert (found.value, found.low, found.high) == (-change.value, -change.high, -change.low)
    assert found.value == pytest.approx(100 * (1 - method.mean() / base.mean()))
    one_sided = paired_interval([0.0] * 19 + [1.0], [0.1] * 19 + [0.5], **REDUCTION)
    assert one_sided.low == -np.inf


def test_shares_stay_within_their_range_and_clusters_that_agree_have_exact_bounds():
    found = share_interval(np.zeros(12))
    assert (found.low, found.high) == pytest.approx((0, binomtest(0, 12).proportion_ci().high))
    tied = share_interval(np.full(24, 0.5), np.arange(24) // 2)
    assert tied.low < 0.5 < tied.high  # all ties are not certainty
    assert share_interval(np.full(5, -1.0), within=(-1, 1)).low == -1
    assert cluster_interval(np.zeros(9), within=(-1, 1))[1:3] == pytest.approx((-0.3363, 0.3363), abs=1e-4)
    nearly = share_interval([1.0] * 16 + [0.0])
    assert 0 < nearly.low < nearly.value < nearly.high < 1


def test_one_user_has_no_interval_and_bad_input_is_refused_naming_it():
    found = paired_interval([1.0, 2.0], [1.0, 1.0], ["u", "u"])
    assert (found.value, found.how) == (-0.5, "none: one cluster")
    assert np.isnan([found.low, found.high]).all()
    for given, settings, named in (
        (([], []), {}, r"\(0,\)"),
        (([1.0, 2.0], [1.0, np.nan]), {}, "row 1"),
        (([1.0, 2.0], [1.0, 2.0], ["u"]), {}, r"\(2,\)"),
        (([1.0], [1.0]), {"statistic": "median"}, "'median'"),
        (([0.0, 0.0], [1.0, 1.0]), REDUCTION, "denominator"),
    ):
        with pytest.raises(ValueError, match=named):
            paired_interval(*given, **settings)


def test_the_defaults_cover_skewed_and_concentrated_users():
    found = simulate([8, 24], runs=300).query("interval.str.contains('default')")
    found = found.set_index(["quantity", "data", "n_clusters"]).sort_index()
    assert (found.loc[["reduction", "share"], "coverage"] >= 89).all()  # 300 runs: 1.3 points of noise
    assert (found.loc[("difference", "skewed"), "coverage"] >= 89).all()
    assert (found.loc["difference", "false_effects"] <= 6).all()  # 2.5 nominal
    assert (found.loc["reduction", "false_effects"] <= 9).all()
    assert (found.loc["reduction", "above_100"] == 0).all()


def test_a_band_over_alpha_is_wider_than_each_interval_and_has_no_width_without_spread():
    rng = np.random.default_rng(5)
    base, _, users = skewed(rng, 24)
    change = pd.DataFrame({a: base * (0.3 * rng.normal(size=len(base)) - 0.1 * a) for a in (1.0, 0.5, 2.0)})
    band = max_t_band(change.assign(**{"0": 0.0}).rename(columns={"0": 0.0}), users)
    assert band["alpha"].tolist() == [0, 0.5, 1, 2]
    assert band.loc[0, ["value", "low", "high"]].abs().max() == 0
    for row in band[1:].itertuples():
        single = cluster_interval(change[row.alpha], users)
        assert row.value == pytest.approx(single.value)
        assert row.high - row.low > 1.05 * (single.high - single.low)


def test_the_band_of_a_flat_curve_seldom_misses_anywhere():
    curves = np.random.default_rng(11).normal(size=(60, 24, 6))
    bands = [max_t_band(pd.DataFrame(curve)) for curve in curves]
    missed = [((band["low"] > 0) | (band["high"] < 0)).any() for band in bands]
    assert np.mean(missed) <= 0.13  # six separate intervals would miss in about a quarter


def test_sign_flips_are_enumerated_and_a_cluster_is_flipped_as_a_whole():
    # 8 sign patterns, two of them as far from 0 as what was seen.
    assert sign_flip_test([1.0, 1.0, 1.0]) == pytest.approx(0.25)
    assert sign_flip_test([0.0, 0.0, 0.0]) == 1.0
    assert sign_flip_test(np.ones(10), np.repeat(["a", "b"], 5)) == pytest.approx(0.5)
