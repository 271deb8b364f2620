# ruff: noqa: F401
"""Room of notebook 05, lent to the others: every figure, the published numbers, the report."""

from steerlib.figures.effect import plot_effect, plot_ranges, plot_tradeoff
from steerlib.figures.profiles import plot_layers, plot_profiles, plot_projection
from steerlib.figures.report import kept_toxicity, plot_published, published, published_margins, write_report
from steerlib.figures.responses import plot_against_alpha, plot_forest, points
from steerlib.figures.style import arm_at, arm_name, label, new_figure, save, say, use_style
from steerlib.figures.sweep import examples_html, plot_alpha_path, plot_sda
