"""Judges of an answer: SDA's score S and verdicts on pairs, by whatever stands behind one call, and kept."""

from steerlib.judges.base import (
    CRITERIA,
    DIMENSIONS,
    PERSONAS,
    ComparingJudge,
    Judge,
    after_thinking,
    check_dimension,
    judged,
    verdicts,
)
from steerlib.judges.endpoint import EndpointJudge
from steerlib.judges.load import load_judge, score_first_answers
from steerlib.judges.local import LocalJudge, RewardJudge, ScorerJudge

__all__ = [
    "CRITERIA",
    "DIMENSIONS",
    "PERSONAS",
    "ComparingJudge",
    "EndpointJudge",
    "Judge",
    "LocalJudge",
    "RewardJudge",
    "ScorerJudge",
    "after_thinking",
    "check_dimension",
    "judged",
    "load_judge",
    "score_first_answers",
    "verdicts",
]
