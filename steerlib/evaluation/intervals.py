"""Intervals for functions of means over rows that come in clusters (prompts of one user).

A statistic is a function g of column means m, so that ratios resample numerator and denominator together.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t

Floats = NDArray[np.float64]
OfMeans = Callable[[Floats], Floats]
"""Column means `(..., columns)` -> statistic `(...)`, vectorised over the leading axes."""


class Interval(NamedTuple):
    """A value with its confidence interval; `how` names the interval, or says why there is none (NaN bounds)."""

    value: float
    low: float
    high: float
    n: int
    n_clusters: int
    how: str

    def within(self, lowest: float, highest: float) -> "Interval":
        """The same, cut to the range of what it is of: the part of a t interval that lies outside says nothing."""
        low, high = np.clip([self.low, self.high], lowest, highest)
        return self._replace(low=float(low), high=float(high))


class Clusters(NamedTuple):
    """Column sums of each cluster, `(n_clusters, columns)`, and its number of rows, `(n_clusters,)`."""

    sums: Floats
    sizes: Floats

    def means(self, weights: Floats | None = None) -> Floats:
        """Means over rows, each cluster taken as often as its weight says; `(..., columns)`."""
        w = np.ones(len(self.sizes)) if weights is None else weights
        return (w @ self.sums) / (w @ self.sizes)[..., None]


def cluster_interval(
    rows: ArrayLike,
    clusters: ArrayLike | None = None,
    of_means: OfMeans = lambda m: m[..., 0],
    *,
    how: str = "auto",
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of a function of column means, rows being independent between clusters only.

    "cluster-t" (the choice of "auto") is the delete-one-cluster jackknife with Student's t on K - 1 degrees of
    freedom; for clusters of one row and a mean it is the usual t interval. "bootstrap-t" resamples clusters and
    studentises each resample by its own linearised cluster error; "percentile" takes quantiles over resamples.
    Why "auto" does not change to the bootstrap for many clusters: on skewed ratings the percentile interval covered
    less at every number of clusters tried (`make test-slow` runs the simulation).

    Args:
        rows: `(n,)` or `(n, columns)`, one row a prompt.
        clusters: label of each row's cluster, `(n,)`; None for independent rows.
        of_means: the statistic; by default the mean of the first column.
        how: "auto", "cluster-t", "bootstrap-t" or "percentile".
        level: confidence, in (0, 1).
        n_resamples: bootstrap resamples.
        seed: of the resampling; the order of rows does not matter.

    Returns:
        The interval. With one cluster, or where the statistic is undefined in some resample (a ratio whose
        denominator is 0 there), both bounds are NaN and `how` says so.

    Raises:
        ValueError: no rows, a value that is not finite, clusters of another length, unknown `how` or level.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, ch. 11 to 13; the jackknife over clusters is
    CR3 of MacKinnon, Nielsen and Webb, J. Applied Econometrics 2023; cluster resampling as Field and Welsh,
    JRSS B 2007.
    """
    grouped, n = group_rows(rows, clusters)
    value, k = float(of_means(grouped.means())), len(grouped.sizes)
    if how not in ("auto", *BOUNDS) or not 0 < level < 1:
        raise ValueError(f"how {how!r} must be auto or one of {', '.join(BOUNDS)}, level {level} in (0, 1)")
    if not np.isfinite(value):
        raise ValueError(f"the statistic is {value} on these {n} rows: its denominator is 0")
    if k < 2:
        return Interval(value, np.nan, np.nan, n, k, "none: one cluster")
    how = "cluster-t" if how == "auto" else how
    with np.errstate(all="ignore"):
        low, high = BOUNDS[how](grouped, of_means, level, n_resamples, seed)
    if not np.isfinite([low, high]).all():
        return Interval(value, np.nan, np.nan, n, k, f"none: undefined in some resample ({how})")
    return Interval(value, float(low), float(high), n, k, how)


def group_rows(rows: ArrayLike, clusters: ArrayLike | None) -> tuple[Clusters, int]:
    """Rows `(n,)` or `(n, columns)` summed by cluster, and n; see `cluster_interval` for what is refused."""
    values = np.asarray(rows, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or not len(values):
        raise ValueError(f"rows must be (n,) or (n, columns) with n > 0, not {np.shape(rows)}")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"row {bad[0, 0]} is {values[tuple(bad[0])]}, not a finite number")
    codes = _codes(len(values), clusters)
    sums = np.zeros((codes.max() + 1, values.shape[1]))
    np.add.at(sums, codes, values)
    if clusters is None:  # sorted, so that neither does the order of independent rows matter
        sums = sums[np.lexsort(sums.T)]
    return Clusters(sums, np.bincount(codes).astype(np.float64)), len(values)


def cluster_codes(values: Floats, clusters: ArrayLike | None) -> NDArray[np.intp]:
    """Number 0, 1, ... of each row's cluster, `(n,)`, after the checks of `group_rows`.

    Independent rows are numbered by value, so that their order does not matter.
    """
    group_rows(values, clusters)
    return values.argsort().argsort() if clusters is None else _codes(len(values), clusters)


def _codes(rows: int, clusters: ArrayLike | None) -> NDArray[np.intp]:
    labels = np.arange(rows) if clusters is None else np.asarray(clusters)
    if labels.shape != (rows,):
        raise ValueError(f"clusters must be ({rows},) as the rows, not {labels.shape}")
    codes, _ = pd.factorize(labels, sort=True)
    if (codes < 0).any():
        raise ValueError(f"row {int(np.argmax(codes < 0))} has no cluster (missing label)")
    return codes


def jackknife_error(grouped: Clusters, of_means: OfMeans) -> float:
    """Standard error from leaving out one cluster at a time: `sqrt((K - 1) / K sum_k (g_-k - g)^2)`."""
    k, left = len(grouped.sizes), grouped.sizes.sum() - grouped.sizes
    without = of_means((grouped.sums.sum(axis=0) - grouped.sums) / left[:, None])
    return float(np.sqrt((k - 1) / k * np.square(without - of_means(grouped.means())).sum()))


@lru_cache(maxsize=256)
def _t_quantile(level: float, freedom: int) -> float:
    return float(t.ppf((1 + level) / 2, freedom))


def _cluster_t(grouped: Clusters, of_means: OfMeans, level: float, *_: int) -> tuple[float, float]:
    value = float(of_means(grouped.means()))
    half = _t_quantile(level, len(grouped.sizes) - 1) * jackknife_error(grouped, of_means)
    return value - half, value + half


@lru_cache(maxsize=4)
def resample_weights(n_clusters: int, n_resamples: int, seed: int) -> Floats:
    """How often each cluster is drawn in each resample, `(n_resamples, n_clusters)`; kept, as arms share it."""
    draw = np.random.default_rng(seed).multinomial(
        n_clusters, np.full(n_clusters, 1 / n_clusters), n_resamples
    )
    weights = draw.astype(np.float64)
    weights.flags.writeable = False
    return weights


def linearised(grouped: Clusters, of_means: OfMeans, weights: Floats) -> tuple[Floats, Floats]:
    """The statistic and its linearised cluster error in each resample, `(n_resamples,)` both.

    var = K / (K - 1) sum_k w_k (grad g . (S_k - N_k m))^2 / N^2
    """
    means, size, k = grouped.means(weights), weights @ grouped.sizes, len(grouped.sizes)
    step = 1e-6 * np.maximum(np.abs(grouped.means()), 1e-9)
    sides = [(of_means(means + e) - of_means(means - e)) / (2 * e.sum()) for e in np.diag(step)]
    slope = np.stack(sides, axis=1)
    pull = slope @ grouped.sums.T - (slope * means).sum(axis=1)[:, None] * grouped.sizes
    return of_means(means), np.sqrt(k / (k - 1) * (weights * pull**2).sum(axis=1)) / size


def _bootstrap_t(
    grouped: Clusters, of_means: OfMeans, level: float, n_resamples: int, seed: int
) -> tuple[float, float]:
    k = len(grouped.sizes)
    value, error = (x[0] for x in linearised(grouped, of_means, np.ones((1, k))))
    if error <= 1e-12 * abs(value):
        return value, value
    drawn, errors = linearised(grouped, of_means, resample_weights(k, n_resamples, seed))
    tail = (1 - level) / 2
    # A resample without any spread has an infinite t: it counts as extreme on its side.
    low, high = np.quantile((drawn - value) / errors, [tail, 1 - tail], method="inverted_cdf")
    return value - high * error, value - low * error


def _percentile(
    grouped: Clusters, of_means: OfMeans, level: float, n_resamples: int, seed: int
) -> tuple[float, float]:
    drawn = of_means(grouped.means(resample_weights(len(grouped.sizes), n_resamples, seed)))
    if not np.isfinite(drawn).all():
        return np.nan, np.nan
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return low, high


BOUNDS = {"cluster-t": _cluster_t, "bootstrap-t": _bootstrap_t, "percentile": _percentile}


def seed_interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Interval over seeds, one value a seed: Student's t with n - 1 degrees of freedom; NaN bounds for one seed."""
    return cluster_interval(values, how="cluster-t", level=level)._replace(how="t over seeds")
