"""Room of notebook 05, lent to the others: every figure, the published numbers, the report."""

from steerlib.figures.alignment import plot_amplification, plot_js_temperature, plot_margins, token_strip_html
from steerlib.figures.direction import plot_direction
from steerlib.figures.disagreement import plot_disagreement
from steerlib.figures.examples import examples_html
from steerlib.figures.interactive import interactive_dose_response
from steerlib.figures.paths import mean_path, plot_alpha_path
from steerlib.figures.points import arm_name, counts, headline, is_control, points
from steerlib.figures.preference import plot_preference
from steerlib.figures.preference_direction import plot_accuracy_by_layer, plot_chance
from steerlib.figures.profiles import (
    plot_confusion,
    plot_primary_categories,
    plot_profiles,
    plot_radar,
    plot_recovery,
    plot_reliability,
)
from steerlib.figures.published import beside_published, published
from steerlib.figures.published_caa import published_caa_selectivity, published_caa_sweep
from steerlib.figures.published_sda import published_sda, sda_headlines
from steerlib.figures.report import Grid, Picture, Section, write_report
from steerlib.figures.responses import plot_against_alpha, plot_dose_response, plot_effects, plot_tradeoff
from steerlib.figures.selectivity import plot_dose_and_fluency, plot_selectivity
from steerlib.figures.study import study_report
from steerlib.figures.style import COLOUR, LABEL, save, use_style
from steerlib.figures.sweep import answers_moved, plot_changed_answers, plot_dose
from steerlib.figures.truthful import plot_truthful
from steerlib.figures.user_map import plot_user_map
from steerlib.figures.vectors import (
    auc,
    cosines_between_layers,
    plot_cosines,
    plot_layers,
    plot_projection,
    projections,
)

__all__ = [
    "COLOUR",
    "LABEL",
    "Grid",
    "Picture",
    "Section",
    "answers_moved",
    "arm_name",
    "auc",
    "beside_published",
    "cosines_between_layers",
    "counts",
    "examples_html",
    "headline",
    "interactive_dose_response",
    "is_control",
    "mean_path",
    "plot_accuracy_by_layer",
    "plot_against_alpha",
    "plot_alpha_path",
    "plot_amplification",
    "plot_chance",
    "plot_changed_answers",
    "plot_confusion",
    "plot_cosines",
    "plot_direction",
    "plot_disagreement",
    "plot_dose",
    "plot_dose_and_fluency",
    "plot_dose_response",
    "plot_effects",
    "plot_js_temperature",
    "plot_layers",
    "plot_margins",
    "plot_preference",
    "plot_primary_categories",
    "plot_profiles",
    "plot_projection",
    "plot_radar",
    "plot_recovery",
    "plot_reliability",
    "plot_selectivity",
    "plot_tradeoff",
    "plot_truthful",
    "plot_user_map",
    "points",
    "projections",
    "published",
    "published_caa_selectivity",
    "published_caa_sweep",
    "published_sda",
    "save",
    "sda_headlines",
    "study_report",
    "token_strip_html",
    "use_style",
    "write_report",
]
