"""User profiles: whose ratings, on which conversations fitted, how sensitive to what, and prompts drawn by it."""

from steerlib.profiles.alignment_sets import alignment_prompts
from steerlib.profiles.columns import PROMPT_CATEGORIES
from steerlib.profiles.continuations import matched_continuations, mixed_prompts, scored_continuations
from steerlib.profiles.demographics import read_demographics
from steerlib.profiles.planted import planted_recovery
from steerlib.profiles.prompt_categories import conversation_types, prompt_categories
from steerlib.profiles.prompts import draw_prompts, shuffled_categories
from steerlib.profiles.ratings import read_ratings, with_toxicity
from steerlib.profiles.realtoxicity import realtoxicity_prompts
from steerlib.profiles.recovery import (
    recovery_confusion,
    recovery_differences,
    recovery_shares,
    recovery_study,
)
from steerlib.profiles.reliability import split_half_agreement
from steerlib.profiles.sensitivity import (
    ESTIMATORS,
    percentiles,
    population_category,
    primary_category,
    profiles_table,
    sensitivities,
)
from steerlib.profiles.simulation import demo_texts, simulated_ratings
from steerlib.profiles.splits import check_splits, split_conversations

__all__ = [
    "ESTIMATORS",
    "PROMPT_CATEGORIES",
    "alignment_prompts",
    "check_splits",
    "conversation_types",
    "demo_texts",
    "draw_prompts",
    "matched_continuations",
    "mixed_prompts",
    "percentiles",
    "planted_recovery",
    "population_category",
    "primary_category",
    "profiles_table",
    "prompt_categories",
    "read_demographics",
    "read_ratings",
    "realtoxicity_prompts",
    "recovery_confusion",
    "recovery_differences",
    "recovery_shares",
    "recovery_study",
    "scored_continuations",
    "sensitivities",
    "shuffled_categories",
    "simulated_ratings",
    "split_conversations",
    "split_half_agreement",
    "with_toxicity",
]
