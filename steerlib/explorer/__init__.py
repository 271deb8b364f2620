"""Room of notebook 06: the alpha explorer."""

from steerlib.explorer.page import LiveCurves, answers_html, answers_table, curves_figure
from steerlib.explorer.session import OPENINGS, Answers, Explorer, run_prompts, run_vectors
from steerlib.explorer.widget import AlphaExplorer

__all__ = [
    "OPENINGS",
    "AlphaExplorer",
    "Answers",
    "Explorer",
    "LiveCurves",
    "answers_html",
    "answers_table",
    "curves_figure",
    "run_prompts",
    "run_vectors",
]
