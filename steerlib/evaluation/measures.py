"""Rows of the metrics table for one arm over some prompts: its own values, and its comparison with another arm."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from steerlib.evaluation.intervals import Interval, cluster_interval
from steerlib.evaluation.robust import trimmed_change
from steerlib.evaluation.statistics import paired_interval, sign_test

Floats = NDArray[np.float64]
Measure = tuple[str, Interval]

MEANS = (
    *("distance", "toxicity", "overshoot", "length", "repetition"),
    *("distinct_1", "distinct_2", "distinct_3", "stopped"),
)
COMPARISONS = {
    "reduction_percent": ("distance", "reduction_percent"),
    "win_rate": ("distance", "win_rate"),
    "tie_rate": ("distance", "tie_rate"),
    "toxicity_reduction_percent": ("toxicity", "reduction_percent"),
}
ROBUST = {"distance_change_median": 0.5, "distance_change_trimmed": 0.1}
"""Metric and the share of prompts that it cuts at either end."""


def measures(own: pd.DataFrame, users: ArrayLike, level: float) -> Iterator[Measure]:
    """Values of one arm, one row a prompt; `users` are the prompts' clusters."""
    for metric in own:
        if metric in MEANS or str(metric).startswith("shift_"):
            yield str(metric), cluster_interval(own[metric], users, level=level)
    if own["n_tokens"].sum() > 0:
        sums = own[["nll_base", "n_tokens"]].to_numpy(dtype=np.float64)
        yield "perplexity", cluster_interval(sums, users, lambda m: _exp(_per_token(m, 0)), level=level)
    if own["n_tokens"].sum() > 0 and own["kl_to_base"].notna().all():  # an aligner's answer has no KL
        sums = own[["kl_to_base", "n_tokens"]].to_numpy(dtype=np.float64)
        yield "kl_per_token", cluster_interval(sums, users, lambda m: _per_token(m, 0), level=level)


def comparisons(other: pd.DataFrame, own: pd.DataFrame, users: ArrayLike, level: float) -> Iterator[Measure]:
    """One arm against another on the same prompts, in the same order."""
    for metric, (column, statistic) in COMPARISONS.items():
        undefined = column not in own or (statistic == "reduction_percent" and other[column].sum() == 0)
        if not undefined:
            yield metric, paired_interval(other[column], own[column], users, statistic=statistic, level=level)
    if "distance" in own:
        pair = other["distance"].to_numpy(float), own["distance"].to_numpy(float)
        for metric, trim in ROBUST.items():
            yield metric, trimmed_change(*pair, users, trim=trim, level=level)
        yield "sign_test_p", _sign_test(*pair, users)
    yield from _ratio(other, own, "nll_base", users, level, "perplexity_ratio")


def _sign_test(other: Floats, own: Floats, users: ArrayLike) -> Interval:
    found = sign_test(other, own, users)
    tested = found.fell + found.rose
    return Interval(found.p_value, np.nan, np.nan, len(own), tested, "none: a p value")


def _ratio(
    other: pd.DataFrame, own: pd.DataFrame, nll: str, users: ArrayLike, level: float, metric: str
) -> Iterator[Measure]:
    if own["n_tokens"].sum() > 0 and other["n_tokens"].sum() > 0:
        sums = [nll, "n_tokens"]
        found = paired_interval(other[sums], own[sums], users, statistic="perplexity_ratio", level=level)
        yield metric, found


def text_measures(own: pd.DataFrame, users: ArrayLike, level: float) -> Iterator[Measure]:
    """Perplexity of the answers' text under another model: nll and n_tokens of that model by prompt."""
    if own["n_tokens"].sum() > 0:
        sums = own[["nll", "n_tokens"]].to_numpy(dtype=np.float64)
        found = cluster_interval(sums, users, lambda m: _exp(_per_token(m, 0)), level=level)
        yield "perplexity_of_text", found


def text_comparisons(
    other: pd.DataFrame, own: pd.DataFrame, users: ArrayLike, level: float
) -> Iterator[Measure]:
    """Perplexity of one arm's text over that of another's."""
    yield from _ratio(other, own, "nll", users, level, "perplexity_of_text_ratio")


def _per_token(means: Floats, column: int) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return means[..., column] / means[..., 1]


def _exp(nats: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return np.exp(nats)
