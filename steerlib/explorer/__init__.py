# ruff: noqa: F401
"""Room of notebook 06: the alpha explorer, its saved page, and the blind preference panel."""

from steerlib.explorer.page import embedded_page, page_data, publish, read_pages, saved_page
from steerlib.explorer.preference import BlindPanel, agreement, blind_pairs, preference_results, read_choices
from steerlib.explorer.questions import Answers, Question, run_prompts, run_ranges
from steerlib.explorer.session import Explorer
from steerlib.explorer.widget import AlphaExplorer
