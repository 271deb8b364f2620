"""Room of notebook 03: contexts, steering rules, sampling, decoding, the sweep."""

from steerlib.decoding.aligner import ALIGNER_TEMPLATE, aligner_arms, run_aligner
from steerlib.decoding.alpha_path import alpha_path
from steerlib.decoding.arms import Strengths, amplification_factor, make_arms, study_arms, with_variants
from steerlib.decoding.contexts import BranchModels, Contexts, branch_ids, default_contexts
from steerlib.decoding.decode import decode
from steerlib.decoding.requests import category_of
from steerlib.decoding.sampling import Sampling
from steerlib.decoding.sweep import run_sweep
from steerlib.residual import Factor, VectorFamily
from steerlib.rules import (
    RULES,
    SCORE_FUNCTIONS,
    SDA_PRESETS,
    Rule,
    amplification,
    anti_expert,
    base_nucleus,
    check_method,
    expert_anti_expert,
    js_divergence,
    js_temperature,
    sda,
)

__all__ = [
    "ALIGNER_TEMPLATE",
    "RULES",
    "SCORE_FUNCTIONS",
    "SDA_PRESETS",
    "BranchModels",
    "Contexts",
    "Factor",
    "Rule",
    "Sampling",
    "Strengths",
    "VectorFamily",
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
    "run_aligner",
    "run_sweep",
    "sda",
    "study_arms",
    "with_variants",
]
