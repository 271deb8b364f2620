"""Room of notebook 03: contexts, arms, sampling, decoding, the alpha path, the sweep."""

# ruff: noqa: F401  (the names that notebooks and other rooms use)

from steerlib.decoding.alpha_path import alpha_path
from steerlib.decoding.arms import amplification_factor, make_arms, study_arms, with_variants
from steerlib.decoding.decode import decode
from steerlib.decoding.distributed import mapped_table
from steerlib.decoding.requests import BranchModels, Contexts, Factor, Inputs, branch_ids, default_contexts
from steerlib.decoding.sampling import Sampling
from steerlib.decoding.sweep import ALIGNER_TEMPLATE, aligner_arms, run_aligner, run_sweep
from steerlib.residual import VectorFamily
from steerlib.rules import RULES, Rule, anti_expert, expert_anti_expert, sda
