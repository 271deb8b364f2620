"""The dose response to point at and zoom into, for JupyterLab; the static figure stands beside it everywhere."""

import html

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlib.figures.points import curves, is_control, reduced
from steerlib.figures.responses import half_widths, steered_methods
from steerlib.figures.style import COLOUR, label, strength

HOVER = (
    "at %{x:g}<br>%{y:.1f}, 95 % interval %{customdata[0]:.1f} to %{customdata[1]:.1f}<br>n %{customdata[2]}"
)


def interactive_dose_response(points: pd.DataFrame, *, ylabel: str = "") -> go.Figure:
    """Reduction of the toxicity distance against alpha, one panel a method; hovering shows value, interval and n.

    Args:
        points: what `points` returned for the metric `reduction_percent`, or for another metric named by `ylabel`.
        ylabel: the metric with its unit; where empty, the reduction that `points` are of.

    Raises:
        ValueError: no steered arm, or a method without a colour.
    """
    methods = steered_methods(points)
    fig = make_subplots(rows=1, cols=len(methods), shared_yaxes=True, horizontal_spacing=0.03)
    for column, method in enumerate(methods, start=1):
        for name, rows in curves(points[points["method"] == method]):
            fig.add_trace(_trace(rows, method, f"{label(method)}, {name}"), row=1, col=column)
        fig.update_xaxes(title_text=f"{strength(method)} of {label(method)}", row=1, col=column)
    fig.add_hline(y=0, line={"color": COLOUR["base"], "dash": "dash", "width": 1})
    fig.update_yaxes(title_text=ylabel or f"reduction of {reduced(points)} (%)", col=1)
    fig.update_layout(
        template="simple_white",
        width=900,
        height=460,
        legend={"orientation": "h", "y": -0.25},
        margin={"t": 20},
    )
    return fig


def _trace(rows: pd.DataFrame, method: str, name: str) -> go.Scatter:
    down, up = half_widths(rows)
    control = bool(is_control(rows).iloc[0])
    return go.Scatter(
        x=rows["alpha"].tolist(),
        y=rows["value"].tolist(),
        error_y={"array": up.tolist(), "arrayminus": down.tolist(), "thickness": 1, "width": 0},
        customdata=rows[["low", "high", "n"]].to_numpy().tolist(),
        hovertemplate=HOVER,
        name=html.escape(name),
        mode="lines+markers",
        line={"width": 1 if control else 2, "dash": "dash" if rows["split"].iloc[0] == "dev" else "solid"},
        marker={"symbol": "circle-open" if control else "circle", "size": 7, "color": COLOUR[method]},
        line_color=COLOUR[method],
    )
