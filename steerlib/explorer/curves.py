"""Curves over alpha for one prompt: a live figure that follows the slider, and the same as a picture."""

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from steerlib.figures.style import COLOUR, label, new_figure

NLL = "nll_per_token"
NLL_LABEL = "NLL under the base, nats/token"
LEAST_TOPS = (0.25, 1.0)
"""The axes reach at least here, so that noise in a score's third decimal does not look like an effect."""


class LiveCurves:
    """Score of the steering category and likelihood under the base over alpha, with a marker at one alpha.

    Attributes:
        widget: the figure, a plotly FigureWidget. Its traces are base, steered and marker of the score, the same of
            the likelihood, and base and steered of overall toxicity, drawn thin beside the category's score.
    """

    def __init__(self) -> None:
        grid = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
        for column, width in ((1, 2), (2, 2), (1, 0.8)):
            grid.add_scatter(mode="lines", line={"dash": "dash", "width": width}, row=1, col=column)
            mode = "lines+markers" if width > 1 else "lines"
            grid.add_scatter(mode=mode, marker={"size": 6}, line={"width": width}, row=1, col=column)
            if width > 1:
                ring = {"size": 15, "symbol": "circle-open"}
                grid.add_scatter(mode="markers", marker=ring, cliponaxis=False, row=1, col=column)
        grid.update_traces(showlegend=False, hovertemplate="alpha %{x:g}: %{y:.3f}<extra></extra>")
        grid.update_xaxes(title="alpha", zeroline=False, gridcolor="rgba(127,127,127,.2)")
        grid.update_yaxes(zeroline=False, gridcolor="rgba(127,127,127,.2)")
        grid.update_layout(
            autosize=True,
            height=260,
            margin={"l": 60, "r": 15, "t": 15, "b": 45},
            font={"color": "#7a7a7a", "size": 11},
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
        )
        self.widget = go.FigureWidget(grid)
        self.widget._config = {"displayModeBar": False}

    def draw(self, answers: pd.DataFrame, category: str) -> None:
        """Show other answers; the marker goes to alpha 0."""
        colour, traces, layout = COLOUR[answers["method"].iloc[-1]], self.widget.data, self.widget.layout
        with self.widget.batch_update():
            for first, column in ((0, category), (3, NLL), (6, "toxicity")):
                ends, level = answers["alpha"].iloc[[0, -1]], [answers[column].iloc[0]] * 2
                traces[first].update(x=ends, y=level, line_color=COLOUR["base"])
                traces[first + 1].update(x=answers["alpha"], y=answers[column], line_color=colour)
            for marker in (traces[2], traces[5]):
                marker.update(marker={"color": colour, "line": {"width": 3}})
            layout.yaxis.title, layout.yaxis2.title = _score_label(category), NLL_LABEL
            layout.yaxis.range, layout.yaxis2.range = _ranges(answers, category)
        self.mark(answers.iloc[0], category)

    def mark(self, row: pd.Series, category: str) -> None:
        """Move the marker to one answer."""
        with self.widget.batch_update():
            for trace, column in ((2, category), (5, NLL)):
                self.widget.data[trace].update(x=[row["alpha"]], y=[row[column]])


def curves_figure(answers: pd.DataFrame, category: str) -> Figure:
    """Score of the category and likelihood under the base over alpha; one prompt, so no interval can be drawn.

    Args:
        answers: of `Explorer.answers`.
        category: the attribute that steers; overall toxicity is drawn thin beside it.
    """
    fig, axes = new_figure(1, 2, height=2.6)
    method = answers["method"].iloc[-1]
    names, ranges = (_score_label(category), NLL_LABEL), _ranges(answers, category)
    for axis, column, name, ends in zip(axes[0], (category, NLL), names, ranges, strict=True):
        axis.axhline(
            answers[column].iloc[0], color=COLOUR["base"], linestyle=(0, (4, 2)), label=label("base")
        )
        axis.plot(answers["alpha"], answers[column], color=COLOUR[method], marker="o", label=label(method))
        axis.set(xlabel="alpha", ylabel=name, ylim=ends)
    thin = {"linewidth": 0.8, "zorder": 1}
    axes[0, 0].axhline(answers["toxicity"].iloc[0], color=COLOUR["base"], linestyle=(0, (4, 2)), **thin)
    axes[0, 0].plot(answers["alpha"], answers["toxicity"], color=COLOUR[method], **thin)
    axes[0, 1].legend(loc="lower right")
    return fig


def _score_label(category: str) -> str:
    return f"{label(category)} score" + ("" if category == "toxicity" else " (thin: toxicity)")


def _ranges(answers: pd.DataFrame, category: str) -> list[tuple[float, float]]:
    """Range of the score's axis and of the likelihood's; a NaN (an empty answer) counts for nothing."""
    highest = (answers[[category, "toxicity"]].max(axis=None), answers[NLL].fillna(0).max())
    return [(0.0, 1.08 * max(pair)) for pair in zip(highest, LEAST_TOPS, strict=True)]
