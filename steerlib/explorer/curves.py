"""Curves over alpha for one prompt: a live figure that follows the slider, and the same as a picture."""

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from steerlib.figures.style import COLOUR, label, new_figure

NLL = "nll_per_token"
NLL_LABEL = "NLL under the base, nats/token"


class LiveCurves:
    """Score of the steering category and likelihood under the base over alpha, with a marker at one alpha.

    Attributes:
        widget: the figure, a plotly FigureWidget.
    """

    def __init__(self) -> None:
        grid = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
        for column in (1, 2):
            grid.add_scatter(mode="lines", line={"dash": "dash", "color": COLOUR["base"]}, row=1, col=column)
            grid.add_scatter(mode="lines+markers", marker={"size": 6}, row=1, col=column)
            grid.add_scatter(mode="markers", marker={"size": 15, "symbol": "circle-open"}, row=1, col=column)
        grid.update_traces(showlegend=False, hovertemplate="alpha %{x:g}: %{y:.3f}<extra></extra>")
        grid.update_xaxes(title="alpha", zeroline=False, gridcolor="rgba(127,127,127,.2)")
        grid.update_yaxes(rangemode="tozero", zeroline=False, gridcolor="rgba(127,127,127,.2)")
        grid.update_layout(
            height=260,
            margin={"l": 60, "r": 15, "t": 15, "b": 45},
            font={"color": "#7a7a7a"},
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
        )
        self.widget = go.FigureWidget(grid)
        self.widget._config = {"displayModeBar": False, "responsive": True}

    def draw(self, answers: pd.DataFrame, category: str) -> None:
        """Show other answers; the marker goes to alpha 0."""
        colour = COLOUR[answers["method"].iloc[-1]]
        with self.widget.batch_update():
            for first, column in ((0, category), (3, NLL)):
                base, line, marker = self.widget.data[first : first + 3]
                base.update(x=answers["alpha"].iloc[[0, -1]], y=[answers[column].iloc[0]] * 2)
                line.update(x=answers["alpha"], y=answers[column], line_color=colour)
                marker.update(marker={"color": colour, "line": {"width": 3}})
            self.widget.layout.yaxis.title = f"{label(category)} score"
            self.widget.layout.yaxis2.title = NLL_LABEL
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
        category: the attribute that steers.
    """
    fig, axes = new_figure(1, 2, height=2.6)
    method = answers["method"].iloc[-1]
    labels = (f"{label(category)} score", NLL_LABEL)
    for axis, column, name in zip(axes[0], (category, NLL), labels, strict=True):
        axis.axhline(
            answers[column].iloc[0], color=COLOUR["base"], linestyle=(0, (4, 2)), label=label("base")
        )
        axis.plot(answers["alpha"], answers[column], color=COLOUR[method], marker="o", label=label(method))
        axis.set(xlabel="alpha", ylabel=name)
        axis.set_ylim(bottom=0)
    axes[0, 0].legend()
    return fig
