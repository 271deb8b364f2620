"""What the seed of the sampling noise does to a reduction: its spread over seeds, and an interval for new ones.

Intervals for functions of means over rows that come in clusters (prompts of one user).

A statistic is a function g of column means m, so that ratios resample numerator and denominator together.

Paired comparisons of two arms: by prompt, clustered by user.

Paired changes that a few extreme prompts do not rule: median and trimmed mean, with intervals by user.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, norm, t

from steerlib.evaluation.metrics import reduction_percent

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


TRIMMED = 0.1


def trimmed_change(
    base: ArrayLike,
    method: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    trim: float = TRIMMED,
    level: float = 0.95,
    n_resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """Mean over prompts of method - base without the largest and smallest differences.

    The interval resamples users and takes expanded percentiles: quantiles Phi(-sqrt(K / (K - 1)) t), with t of
    K - 1 degrees of freedom, in place of the nominal ones, because the plain percentile bootstrap is too narrow
    for few users. The jackknife of `cluster_interval` is not valid for a median.

    Args:
        base, method: one value a prompt, `(n,)`, in the same order; below 0 is a fall.
        clusters: user of each prompt, `(n,)`; None where prompts are independent.
        trim: share cut at either end, in [0, 0.5]; 0 is the mean, 0.5 the median.
        level: confidence, in (0, 1).
        n_resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        The interval. With so few users K that not even the range of K differences would hold the median with the
        given confidence, `2^(1 - K) > 1 - level` (five at 0.95), bounds are NaN and `how` says so.

    Raises:
        ValueError: shapes differ, no prompts, a missing value, or a trim outside [0, 0.5].

    Source: expanded percentile interval of Hesterberg, The American Statistician 2015, over clusters.
    """
    if not 0 <= trim <= 0.5:
        raise ValueError(f"trim must be in [0, 0.5], not {trim}")
    first, second = np.asarray(base, dtype=np.float64), np.asarray(method, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"base and method must be (n,) twice, not {first.shape} and {second.shape}")
    change = second - first
    codes = cluster_codes(change, clusters)
    k, n = int(codes.max()) + 1, len(change)
    order = np.argsort(change, kind="stable")
    values, codes = change[order], codes[order]
    value = float(_trimmed_means(values, np.ones((1, n)), trim)[0])
    if k < 2 or 2 ** (1 - k) > 1 - level:
        return Interval(value, np.nan, np.nan, n, k, f"none: {k} clusters")
    drawn = _trimmed_means(values, resample_weights(k, n_resamples, seed)[:, codes], trim)
    tail = norm.cdf(-math.sqrt(k / (k - 1)) * t.ppf((1 + level) / 2, k - 1))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high), n, k, "expanded percentile")


def _trimmed_means(values: Floats, weights: Floats, trim: float) -> Floats:
    """Trimmed means of sorted values `(n,)`, each taken as often as its weight says, `(resamples, n)`."""
    upto = np.cumsum(weights, axis=1)
    total = upto[:, -1:]
    if trim == 0.5:
        # The upper and the lower of the two middle values; they are one where the number of values is odd.
        lower = np.take(values, (upto >= total / 2).argmax(axis=1))
        upper = np.take(values, (upto > total / 2).argmax(axis=1))
        return (lower + upper) / 2
    kept = np.minimum(upto, (1 - trim) * total) - np.maximum(upto - weights, trim * total)
    return (np.clip(kept, 0, None) @ values) / ((1 - 2 * trim) * total[:, 0])


def over_seeds(base: pd.DataFrame, own: pd.DataFrame, level: float) -> Iterator[tuple[str, Interval]]:
    """The reduction of the toxicity distance, looked at seed by seed; nothing for a single seed.

    Args:
        base, own: user_id, seed and distance of each answer, rows in the same order of prompts and seeds.
        level: confidence.

    Yields:
        reduction_percent_over_seeds: mean of the seeds' reductions, t with seeds - 1 degrees of freedom; n and
        n_clusters are the seeds. reduction_percent_seed_low, reduction_percent_seed_high: the smallest and the
        largest of them, without interval. reduction_percent_users_and_seeds: the reduction over all answers with
        an interval for new users and new seeds, see `crossed_interval`. None of them where a seed's base has no
        distance at all.
    """
    by_seed = [(base.loc[rows, "distance"], own.loc[rows, "distance"]) for rows in _rows_of_seeds(base)]
    if len(by_seed) < 2 or any(b.sum() == 0 for b, _ in by_seed):
        return
    reductions = [reduction_percent(b, m) for b, m in by_seed]
    yield "reduction_percent_over_seeds", seed_interval(reductions, level=level)
    for name, value in (("low", min(reductions)), ("high", max(reductions))):
        alone = Interval(value, np.nan, np.nan, len(reductions), len(reductions), "none: a range")
        yield f"reduction_percent_seed_{name}", alone
    if base["user_id"].nunique() > 1:
        pair = base["distance"].to_numpy(float), own["distance"].to_numpy(float)
        labels = base["user_id"].to_numpy(), base["seed"].to_numpy()
        found = crossed_interval(*pair, *labels, statistic="reduction_percent", level=level)
        yield "reduction_percent_users_and_seeds", found


def _rows_of_seeds(answers: pd.DataFrame) -> list[pd.Index]:
    return [rows.index for _, rows in answers.groupby("seed")]
