"""Room of notebook 04: toxicity distance, fluency, diversity, choices, and intervals for all of them."""

from steerlib.evaluation.answers import per_answer, per_prompt
from steerlib.evaluation.asking import ask_questions
from steerlib.evaluation.bimodality import TwoPeaks, point_peaks, two_peaks
from steerlib.evaluation.choices import (
    brier,
    calibration_error,
    choice_probabilities,
    choice_rows,
    choices_under_steering,
    letter_ids,
)
from steerlib.evaluation.choose import choose_alpha, chosen_arms
from steerlib.evaluation.compared import (
    compared_answers,
    judge_compared,
    margin_metrics,
    read_margins,
    sda_comparators,
)
from steerlib.evaluation.controls import with_controls
from steerlib.evaluation.disagreement import disagreement_points, disagreement_slopes
from steerlib.evaluation.divergence import token_divergence
from steerlib.evaluation.diversity import distinct_n, length, repetition
from steerlib.evaluation.intervals import Interval, cluster_interval, seed_interval
from steerlib.evaluation.likelihood import answer_likelihood
from steerlib.evaluation.margins import (
    Margin,
    circularity,
    margins_by,
    net_margin,
    order_averaged,
    place_bias,
)
from steerlib.evaluation.metrics import (
    change_percent,
    overshoots,
    perplexity,
    reduction_percent,
    signed_shift,
    toxicity_distance,
    win_rate,
)
from steerlib.evaluation.pair_likelihood import likelihood_margins
from steerlib.evaluation.paths import arm_at, arm_path, path_against_grid, path_sampling
from steerlib.evaluation.personal import personal_alphas
from steerlib.evaluation.preference import (
    Ppa,
    compare_preferences,
    length_margins,
    ppa_coordinates,
    ppa_likelihood,
    safety_margins,
)
from steerlib.evaluation.preference_direction import (
    chance_accuracies,
    compare_auc,
    preference_rows,
    scores_along,
    without_length,
)
from steerlib.evaluation.quality import quality_by_sampling
from steerlib.evaluation.questions import question_prompt, read_questions, sample_questions, shots_for
from steerlib.evaluation.robust import trimmed_change
from steerlib.evaluation.selectivity import selectivity, selectivity_contrasts
from steerlib.evaluation.settings import first_temperature
from steerlib.evaluation.statistics import (
    STATISTICS,
    Statistic,
    crossed_interval,
    max_t_band,
    paired_interval,
    sign_test,
)
from steerlib.evaluation.summary import small_subgroups, summarise
from steerlib.evaluation.trend import (
    dose_responses,
    fluent_alphas,
    response_band,
    response_slopes,
    response_steps,
    trend,
)
from steerlib.evaluation.truthful import answer_logprobs, truthful_scores, truthful_summary
from steerlib.evaluation.truthful_files import read_truthful, sample_truthful
from steerlib.evaluation.tuned import tuned_arm
from steerlib.evaluation.utility import summarise_choices

__all__ = [
    "STATISTICS",
    "Interval",
    "Margin",
    "Ppa",
    "Statistic",
    "TwoPeaks",
    "answer_likelihood",
    "answer_logprobs",
    "arm_at",
    "arm_path",
    "ask_questions",
    "brier",
    "calibration_error",
    "chance_accuracies",
    "change_percent",
    "choice_probabilities",
    "choice_rows",
    "choices_under_steering",
    "choose_alpha",
    "chosen_arms",
    "circularity",
    "cluster_interval",
    "compare_auc",
    "compare_preferences",
    "compared_answers",
    "crossed_interval",
    "disagreement_points",
    "disagreement_slopes",
    "distinct_n",
    "dose_responses",
    "first_temperature",
    "fluent_alphas",
    "judge_compared",
    "length",
    "length_margins",
    "letter_ids",
    "likelihood_margins",
    "margin_metrics",
    "margins_by",
    "max_t_band",
    "net_margin",
    "order_averaged",
    "overshoots",
    "paired_interval",
    "path_against_grid",
    "path_sampling",
    "per_answer",
    "per_prompt",
    "perplexity",
    "personal_alphas",
    "place_bias",
    "point_peaks",
    "ppa_coordinates",
    "ppa_likelihood",
    "preference_rows",
    "quality_by_sampling",
    "question_prompt",
    "read_margins",
    "read_questions",
    "read_truthful",
    "reduction_percent",
    "repetition",
    "response_band",
    "response_slopes",
    "response_steps",
    "safety_margins",
    "sample_questions",
    "sample_truthful",
    "scores_along",
    "sda_comparators",
    "seed_interval",
    "selectivity",
    "selectivity_contrasts",
    "shots_for",
    "sign_test",
    "signed_shift",
    "small_subgroups",
    "summarise",
    "summarise_choices",
    "token_divergence",
    "toxicity_distance",
    "trend",
    "trimmed_change",
    "truthful_scores",
    "truthful_summary",
    "tuned_arm",
    "two_peaks",
    "win_rate",
    "with_controls",
    "without_length",
]
