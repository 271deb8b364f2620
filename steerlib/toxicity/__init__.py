"""Toxicity of a text in six attributes: scorers behind one call, and the scores of a run."""

from steerlib.toxicity.attributes import ATTRIBUTES, check_attribute
from steerlib.toxicity.scorers import Scorer, archive, load_scorer, score_texts, text_sha

__all__ = ["ATTRIBUTES", "Scorer", "archive", "check_attribute", "load_scorer", "score_texts", "text_sha"]
