"""Coverage of the intervals by simulation: two arms on skewed, clustered prompts whose true effect is known."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t

from steerlib.evaluation.intervals import (
    Interval,
    cluster_interval,
    cluster_sums,
    paired_interval,
    share_interval,
)

Floats = NDArray[np.float64]
Study = tuple[Floats, Floats, NDArray[np.intp]]
KINDS = ("skewed", "concentrated")
TIES = 0.966
"""Share of ties among the CAA-on-PRISM study's choices by toxicity."""


def draw_study(rng: np.random.Generator, n_clusters: int, kind: str, *, kept: float = 0.85) -> Study:
    """Distances of base and method, and the user of each prompt.

        user level lognormal(0, 1), prompts around it lognormal(0, 0.5), 1 to 7 prompts a user
        method = kept * base * lognormal with mean 1;   "concentrated": every eighth user has 20 times the level

    Args:
        rng: the generator.
        n_clusters: users.
        kind: of `KINDS`.
        kept: true ratio of the means; 1 is no effect.
    """
    users = np.repeat(np.arange(n_clusters), rng.integers(1, 8, n_clusters))
    level = 0.02 * rng.lognormal(0, 1, n_clusters)
    level *= np.where((rng.random(n_clusters) < 1 / 8) & (kind == "concentrated"), 20, 1)
    base = level[users] * rng.lognormal(0, 0.5, len(users))
    return base, kept * base * rng.lognormal(-0.18, 0.6, len(users)), users


def draw_share(
    rng: np.random.Generator, n_clusters: int, kind: str
) -> tuple[Floats, NDArray[np.intp], float]:
    """Outcomes of prompts, their users and the true share: wins that differ by user, or preferences that mostly tie."""
    users = np.repeat(np.arange(n_clusters), rng.integers(1, 8, n_clusters))
    if kind == "ties":
        return np.where(rng.random(len(users)) < TIES, 0.5, rng.integers(0, 2, len(users))), users, 0.5
    true = {"rare": 0.05, "wins": 0.3}[kind]
    rate = rng.beta(4 * true, 4 * (1 - true), n_clusters)[users]
    return (rng.random(len(users)) < rate).astype(float), users, true


def jackknife_reduction(base: Floats, method: Floats, users: NDArray[np.intp]) -> Interval:
    """Cluster-t interval of the reduction in per cent, the first edition's; it may end above 100 %."""
    return cluster_interval(
        np.column_stack([base, method]), users, lambda m: 100 * (1 - m[..., 1] / m[..., 0])
    )


def fieller_reduction(base: Floats, method: Floats, users: NDArray[np.intp]) -> Interval:
    """Fieller's interval of the reduction in per cent with variances between clusters; unbounded if base may be 0.

    (m - theta b)^2 <= t^2 (v_mm - 2 theta v_mb + theta^2 v_bb),   v of the cluster sums
    """
    sums, sizes, n = cluster_sums(np.column_stack([base, method]), users)
    k = len(sizes)
    (v_bb, v_mb), (_, v_mm) = np.cov(sums) * k
    b, m, q = *sums.sum(axis=1), t.ppf(0.975, k - 1) ** 2
    a, half, c = b**2 - q * v_bb, b * m - q * v_mb, m**2 - q * v_mm
    if a <= 0 or half**2 < a * c:
        return Interval(100 * (1 - m / b), -np.inf, np.inf, n, k, "Fieller")
    low, high = ((half + sign * np.sqrt(half**2 - a * c)) / a for sign in (-1, 1))
    return Interval(100 * (1 - m / b), 100 * (1 - high), 100 * (1 - low), n, k, "Fieller")


REDUCTIONS: dict[str, Callable[..., Interval]] = {
    "sign flips (default)": lambda *study: paired_interval(*study, statistic="reduction_percent"),
    "cluster-t": jackknife_reduction,
    "Fieller": fieller_reduction,
}
SHARES: dict[str, Callable[..., Interval]] = {
    "Korn-Graubard (default)": share_interval,
    "cluster-t, clipped": lambda rows, users: cluster_interval(rows, users, within=(0, 1)),
}


def simulate(clusters: Sequence[int], *, runs: int, seed: int = 0) -> pd.DataFrame:
    """Coverage of every interval at every number of clusters.

    Args:
        clusters: numbers of users.
        runs: simulated studies a row.
        seed: of the simulation; every interval sees the same studies.

    Returns:
        quantity, data, interval, n_clusters, coverage (%), false_effects (%: intervals without 0 on the side of an
        improvement where there is none; 2.5 nominal), above_100 (%), width (median of the bounded ones).
    """
    rows = []
    for k in clusters:
        for kind in KINDS:
            rng = np.random.default_rng([seed, k, KINDS.index(kind)])
            with_effect = [draw_study(rng, k, kind) for _ in range(runs)]
            without = [draw_study(rng, k, kind, kept=1.0) for _ in range(runs)]
            # E[base] by the formula of `draw_study`.
            mean = 0.02 * np.exp(0.5 + 0.125) * (1 + 19 / 8 if kind == "concentrated" else 1)
            found = [paired_interval(*study) for study in with_effect]
            null = [paired_interval(*study) for study in without]
            false = np.mean([i.high < 0 for i in null])
            rows.append(
                ["difference", kind, "cluster-t (default)", k, *_seen(found, -0.15 * mean), false, np.nan]
            )
            for name, interval in REDUCTIONS.items():
                found, null = ([interval(*study) for study in studies] for studies in (with_effect, without))
                false, above = np.mean([i.low > 0 for i in null]), np.mean([i.high > 100 for i in found])
                rows.append(["reduction", kind, name, k, *_seen(found, 15), false, above])
        for kind in ("rare", "wins", "ties"):
            rng = np.random.default_rng([seed, k, len(kind)])
            drawn = [draw_share(rng, k, kind) for _ in range(runs)]
            for name, interval in SHARES.items():
                found = [interval(outcome, users) for outcome, users, _ in drawn]
                rows.append(["share", kind, name, k, *_seen(found, drawn[0][2]), np.nan, np.nan])
    columns = [
        "quantity",
        "data",
        "interval",
        "n_clusters",
        "coverage",
        "width",
        "false_effects",
        "above_100",
    ]
    table = pd.DataFrame(rows, columns=columns)
    table[["coverage", "false_effects", "above_100"]] *= 100
    return table


def _seen(found: Sequence[Interval], true: float) -> Iterator[float]:
    yield np.mean([i.low <= true <= i.high for i in found])
    widths = [i.high - i.low for i in found if np.isfinite(i.high - i.low)]
    yield float(np.median(widths)) if widths else np.nan


def as_markdown(table: pd.DataFrame, value: str) -> str:
    """One measure of `simulate` as a Markdown table, a column a number of clusters."""
    wide = table.pivot(index=["quantity", "data", "interval"], columns="n_clusters", values=value).dropna()
    head = "| quantity | data | interval | " + " | ".join(f"K = {k}" for k in wide.columns) + " |"
    lines = [head, "|" + "---|" * (3 + len(wide.columns))]
    for name, row in zip(wide.index, wide.to_numpy(), strict=True):
        lines.append("| " + " | ".join([*name, *(f"{x:.1f}" for x in row)]) + " |")
    return "\n".join(lines)
