"""Judges of an answer: SDA's score S and verdicts on pairs, by whatever stands behind one call, and kept."""

from steerlib.judges.base import ComparingJudge, Judge
from steerlib.judges.dimensions import CRITERIA, DIMENSIONS, PERSONAS, check_dimension
from steerlib.judges.endpoint import EndpointJudge
from steerlib.judges.first import score_first_answers
from steerlib.judges.harmless import ScorerJudge
from steerlib.judges.kept import judged, verdicts
from steerlib.judges.load import load_judge
from steerlib.judges.local import LocalJudge
from steerlib.judges.prompts import after_thinking
from steerlib.judges.reward import RewardJudge

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
