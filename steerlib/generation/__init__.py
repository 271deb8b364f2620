"""Room of notebook 03: contexts, steering rules, sampling, decoding, the sweep."""

from steerlib.generation.arms import make_arms
from steerlib.generation.branches import BranchModels
from steerlib.generation.contexts import Contexts, branch_ids, default_contexts
from steerlib.generation.corrected import ALIGNER_TEMPLATE, aligner_arms, run_aligner
from steerlib.generation.decoding import decode
from steerlib.generation.factors import amplification_factor, named_factor
from steerlib.generation.grid import Strengths, study_arms
from steerlib.generation.path import alpha_path
from steerlib.generation.realignment import (
    SCORE_FUNCTIONS,
    SDA_PRESETS,
    amplification,
    js_divergence,
    js_temperature,
)
from steerlib.generation.requests import category_of
from steerlib.generation.rules import RULES, anti_expert, base_nucleus, check_method, expert_anti_expert, sda
from steerlib.generation.sampling import Sampling
from steerlib.generation.sweep import run_sweep
from steerlib.generation.variants import with_variants

__all__ = [
    "ALIGNER_TEMPLATE",
    "RULES",
    "SCORE_FUNCTIONS",
    "SDA_PRESETS",
    "BranchModels",
    "Contexts",
    "Sampling",
    "Strengths",
    "aligner_arms",
    "alpha_path",
    "amplification",
    "amplification_factor",
    "anti_expert",
    "base_nucleus",
    "branch_ids",
    "category_of",
    "check_method",
    "decode",
    "default_contexts",
    "expert_anti_expert",
    "js_divergence",
    "js_temperature",
    "make_arms",
    "named_factor",
    "run_aligner",
    "run_sweep",
    "sda",
    "study_arms",
    "with_variants",
]
