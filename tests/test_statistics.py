"""Intervals: against closed forms, at their limits, and their coverage on skewed clustered data."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from steerlib.evaluation import (
    STATISTICS,
    choose_alpha,
    cluster_interval,
    crossed_interval,
    max_t_band,
    paired_interval,
    seed_interval,
    sign_test,
    trimmed_change,
)
from steerlib.evaluation.intervals import _trimmed_means


def skewed(rng, n_clusters):
    """Distances of base and method, users of unequal size and lognormal level; the true reduction is known."""
    users = np.repeat(np.arange(n_clusters), rng.integers(1, 8, n_clusters))
    base = 0.02 * rng.lognormal(0, 1, n_clusters)[users] * rng.lognormal(0, 0.5, len(users))
    return base, base * 0.85 * rng.lognormal(-0.18, 0.6, len(users)), users


TRUE_DIFFERENCE = -0.15 * 0.02 * np.exp(0.5 + 0.125)


def coverage(n_clusters, runs, how, statistic="difference", truth=TRUE_DIFFERENCE):
    rng = np.random.default_rng(7)
    found = [
        paired_interval(*skewed(rng, n_clusters), statistic=statistic, how=how, n_resamples=999)
        for _ in range(runs)
    ]
    return np.mean([interval.low <= truth <= interval.high for interval in found])


def test_clusters_of_one_prompt_give_the_usual_t_interval():
    rng = np.random.default_rng(0)
    base, method = rng.random(30), rng.random(30)
    expected = ttest_1samp(method - base, 0).confidence_interval()
    found = paired_interval(base, method)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (found.n, found.n_clusters, found.how) == (30, 30, "cluster-t")


def test_equal_clusters_give_the_t_interval_of_their_means():
    rng = np.random.default_rng(0)
    values, users = rng.random(40), np.repeat(np.arange(10), 4)
    expected = ttest_1samp(values.reshape(10, 4).mean(axis=1), 0).confidence_interval()
    found = cluster_interval(values, users)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("how", ["cluster-t", "bootstrap-t", "percentile"])
def test_equal_arms_have_reduction_0_and_an_interval_of_no_width(how):
    base = np.random.default_rng(0).random(60)
    found = paired_interval(base, base, np.repeat(np.arange(12), 5), statistic="reduction_percent", how=how)
    assert (found.value, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-9)


@pytest.mark.parametrize("how", ["cluster-t", "bootstrap-t", "percentile"])
@pytest.mark.parametrize("statistic", ["difference", "reduction_percent", "win_rate"])
def test_the_order_of_prompts_does_not_matter(how, statistic):
    rng = np.random.default_rng(3)
    base, method, users = skewed(rng, 20)
    other = rng.permutation(len(base))
    a = paired_interval(base, method, users, statistic=statistic, how=how)
    b = paired_interval(base[other], method[other], users[other], statistic=statistic, how=how)
    assert a[:3] == pytest.approx(b[:3], rel=1e-9)


def test_the_three_intervals_agree_on_many_well_behaved_clusters():
    rng = np.random.default_rng(1)
    base = 1 + rng.random(400)
    method = base * (0.8 + 0.2 * rng.random(400))
    found = [
        paired_interval(base, method, statistic="reduction_percent", how=how)
        for how in ("cluster-t", "bootstrap-t", "percentile")
    ]
    for interval in found:
        assert interval.low == pytest.approx(found[0].low, abs=0.1)
        assert interval.high == pytest.approx(found[0].high, abs=0.1)


def test_ignoring_users_makes_the_interval_too_narrow():
    users = np.repeat(np.arange(10), 8)
    values = np.random.default_rng(0).normal(size=10)[users]
    apart, together = cluster_interval(values), cluster_interval(values, users)
    assert together.high - together.low > 2.5 * (apart.high - apart.low)


def test_perplexity_ratio_is_that_of_the_two_corpora():
    base = np.array([[2.0, 2], [3.0, 4]])
    method = np.array([[4.0, 2], [4.0, 3]])
    found = paired_interval(base, method, statistic="perplexity_ratio")
    assert found.value == pytest.approx(np.exp(8 / 5 - 5 / 6))


def test_one_user_has_a_value_and_no_interval_and_says_so():
    found = paired_interval([1.0, 2.0], [1.0, 1.0], ["u", "u"], statistic="reduction_percent")
    assert found.value == pytest.approx(100 / 3)
    assert np.isnan([found.low, found.high]).all()
    assert found.how == "none: one cluster"


def test_a_ratio_undefined_when_one_user_is_left_out_has_no_interval_and_says_so():
    found = paired_interval([1.0, 0.0], [0.5, 0.1], statistic="reduction_percent")
    assert np.isnan(found.low)
    assert found.how.startswith("none: undefined")


def test_bad_input_is_refused_naming_it():
    with pytest.raises(ValueError, match=r"not \(0,\) and \(0,\)"):
        paired_interval([], [])
    with pytest.raises(ValueError, match="method in row 1 is nan"):
        paired_interval([1.0, 2.0], [1.0, np.nan])
    with pytest.raises(ValueError, match=r"clusters must be \(2,\)"):
        paired_interval([1.0, 2.0], [1.0, 2.0], ["u"])
    with pytest.raises(ValueError, match="'median' is none of difference"):
        paired_interval([1.0], [1.0], statistic="median")
    with pytest.raises(ValueError, match="denominator is 0"):
        paired_interval([0.0, 0.0], [1.0, 1.0], statistic="reduction_percent")


def test_ten_thousand_resamples_of_240_prompts_take_less_than_a_second():
    rng = np.random.default_rng(0)
    base, method = rng.random(240), rng.random(240)
    start = time.perf_counter()
    for how in ("cluster-t", "percentile"):
        paired_interval(base, method, statistic="reduction_percent", how=how, n_resamples=10_000)
    assert time.perf_counter() - start < 1


def test_coverage_of_the_default_holds_with_24_skewed_users():
    assert 0.91 <= coverage(24, 400, "auto") <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize("n_clusters", [12, 24, 48, 100, 240])
@pytest.mark.parametrize(
    ("statistic", "truth"), [("difference", TRUE_DIFFERENCE), ("reduction_percent", 15.0)]
)
def test_the_default_covers_and_the_percentile_bootstrap_covers_less(n_clusters, statistic, truth):
    default = coverage(n_clusters, 1500, "auto", statistic, truth)
    assert 0.88 <= default <= 0.985
    assert coverage(n_clusters, 1500, "percentile", statistic, truth) <= default + 0.005


def test_seeds_use_t_with_n_minus_1():
    found = seed_interval([2.11, 10.0, 15.0, 22.97])
    expected = ttest_1samp([2.11, 10.0, 15.0, 22.97], 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert np.isnan(seed_interval([1.0]).low)


def test_an_interval_for_new_users_and_new_seeds_is_no_narrower_than_for_either():
    rng = np.random.default_rng(0)
    users, seeds = np.repeat(np.arange(20), 4), np.tile(np.arange(4), 20)
    method = rng.normal(size=80) + np.array([-1.0, 0.0, 0.5, 1.0])[seeds]
    both = crossed_interval(np.zeros(80), method, users, seeds)
    alone = cluster_interval(method, users)
    assert both.value == pytest.approx(alone.value)
    assert both.high - both.low > 2 * (alone.high - alone.low)


def test_a_band_over_alpha_is_wider_than_each_interval_and_its_limits_hold():
    rng = np.random.default_rng(5)
    base, _, users = skewed(rng, 24)
    methods = {a: base * (1 - 0.1 * a) * rng.lognormal(0, 0.3, len(base)) for a in (1.0, 0.5, 2.0)}
    band = max_t_band(base, {0.0: base, **methods}, users)
    assert band["alpha"].tolist() == [0, 0.5, 1, 2]
    assert band.loc[0, ["value", "low", "high"]].abs().max() < 1e-9
    for row in band[1:].itertuples():
        single = paired_interval(base, methods[row.alpha], users, statistic="reduction_percent")
        assert row.value == pytest.approx(single.value)
        assert row.high - row.low > 1.05 * (single.high - single.low)


def test_the_band_of_a_flat_curve_seldom_misses_anywhere():
    rng = np.random.default_rng(11)
    base = np.zeros((200, 24))
    curves = rng.normal(size=(200, 24, 6))
    missed = 0
    for zero, curve in zip(base, curves, strict=True):
        band = max_t_band(zero, dict(enumerate(curve.T)), statistic="difference", n_resamples=500)
        missed += ((band["low"] > 0) | (band["high"] < 0)).any()
    assert missed / 200 <= 0.1  # six separate intervals would miss in about a quarter


def test_an_untrimmed_change_is_the_mean_and_a_half_trimmed_one_the_median():
    rng = np.random.default_rng(2)
    base, method, users = skewed(rng, 20)
    change = method - base
    assert trimmed_change(base, method, users, trim=0).value == pytest.approx(change.mean())
    for rows in (slice(None), slice(1, None)):  # of an even and of an odd number
        found = trimmed_change(base[rows], method[rows], users[rows], trim=0.5)
        assert found.value == pytest.approx(np.median(change[rows]))
        assert found.low <= found.value <= found.high
    assert trimmed_change(np.zeros(10), np.arange(10.0)).value == pytest.approx(np.arange(1, 9).mean())


def test_resampled_medians_are_those_of_the_repeated_values():
    rng = np.random.default_rng(0)
    values, weights = np.sort(rng.normal(size=9)), rng.integers(0, 4, (50, 9)).astype(float)
    for trim, plain in ((0.5, np.median), (0.1, lambda v: trim_mean_exact(v, 0.1))):
        expected = [plain(np.repeat(values, w.astype(int))) for w in weights]
        assert _trimmed_means(values, weights, trim) == pytest.approx(expected)


def trim_mean_exact(values, share):
    """A fine grid of quantiles stands for cutting parts of values."""
    fine = np.repeat(values, 1000)
    cut = round(share * len(fine))
    return fine[cut : len(fine) - cut].mean()


def test_an_outlier_moves_the_mean_and_not_the_median():
    rng = np.random.default_rng(4)
    base = rng.random(40)
    method = base - 0.1 + 0.01 * rng.random(40)
    method[0] += 100
    assert paired_interval(base, method).value > 0
    for trim in (0.1, 0.5):
        found = trimmed_change(base, method, trim=trim)
        assert -0.11 < found.low <= found.value <= found.high < -0.08


def test_the_order_of_prompts_does_not_matter_to_median_or_trimmed_mean():
    rng = np.random.default_rng(3)
    base, method, users = skewed(rng, 20)
    other = rng.permutation(len(base))
    for labels in (users, None):
        for trim in (0.1, 0.5):
            a = trimmed_change(base, method, labels, trim=trim)
            moved = None if labels is None else labels[other]
            b = trimmed_change(base[other], method[other], moved, trim=trim)
            assert a[:3] == pytest.approx(b[:3], rel=1e-9)


def test_five_users_are_too_few_for_an_interval_of_a_median():
    base, users = np.zeros(12), np.arange(12) % 5
    found = trimmed_change(base, np.arange(12.0), users)
    assert np.isnan([found.low, found.high]).all()
    assert found.how == "none: 5 clusters"
    assert np.isfinite(trimmed_change(base, np.arange(12.0), np.arange(12) % 6).low)
    with pytest.raises(ValueError, match=r"trim must be in \[0, 0\.5\], not 0\.6"):
        trimmed_change(base, base, trim=0.6)


@pytest.mark.slow
@pytest.mark.parametrize("n_clusters", [12, 24, 48])
def test_intervals_of_median_and_trimmed_mean_cover(n_clusters):
    rng = np.random.default_rng(9)
    base, method, _ = skewed(rng, 300_000)
    change = np.sort(method - base)
    inner = change[round(0.1 * len(change)) : round(0.9 * len(change))]
    for trim, truth in ((0.5, np.median(change)), (0.1, inner.mean())):
        found = [trimmed_change(*skewed(rng, n_clusters), trim=trim, n_resamples=1000) for _ in range(600)]
        assert 0.9 <= np.mean([i.low <= truth <= i.high for i in found]) <= 0.985


def test_seeds_and_users_are_crossed_for_a_reduction_too():
    rng = np.random.default_rng(0)
    users, seeds = np.repeat(np.arange(20), 4), np.tile(np.arange(4), 20)
    base = 1 + rng.random(80)
    method = base * (0.8 + 0.1 * rng.random(80) + 0.1 * seeds)
    both = crossed_interval(base, method, users, seeds, statistic="reduction_percent")
    alone = paired_interval(base, method, users, statistic="reduction_percent")
    assert both.value == pytest.approx(alone.value)
    assert both.high - both.low > 2 * (alone.high - alone.low)


def test_the_sign_test_counts_users_and_leaves_ties_out():
    found = sign_test([1.0] * 8, [0.5] * 6 + [1.0, 1.0])
    assert found == (6, 2, 0, pytest.approx(2 / 2**6))
    assert sign_test([1.0], [1.0]).p_value == 1
    assert sign_test([1.0, 1.0], [0.0, 0.5], ["u", "u"]).fell == 1


def table(*rows):
    return pd.DataFrame(rows, columns=["alpha", "split", "value"])


def test_alpha_is_chosen_on_dev_rows_alone():
    assert (
        choose_alpha(table((0.5, "dev", 3.0), (1.0, "dev", 2.0), (0.5, "test", 1.0), (1.0, "test", 9.0)))
        == 0.5
    )


def test_ties_go_to_the_smaller_alpha_and_base_wins_where_nothing_helps():
    assert choose_alpha(table((2.0, "dev", 3.0), (1.0, "dev", 3.0))) == 1.0
    assert choose_alpha(table((1.0, "dev", -3.0), (2.0, "dev", 0.0))) == 0.0


def test_alpha_is_not_chosen_without_dev_rows_or_among_several_methods():
    with pytest.raises(ValueError, match="no dev rows"):
        choose_alpha(table((1.0, "test", 3.0)))
    with pytest.raises(ValueError, match=r"alpha 1\.0 has several dev rows"):
        choose_alpha(table((1.0, "dev", 3.0), (1.0, "dev", 2.0)))


def test_every_named_statistic_is_defined_on_equal_arms():
    pair = np.random.default_rng(0).random((10, 2)) + 0.1
    for name in STATISTICS:
        values = pair if name == "perplexity_ratio" else pair[:, 0]
        assert np.isfinite(paired_interval(values, values, statistic=name)[:3]).all()
