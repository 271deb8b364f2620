"""User profiles: whose ratings, on which conversations fitted, how sensitive to what, and prompts drawn by it."""

from steerlib.profiles.openings import (
    matched_continuations,
    mixed_prompts,
    realtoxicity_prompts,
    scored_continuations,
)
from steerlib.profiles.prompts import conversation_types, draw_prompts, prompt_categories, shuffled_categories
from steerlib.profiles.sensitivities import (
    ESTIMATORS,
    percentiles,
    planted_recovery,
    population_category,
    primary_category,
    profiles_table,
    sensitivities,
    split_half_agreement,
)
from steerlib.profiles.sources import PROMPT_CATEGORIES, read_demographics, read_ratings, with_toxicity
from steerlib.profiles.splits import check_splits, split_conversations

__all__ = [
    "ESTIMATORS",
    "PROMPT_CATEGORIES",
    "check_splits",
    "conversation_types",
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
    "scored_continuations",
    "sensitivities",
    "shuffled_categories",
    "split_conversations",
    "split_half_agreement",
    "with_toxicity",
]
