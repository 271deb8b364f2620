"""Room of notebook 04: toxicity distance, fluency, diversity, choices, and intervals for all of them."""

from steerlib.evaluation.choose import choose_alpha, chosen_arms
from steerlib.evaluation.diversity import distinct_n, length, repetition
from steerlib.evaluation.intervals import Interval, cluster_interval, seed_interval
from steerlib.evaluation.metrics import (
    change_percent,
    overshoot_rate,
    perplexity,
    reduction_percent,
    signed_shift,
    toxicity_distance,
    win_rate,
)
from steerlib.evaluation.statistics import (
    STATISTICS,
    Statistic,
    crossed_interval,
    max_t_band,
    paired_interval,
    sign_test,
)

__all__ = [
    "STATISTICS",
    "Interval",
    "Statistic",
    "change_percent",
    "choose_alpha",
    "chosen_arms",
    "cluster_interval",
    "crossed_interval",
    "distinct_n",
    "length",
    "max_t_band",
    "overshoot_rate",
    "paired_interval",
    "perplexity",
    "reduction_percent",
    "repetition",
    "seed_interval",
    "sign_test",
    "signed_shift",
    "toxicity_distance",
    "win_rate",
]
