# ruff: noqa: F401
"""Room of notebook 06: the alpha explorer, its saved page, and the blind preference panel."""

from steerlib.explorer.page import (
    add_to_report,
    answers_table,
    embedded_page,
    page_data,
    saved_page,
    write_page,
)
from steerlib.explorer.preference import BlindPanel, agreement, blind_pairs, preference_results, read_choices
from steerlib.explorer.session import (
    Answers,
    Explorer,
    NotEnoughMemory,
    Question,
    run_prompts,
    run_ranges,
    run_vectors,
)
from steerlib.explorer.widget import AlphaExplorer
