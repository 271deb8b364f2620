# ruff: noqa: F401
"""Room of notebook 04: toxicity distance, fluency, diversity, choices, the verdict, and intervals for all of them."""

from steerlib.evaluation.answers import per_prompt
from steerlib.evaluation.controls import (
    CURVE,
    equal_kl_multiple,
    first_temperature,
    kl_on_dev,
    with_controls,
)
from steerlib.evaluation.intervals import Interval, cluster_interval, max_t_band, paired_interval
from steerlib.evaluation.likelihood import likelihood_margins, token_divergence
from steerlib.evaluation.multiple_choice import ask_questions, read_questions, sample_questions
from steerlib.evaluation.preference import (
    circularity,
    compare_preferences,
    judge_pairs,
    length_margins,
    margin_metrics,
    margins_by,
    place_bias,
    read_margins,
    safety_margins,
    sda_comparators,
)
from steerlib.evaluation.responses import dose_responses, quality_by_sampling, response_slopes, selectivity
from steerlib.evaluation.summary import summarise, summarise_choices
from steerlib.evaluation.verdict import (
    difference_text,
    enough,
    operating_range,
    verdict,
    verdict_shown,
    with_interval,
)
