"""Confidence intervals of means, ratios and shares over prompts, clustered by user: one method for each.

    mean, difference   cluster-t: jackknife over clusters, Student's t with K - 1 degrees of freedom
    ratio of two sums  every theta that the sign-flip test of sum_k (top_k - theta bottom_k) does not reject
    share              Clopper-Pearson at the effective number of rows, p (1 - p) / error^2

`docs/results.md` has their coverage by simulation. Functions that end in `_bounds` take sums by cluster with any
leading axes (arms), so that a whole table is arithmetic over arrays; the others take one value a prompt.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, stdtrit  # scipy.stats takes half a second to import

Floats = NDArray[np.float64]
Range = tuple[float, float]
ANY: Range = (-np.inf, np.inf)
TAIL = 0.025
"""Of either side: every interval is one of 95 %."""
EXACT, DRAWN = 12, 2_048
"""Up to so many clusters all sign patterns are enumerated; above, so many are drawn."""


class Interval(NamedTuple):
    """A value with its confidence interval; `how` names the interval, or says why there is none (NaN bounds)."""

    value: float
    low: float
    high: float
    n: int
    n_clusters: int
    how: str


class Bounds(NamedTuple):
    """Values and their bounds, arrays of one shape; NaN where there is no interval, infinite where it is unbounded."""

    value: Floats
    low: Floats
    high: Floats


def cluster_sums(rows: ArrayLike, clusters: ArrayLike | None) -> tuple[Floats, Floats, int]:
    """Column sums of each cluster `(columns, K)`, its number of rows `(K,)`, and the number of rows.

    Rows are `(n,)` or `(n, columns)`, clusters a label of each row, or None for independent rows, whose order then does
    not matter. A ValueError for no rows, a value that is not finite, or clusters of another length or without a label.
    """
    values = np.asarray(rows, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or not len(values):
        raise ValueError(f"rows must be (n,) or (n, columns) with n > 0, not {np.shape(rows)}")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"row {bad[0, 0]} is {values[tuple(bad[0])]}, not a finite number")
    if clusters is None:
        return values[np.lexsort(values.T)].T, np.ones(len(values)), len(values)
    labels = np.asarray(clusters)
    if labels.shape != (len(values),):
        raise ValueError(f"clusters must be ({len(values)},) as the rows, not {labels.shape}")
    codes, _ = pd.factorize(labels, sort=True)
    if (codes < 0).any():
        raise ValueError(f"row {int(np.argmax(codes < 0))} has no cluster (missing label)")
    member = np.eye(codes.max() + 1)[codes]
    return values.T @ member, member.sum(axis=0), len(values)


@lru_cache(maxsize=256)
def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t."""
    return float(stdtrit(freedom, probability))


def jackknife_bounds(
    sums: Floats, sizes: Floats, of_means: Callable[[Floats], Floats], *, within: Range = ANY
) -> Bounds:
    """Cluster-t bounds of a function of column means.

        error^2 = (K - 1) / K sum_k (g_-k - g)^2,   g_-k without cluster k;   g -+ t_{K-1} error, cut to the range

    Where all clusters agree and the range [A, B] is finite, the bounds are those of an event seen in 0 of K clusters,
    q = 1 - .025^(1/K): g - q (g - A) and g + q (B - g). A width of 0 would claim certainty.

    Sums are `(columns, ..., K)`, sizes `(K,)` the rows of each cluster, `within` is the range of the statistic, which
    `of_means` takes from means `(columns, ...)` to `(...)`.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 11; the jackknife over clusters is CR3
    of MacKinnon, Nielsen and Webb, J. Applied Econometrics 2023.
    """
    k, total = len(sizes), sums.sum(axis=-1)
    with np.errstate(all="ignore"):
        value = of_means(total / sizes.sum())
        if k < 2:
            return Bounds(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
        without = of_means((total[..., None] - sums) / (sizes.sum() - sizes))
        error = np.sqrt((k - 1) / k * np.square(without - value[..., None]).sum(axis=-1))
        half = t_quantile(1 - TAIL, k - 1) * error
        low, high = value - half, value + half
        if np.isfinite(within).all():
            alike = half <= 1e-9 * (within[1] - within[0])
            q = 1 - TAIL ** (1 / k)
            low = np.where(alike, value - q * (value - within[0]), low)
            high = np.where(alike, value + q * (within[1] - value), high)
    return Bounds(value, np.clip(low, *within), np.clip(high, *within))


def mean_bounds(sums: Floats, sizes: Floats, *, within: Range = ANY) -> Bounds:
    """Cluster-t bounds of means; sums `(..., K)`, see `jackknife_bounds`."""
    return jackknife_bounds(sums[None], sizes, lambda m: m[0], within=within)


def share_bounds(sums: Floats, sizes: Floats, *, within: Range = (0.0, 1.0)) -> Bounds:
    """Bounds of shares (or of means in a finite range) that never leave the range; sums `(..., K)`.

        n* = p (1 - p) / error^2 (t_{n-1} / t_{K-1})^2,   Clopper-Pearson at p n* of n*

    p is the share, scaled to [0, 1], and error the jackknife's. Where all clusters agree, see `jackknife_bounds`.

    Source: Korn and Graubard, Survey Methodology 1998.
    """
    plain = mean_bounds(sums, sizes, within=within)
    k, n, (low, high) = len(sizes), sizes.sum(), within
    if k < 2:
        return plain
    p = (plain.value - low) / (high - low)
    raw = mean_bounds((sums - low * sizes) / (high - low), sizes)
    half = (raw.high - raw.low) / 2
    with np.errstate(all="ignore"):
        number = p * (1 - p) * (t_quantile(1 - TAIL, max(int(n) - 1, 1)) / half) ** 2
        lowest = np.nan_to_num(betaincinv(p * number, number * (1 - p) + 1, TAIL))
        highest = np.nan_to_num(betaincinv(p * number + 1, number * (1 - p), 1 - TAIL), nan=1.0)
    alike = half <= 1e-9
    return Bounds(
        plain.value,
        np.where(alike, plain.low, low + (high - low) * lowest),
        np.where(alike, plain.high, low + (high - low) * highest),
    )


@lru_cache(maxsize=32)
def halves(k: int) -> Floats:
    """Clusters that sign flips pick out, `(K, patterns)` of 0 and 1; the first has all."""
    # A pattern and its opposite say the same, so cluster 0 is always in. Every arm has the same patterns.
    if k <= EXACT:
        others = np.arange(2 ** (k - 1)) >> np.arange(k - 1)[:, None] & 1 == 0
        return np.vstack([np.ones_like(others[:1], shape=(1, 2 ** (k - 1))), others]).astype(float)
    drawn = np.random.default_rng(0).integers(0, 2, (k, DRAWN)).astype(float)
    drawn[:, 0] = 1
    return drawn


def ratio_bounds(top: Floats, bottom: Floats) -> Bounds:
    """Bounds of sum(top) / sum(bottom) by inverting a sign-flip test; sums by cluster `(..., K)`, bottom 0 or more.

    theta is rejected where |sum_k s_k (top_k - theta bottom_k)| reaches that of s = 1 for a share of at most 5 %
    of the sign patterns s. A pattern that splits the clusters into two halves reaches it exactly for theta between
    the ratios of the two halves, so the bounds are quantiles of those ratios: never outside what some half of the
    clusters shows (a reduction never above 100 %), and infinite where the data do not bound it.

    Source: sign flips of clusters: Canay, Romano and Shaikh, Econometrica 2017; for ratios as Fieller 1954.
    """
    half = halves(bottom.shape[-1])
    with np.errstate(all="ignore"):
        value = top.sum(axis=-1) / bottom.sum(axis=-1)
        one, other = (top @ s / (bottom @ s) for s in (half, 1 - half))
    # 0 / 0: the half says nothing, its pattern rejects no theta.
    undefined = np.isnan(one) | np.isnan(other)
    low = np.where(undefined, -np.inf, np.minimum(one, other))
    high = np.where(undefined, np.inf, np.maximum(one, other))
    rank = int(2 * TAIL * half.shape[1])
    low, high = np.partition(low, rank, axis=-1)[..., rank], -np.partition(-high, rank, axis=-1)[..., rank]
    defined = np.isfinite(value) & (half.shape[0] > 1)
    return Bounds(value, np.where(defined, low, np.nan), np.where(defined, high, np.nan))


def _one(bounds: Bounds, n: int, sizes: Floats, how: str) -> Interval:
    value, low, high = (float(np.squeeze(x)) for x in bounds)
    if not np.isfinite(value):
        raise ValueError(f"the statistic is {value} on these {n} rows: its denominator is 0")
    if len(sizes) < 2:
        how = "none: one cluster"
    elif np.isnan([low, high]).any():
        how = "none: undefined without some cluster"
    return Interval(value, low, high, n, len(sizes), how)


def cluster_interval(
    rows: ArrayLike,
    clusters: ArrayLike | None = None,
    of_means: Callable[[Floats], Floats] = lambda m: m[..., 0],
    *,
    within: Range = ANY,
) -> Interval:
    """Cluster-t interval of a function of column means, by default the mean of the first column.

    For rows (one a prompt) and clusters see `cluster_sums`, for `within` `jackknife_bounds`; `of_means` goes from
    `(..., columns)` to `(...)`. A ValueError for an undefined statistic. Where it is undefined without some cluster, or
    there is one cluster, bounds are NaN.
    """
    sums, sizes, n = cluster_sums(rows, clusters)
    found = jackknife_bounds(sums, sizes, lambda m: of_means(np.moveaxis(m, 0, -1)), within=within)
    return _one(found, n, sizes, "cluster-t")


def share_interval(
    rows: ArrayLike, clusters: ArrayLike | None = None, *, within: Range = (0.0, 1.0)
) -> Interval:
    """Interval of a share, or of a mean of values in a finite range, see `share_bounds` and `cluster_sums`."""
    sums, sizes, n = cluster_sums(rows, clusters)
    return _one(share_bounds(sums[0], sizes, within=within), n, sizes, "Korn-Graubard")


def paired_interval(
    base: ArrayLike,
    method: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    statistic: str = "difference",
    within: Range = ANY,
) -> Interval:
    """Interval of a comparison of two arms on the same prompts, clustered by user.

        difference          mean method - mean base
        reduction_percent   100 (1 - mean method / mean base), at most 100; change_percent is its negative

    Values are one a prompt, `(n,)`, in the same order, averaged over seeds; the range is that of a difference. A
    ValueError where shapes differ, for no prompts, a missing value, a ratio to 0, or an unknown statistic.

    Source: paired and clustered errors for evaluations: Miller, Adding Error Bars to Evals, arXiv 2411.00640. Ratios
    are those of means, not means of ratios: prompts with a base near 0 do not rule them.
    """
    b, m = (np.asarray(values, dtype=np.float64) for values in (base, method))
    if b.shape != m.shape or not b.size:
        raise ValueError(f"base and method must have the same shape, not {b.shape} and {m.shape}")
    if statistic == "difference":
        return cluster_interval(m - b, clusters, within=within)
    if statistic not in ("reduction_percent", "change_percent"):
        raise ValueError(f"statistic {statistic!r} is none of difference, reduction_percent, change_percent")
    sums, sizes, n = cluster_sums(np.column_stack([m, b]), clusters)
    ratio = _one(ratio_bounds(sums[0], sums[1]), n, sizes, "sign flips")
    value, low, high = (100 * (x - 1) for x in ratio[:3])
    flipped = (-value, -high, -low) if statistic == "reduction_percent" else (value, low, high)
    return Interval(*flipped, *ratio[3:])


def difference_of_two(first: Interval, second: Interval) -> Interval:
    """Second minus first, of two samples that share nothing; n and n_clusters are those of the smaller.

        low = d - sqrt((v2 - l2)^2 + (u1 - v1)^2),   high = d + sqrt((u2 - v2)^2 + (v1 - l1)^2)

    Wider than need be where they do share prompts, whose effects rise and fall together.

    Source: Zou and Donner, Statistics in Medicine 2008 (MOVER).
    """
    value = second.value - first.value
    low = value - np.hypot(second.value - second.low, first.high - first.value)
    high = value + np.hypot(second.high - second.value, first.value - first.low)
    smaller = min(first.n, second.n), min(first.n_clusters, second.n_clusters)
    return Interval(value, float(low), float(high), *smaller, "two samples")


def max_t_band(responses: pd.DataFrame, clusters: ArrayLike | None = None) -> pd.DataFrame:
    """Means over prompts with a band over all alphas at once, so that a peak may be read off it.

        m_a -+ q error_a,   q: quantile of max_a |m*_a - m_a| / error*_a over 10,000 resamples of clusters

    `responses` is `(prompts, alphas)`, alphas as column labels; differences from the base for a band of the effect. A
    point without any spread has a band of no width; the band is nowhere narrower than the point's own cluster-t
    interval. A ValueError for fewer than 2 clusters.

    Source: Westfall and Young, Resampling-Based Multiple Testing, 1993 (max-T); its studentised cluster form.
    """
    alphas = sorted(responses.columns)
    sums, sizes, n = cluster_sums(responses[alphas].to_numpy(dtype=np.float64), clusters)
    k = len(sizes)
    if k < 2 or not alphas:
        raise ValueError(f"a band needs at least one alpha and 2 clusters, not {len(alphas)} and {k}")
    weights = np.random.default_rng(0).multinomial(k, np.full(k, 1 / k), 10_000).astype(float)
    value, low, high = mean_bounds(sums, sizes)
    own = t_quantile(1 - TAIL, k - 1)
    error, size = (high - low) / 2 / own, weights @ sizes
    drawn = weights @ sums.T / size[:, None]
    spread = error > 1e-12 * np.abs(value)
    with np.errstate(all="ignore"):
        # sum_k w_k (S_k - N_k m*)^2, expanded; m* of each resample.
        square = weights @ (sums**2).T - 2 * drawn * (weights @ (sums * sizes).T)
        square += drawn**2 * (weights @ sizes**2)[:, None]
        studentised = np.abs(drawn - value) / (np.sqrt(k / (k - 1) * square.clip(0)) / size[:, None])
    largest = studentised[:, spread].max(axis=1, initial=0.0)
    q = max(own, float(np.quantile(largest, 1 - 2 * TAIL, method="inverted_cdf")))
    half = np.where(spread, q * error, 0.0)
    band = {"alpha": alphas, "value": value, "low": value - half, "high": value + half}
    return pd.DataFrame(band).assign(n=n, n_clusters=k)
