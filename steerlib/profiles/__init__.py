"""User profiles: ratings read and checked, conversations split, sensitivities fitted, prompts drawn."""

from steerlib.profiles.prompts import demo_openings, draw_prompts, prompt_categories, shuffled_categories
from steerlib.profiles.ratings import read_demographics, read_ratings, with_toxicity
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
from steerlib.profiles.sources import PROMPT_CATEGORIES
from steerlib.profiles.splits import check_splits, split_conversations

__all__ = [
    "ESTIMATORS",
    "PROMPT_CATEGORIES",
    "check_splits",
    "demo_openings",
    "draw_prompts",
    "percentiles",
    "planted_recovery",
    "population_category",
    "primary_category",
    "profiles_table",
    "prompt_categories",
    "read_demographics",
    "read_ratings",
    "sensitivities",
    "shuffled_categories",
    "split_conversations",
    "split_half_agreement",
    "with_toxicity",
]
