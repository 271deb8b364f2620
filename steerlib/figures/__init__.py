# ruff: noqa: F401
"""Room of notebook 05, lent to the others: every figure, the published numbers, the report."""

from steerlib.figures.effect import plot_effect, plot_tradeoff
from steerlib.figures.profiles import plot_profiles, plot_projection
from steerlib.figures.report import kept_toxicity, published, published_margins, write_report
from steerlib.figures.responses import plot_against_kl, plot_forest, points, verdict_effects
from steerlib.figures.style import arm_at, arm_name, label, new_figure, save, say, use_style
from steerlib.figures.sweep import examples_html, plot_alpha_path, plot_sda
