"""What the seed of the sampling noise does to a reduction: its spread over seeds, and an interval for new ones."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from steerlib.evaluation.intervals import Interval, seed_interval
from steerlib.evaluation.metrics import reduction_percent
from steerlib.evaluation.statistics import crossed_interval


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
