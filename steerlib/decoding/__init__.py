"""Room of notebook 03: contexts, arms, sampling, decoding, the alpha path, the sweep."""

from steerlib.decoding.alpha_path import alpha_path
from steerlib.decoding.arms import Strengths, amplification_factor, make_arms, study_arms, with_variants
from steerlib.decoding.contexts import BranchModels, Contexts, branch_ids, default_contexts
from steerlib.decoding.decode import decode
from steerlib.decoding.distributed import mapped_table
from steerlib.decoding.requests import Inputs
from steerlib.decoding.sampling import Sampling
from steerlib.decoding.sweep import ALIGNER_TEMPLATE, aligner_arms, run_aligner, run_sweep
from steerlib.residual import Factor, VectorFamily
from steerlib.rules import RULES, Rule, anti_expert, expert_anti_expert, sda

__all__ = [
    "ALIGNER_TEMPLATE",
    "RULES",
    "BranchModels",
    "Contexts",
    "Factor",
    "Inputs",
    "Rule",
    "Sampling",
    "Strengths",
    "VectorFamily",
    "aligner_arms",
    "alpha_path",
    "amplification_factor",
    "anti_expert",
    "branch_ids",
    "decode",
    "default_contexts",
    "expert_anti_expert",
    "make_arms",
    "mapped_table",
    "run_aligner",
    "run_sweep",
    "sda",
    "study_arms",
    "with_variants",
]
