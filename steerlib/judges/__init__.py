"""Judges of an answer: SDA's score S and pairwise verdicts, by four kinds of judge behind one protocol, cached."""

from steerlib.judges.base import DIMENSIONS, Judge, judged, verdicts
from steerlib.judges.load import load_judge, score_first_answers

__all__ = [
    "DIMENSIONS",
    "Judge",
    "judged",
    "load_judge",
    "score_first_answers",
    "verdicts",
]
