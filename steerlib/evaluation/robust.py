"""Paired changes that a few extreme prompts do not rule: median and trimmed mean, with intervals by user."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

from steerlib.evaluation.intervals import Interval, cluster_codes, resample_weights

Floats = NDArray[np.float64]

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
