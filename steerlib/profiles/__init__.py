"""User profiles: ratings read and checked, conversations split, sensitivities fitted, prompts drawn."""

# ruff: noqa: F401  (the names that notebooks use)

from steerlib.profiles.prompts import demo_openings, draw_prompts, prompt_categories, split_conversations
from steerlib.profiles.ratings import read_demographics, read_ratings, with_toxicity
from steerlib.profiles.sensitivities import (
    planted_recovery,
    profiles_table,
    sensitivities,
    split_half_agreement,
)
from steerlib.profiles.sources import PROMPT_CATEGORIES
