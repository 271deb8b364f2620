"""Paired comparisons of two arms: by prompt, clustered by user."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, t

from steerlib.evaluation.intervals import (
    Interval,
    cluster_interval,
    group_rows,
    jackknife_error,
    linearised,
    resample_weights,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Statistic:
    """A comparison that is a function of column means.

    Attributes:
        rows: values of base and method, `(n,)` or `(n, columns)` each -> `(n, columns)`, one row a prompt.
        of_means: column means `(..., columns)` -> the statistic `(...)`.
    """

    rows: Callable[[Floats, Floats], Floats]
    of_means: Callable[[Floats], Floats]


def _ratio(m: Floats, top: int, bottom: int) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return m[..., top] / m[..., bottom]


def _beside(base: Floats, method: Floats) -> Floats:
    return np.column_stack([base, method])


STATISTICS: Mapping[str, Statistic] = {
    "difference": Statistic(_beside, lambda m: m[..., 1] - m[..., 0]),
    "reduction_percent": Statistic(_beside, lambda m: 100 * (1 - _ratio(m, 1, 0))),
    "change_percent": Statistic(_beside, lambda m: 100 * (_ratio(m, 1, 0) - 1)),
    "win_rate": Statistic(lambda b, m: (m < b)[:, None].astype(float), lambda m: m[..., 0]),
    "tie_rate": Statistic(lambda b, m: (m == b)[:, None].astype(float), lambda m: m[..., 0]),
    "perplexity_ratio": Statistic(_beside, lambda m: np.exp(_ratio(m, 2, 3) - _ratio(m, 0, 1))),
}
"""Statistics by name, of (base, method). "difference" is method - base. "perplexity_ratio" is PPL(method) /
PPL(base) and takes `(n, 2)`: summed nll in nats and number of tokens of each prompt."""


def _statistic(statistic: str | Statistic) -> Statistic:
    if isinstance(statistic, Statistic):
        return statistic
    if statistic not in STATISTICS:
        raise ValueError(f"statistic {statistic!r} is none of {', '.join(STATISTICS)}")
    return STATISTICS[statistic]


def _pair(base: ArrayLike, method: ArrayLike, chosen: Statistic) -> Floats:
    first, second = (np.asarray(values, dtype=np.float64) for values in (base, method))
    if first.shape != second.shape or not first.size:
        raise ValueError(f"base and method must have the same shape, not {first.shape} and {second.shape}")
    for name, values in (("base", first), ("method", second)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            raise ValueError(f"{name} in row {bad[0][0]} is {values[tuple(bad[0])]}, not a finite number")
    return chosen.rows(first, second)


def paired_interval(
    base: ArrayLike,
    method: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    statistic: str | Statistic = "difference",
    how: str = "auto",
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of a comparison of two arms on the same prompts, clustered by user.

    A ratio such as the reduction in per cent is resampled as a whole, numerator and denominator together.

    Args:
        base, method: one value a prompt, `(n,)`, in the same order; average over seeds first.
        clusters: user of each prompt, `(n,)`; None where prompts are independent.
        statistic: a name of `STATISTICS`, or a `Statistic`.
        how, level, n_resamples, seed: see `cluster_interval`.

    Returns:
        (value, low, high, n, n_clusters, how).

    Raises:
        ValueError: shapes differ, no prompts, a missing value, an undefined ratio, or an unknown statistic.

    Source: paired and clustered errors for evaluations: Miller, Adding Error Bars to Evals, arXiv 2411.00640.
    """
    chosen = _statistic(statistic)
    rows = _pair(base, method, chosen)
    return cluster_interval(
        rows, clusters, chosen.of_means, how=how, level=level, n_resamples=n_resamples, seed=seed
    )


def max_t_band(
    base: ArrayLike,
    methods: Mapping[float, ArrayLike],
    clusters: ArrayLike | None = None,
    *,
    statistic: str | Statistic = "reduction_percent",
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Band over alpha that covers the whole curve at once, so that its peak may be read off it.

        value_a +- q se_a (jackknife),   q the quantile of max_a |value*_a - value_a| / se*_a over resamples of clusters

    Args:
        base: one value a prompt, `(n,)`.
        methods: by alpha, one value a prompt in the same order.
        clusters: user of each prompt.
        statistic, level, n_resamples, seed: see `paired_interval`.

    Returns:
        alpha, value, low, high, n, n_clusters, by rising alpha. A point without any spread has a band of no width.

    Raises:
        ValueError: as `paired_interval`; fewer than 2 clusters.

    Source: Westfall and Young, Resampling-Based Multiple Testing, 1993 (max-T); its studentised cluster form.
    """
    chosen = _statistic(statistic)
    labels = (
        np.arange(len(np.asarray(base))) if clusters is None else clusters
    )  # arms must share the resamples
    groups = [group_rows(_pair(base, methods[alpha], chosen), labels) for alpha in sorted(methods)]
    k = len(groups[0][0].sizes) if groups else 0
    if k < 2:
        raise ValueError(f"a band needs at least one alpha and 2 clusters, not {len(groups)} and {k}")
    weights = resample_weights(k, n_resamples, seed)
    with np.errstate(all="ignore"):
        value = np.array([chosen.of_means(g.means()) for g, _ in groups])
        error = np.array([jackknife_error(g, chosen.of_means) for g, _ in groups])
        drawn = [linearised(g, chosen.of_means, weights) for g, _ in groups]
        studentised = np.array([np.abs(d - v) / e for (d, e), v in zip(drawn, value, strict=True)])
    spread = error > 1e-12 * np.abs(value)
    if not np.isfinite([value, error]).all() or np.isnan(studentised[spread]).any():
        raise ValueError("the statistic is undefined in some resample: its denominator is 0")
    # Never narrower than one point's own t interval.
    q = t.ppf((1 + level) / 2, k - 1)
    if spread.any():
        q = max(q, np.quantile(studentised[spread].max(axis=0), level, method="inverted_cdf"))
    half = np.where(spread, q * error, 0.0)
    return pd.DataFrame(
        {"alpha": sorted(methods), "value": value, "low": value - half, "high": value + half}
    ).assign(n=groups[0][1], n_clusters=k)


def crossed_interval(
    base: ArrayLike,
    method: ArrayLike,
    clusters: ArrayLike,
    seeds: ArrayLike,
    *,
    statistic: str | Statistic = "difference",
    level: float = 0.95,
) -> Interval:
    """Interval of a comparison for new users AND new seeds, rows being answers (prompt x seed).

        var = var_users + var_seeds - var_users-and-seeds, never below the larger of the first two

    Args:
        base, method: one value an answer, `(n,)`.
        clusters, seeds: user and seed of each answer, `(n,)`.
        statistic: as in `paired_interval`.
        level: confidence; Student's t with the smaller number of users or seeds less 1.

    Raises:
        ValueError: as `paired_interval`; fewer than 2 users or seeds.

    Source: Cameron, Gelbach and Miller, J. Business & Economic Statistics 2011 (two-way clustering).
    """
    cells = pd.factorize(pd.MultiIndex.from_arrays([np.asarray(clusters), np.asarray(seeds)]))[0]
    one_way = [
        paired_interval(base, method, labels, statistic=statistic, how="cluster-t", level=level)
        for labels in (clusters, seeds, cells)
    ]
    users, draws = one_way[0].n_clusters, one_way[1].n_clusters
    if min(users, draws) < 2:
        raise ValueError(f"needs 2 users and 2 seeds at least, not {users} and {draws}")
    by_user, by_seed, by_cell = (
        ((i.high - i.low) / 2 / t.ppf((1 + level) / 2, i.n_clusters - 1)) ** 2 for i in one_way
    )
    error = np.sqrt(max(by_user + by_seed - by_cell, by_user, by_seed))
    half = float(t.ppf((1 + level) / 2, min(users, draws) - 1) * error)
    value = one_way[0].value
    return Interval(value, value - half, value + half, one_way[0].n, users, "t, users and seeds")


class SignTest(NamedTuple):
    """Clusters that fell, stayed and rose, and the two-sided p value of as many falling as rising."""

    fell: int
    ties: int
    rose: int
    p_value: float


def sign_test(base: ArrayLike, method: ArrayLike, clusters: ArrayLike | None = None) -> SignTest:
    """Whether more users fall than rise: exact two-sided sign test of each cluster's mean difference.

    Ties are left out and reported; with nothing but ties p is 1.

    Args:
        base, method: one value a prompt, `(n,)`.
        clusters: user of each prompt; None for independent prompts.

    Raises:
        ValueError: shapes differ, no prompts, or a missing value.
    """
    rows = _pair(base, method, STATISTICS["difference"])
    grouped, _ = group_rows(rows[:, 1] - rows[:, 0], clusters)
    fell, rose = int((grouped.sums < 0).sum()), int((grouped.sums > 0).sum())
    p = float(binomtest(fell, fell + rose).pvalue) if fell + rose else 1.0
    return SignTest(fell, len(grouped.sizes) - fell - rose, rose, p)
