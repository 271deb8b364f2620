"""User profiles: whose ratings, on which conversations fitted, how sensitive to what, and prompts drawn by it."""

from steerlib.profiles.planted import planted_recovery
from steerlib.profiles.prompts import draw_prompts, shuffled_categories
from steerlib.profiles.ratings import read_ratings, with_toxicity
from steerlib.profiles.realtoxicity import realtoxicity_prompts
from steerlib.profiles.sensitivity import (
    ESTIMATORS,
    percentiles,
    population_category,
    primary_category,
    profiles_table,
    recovery,
    sensitivities,
)
from steerlib.profiles.splits import check_splits, split_conversations

__all__ = [
    "ESTIMATORS",
    "check_splits",
    "draw_prompts",
    "percentiles",
    "planted_recovery",
    "population_category",
    "primary_category",
    "profiles_table",
    "read_ratings",
    "realtoxicity_prompts",
    "recovery",
    "sensitivities",
    "shuffled_categories",
    "split_conversations",
    "with_toxicity",
]
