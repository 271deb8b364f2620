"""Pictures of SDA: what its score and its divergence do, its margins, and where the instruction matters."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from steerlib.figures.responses import ZERO, half_widths
from steerlib.figures.style import label, new_figure
from steerlib.rules import (
    RULES,
    SCORE_FUNCTIONS,
    SDA_PRESETS,
    amplification,
    js_divergence,
    js_temperature,
)

LARGEST = float(np.log(2))
"""The Jensen-Shannon divergence of two distributions that share no token, in nats."""

INSTRUCTION = (230, 159, 0)  # Okabe-Ito orange: one colour in many strengths
LINES: Sequence[Any] = ("-", (0, (5, 2)), (0, (2, 1)), "-.", ":", "-", (0, (8, 2, 1, 2, 1, 2)))
MARKERS = ("o", "s", "D", "^")


def plot_amplification() -> Figure:
    """F(S) against the score of the first answer: the paper's function and the six others of the authors' code."""
    scores = np.linspace(2, 100, 400)
    fig, axes = new_figure(height=3.6)
    axis = axes[0, 0]
    axis.axhline(0, color=RULES["base"].colour, **ZERO)
    for number, name in enumerate(SCORE_FUNCTIONS):
        own = (
            {"color": RULES["sda"].colour, "linewidth": 2.6}
            if number == 0
            else {"color": str(0.1 + 0.09 * number)}
        )
        values = amplification(scores, name)
        text = f"{label(name)} (the paper's)" if number == 0 else label(name)
        axis.plot(scores, values, linestyle=LINES[number], label=text, **own)
    axis.set(
        xlim=(0, 100),
        ylim=(-1.05, 2.5),
        xlabel="score S of the first answer (points); inverse leaves the plot below 40",
        ylabel="amplification a = F(S)",
    )
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def plot_js_temperature(
    presets: Mapping[str, Mapping[str, float]] = SDA_PRESETS, *, observed: ArrayLike | None = None
) -> Figure:
    """Temperature against the divergence of the branches, on a logarithmic axis.

    Args:
        presets: by name, temperature, js_sigma and min_temperature.
        observed: divergences of real tokens in nats, see `token_divergence`; the middle 80 % of those are shaded,
            their median dotted.
    """
    # Two tokens whose probabilities are exchanged: every divergence from 0 to ln 2 is one of these.
    gap = torch.linspace(0.01, 40, 4000, dtype=torch.float64)
    one, two = torch.stack([gap, -gap], 1) / 2, torch.stack([-gap, gap], 1) / 2
    js = js_divergence(one, two).numpy()
    fig, axes = new_figure(height=3.4)
    axis = axes[0, 0]
    for number, (name, preset) in enumerate(presets.items()):
        t = js_temperature(
            one, two, t0=preset["temperature"], sigma=preset["js_sigma"], t_min=preset["min_temperature"]
        )
        text = f"{label(name)}: $T_0$ {preset['temperature']:g}, sigma {preset['js_sigma']:.3g}"
        floor = f", floor {preset['min_temperature']:g}" if preset["min_temperature"] else ""
        axis.plot(js, t.numpy(), color=RULES["sda"].colour, linestyle=LINES[number], label=text + floor)
    if observed is not None:
        _draw_observed(axis, np.asarray(observed, dtype=float))
    axis.set(xscale="log", xlim=(1e-4, LARGEST), ylim=(0, None))
    axis.set(xlabel="JS divergence of plain and instructed branch (nats, up to ln 2)", ylabel="temperature T")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return fig


def _draw_observed(axis: Axes, js: np.ndarray) -> None:
    low, middle, high = np.quantile(js, [0.1, 0.5, 0.9])
    axis.axvspan(
        low, high, color=RULES["base"].colour, alpha=0.15, linewidth=0, label="middle 80 % of the tokens"
    )
    axis.axvline(middle, color=RULES["base"].colour, linestyle=":", label=f"median token, {middle:.2g} nats")


def plot_margins(margins: pd.DataFrame, *, interval: str = "95 % bootstrap interval") -> Figure:
    """Net win margin of SDA against each comparator, one line a dimension, wins, ties and losses beside it.

    Args:
        margins: what `margins_by` returned: dimension, comparator (for instance "base", "instructed",
            "steering_only"), value, low, high, win, even, lose.
        interval: what low and high are.

    Raises:
        ValueError: no rows, or more than four comparators.
    """
    comparators = list(dict.fromkeys(margins["comparator"]))
    dimensions = list(dict.fromkeys(margins["dimension"]))
    if not 0 < len(comparators) <= len(MARKERS):
        raise ValueError(f"one to {len(MARKERS)} comparators can be drawn, not {len(comparators)}")
    step = 0.8 / len(comparators)
    fig, axes = new_figure(height=1.1 + 0.26 * len(comparators) * len(dimensions))
    axis = axes[0, 0]
    axis.axvline(0, color=RULES["base"].colour, **ZERO)
    for number, name in enumerate(comparators):
        rows = margins[margins["comparator"] == name]
        lines = rows["dimension"].map(dimensions.index) + step * (number - (len(comparators) - 1) / 2)
        _draw_margins(axis, rows, lines.to_numpy(), name, MARKERS[number])
    axis.set_yticks(range(len(dimensions)), [label(name) for name in dimensions])
    axis.set(xlim=(-1.02, 1.02), ylim=(len(dimensions) - 0.5, -0.5))
    axis.set_xlabel(f"net win margin of SDA (win - lose) / all, {interval}")
    axis.grid(visible=False, axis="y")
    fig.legend(loc="outside upper center", ncols=len(comparators))
    return fig


def _draw_margins(axis: Axes, rows: pd.DataFrame, lines: np.ndarray, name: str, marker: str) -> None:
    colour = (RULES.get(name) or RULES["sda"]).colour  # what is left of SDA without a part has its colour
    axis.errorbar(
        rows["value"],
        lines,
        xerr=half_widths(rows),
        color=colour,
        marker=marker,
        markersize=5,
        linestyle="",
        label=f"SDA vs {label(name)}",
    )
    for line, (win, even, lose) in zip(lines, rows[["win", "even", "lose"]].to_numpy().tolist(), strict=True):
        axis.annotate(
            f"{win} won, {even} even, {lose} lost",
            (1.02, line),
            (6, 0),
            xycoords=axis.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontsize=7,
            annotation_clip=False,
        )


def token_strip_html(
    tokens: Sequence[str], js: ArrayLike, *, highest: float | None = None, title: str = ""
) -> HTML:
    """An answer with each token shaded by the divergence of the branches there; all text is escaped.

    Args:
        tokens: texts of the tokens, in order; a model's words, shown and never obeyed.
        js: divergence at each, in nats, `(n,)`.
        highest: divergence of the strongest shade; by default the largest of these.
        title: a line above, escaped too.

    Returns:
        HTML for a notebook, with a legend of the shades.

    Raises:
        ValueError: lengths differ, or a divergence is outside 0 to ln 2.
    """
    values = np.asarray(js, dtype=float)
    if values.shape != (len(tokens),):
        raise ValueError(f"{len(tokens)} tokens have {values.shape} divergences")
    wrong = np.flatnonzero(~((values >= 0) & (values <= LARGEST + 1e-9)))
    if len(wrong):
        raise ValueError(f"divergence {values[wrong[0]]} of token {wrong[0]} is not in 0 to ln 2")
    top = float(highest or max(values.max(initial=0.0), 1e-9))
    spans = [_shaded(text, value, top) for text, value in zip(tokens, values, strict=True)]
    head = f"<p><b>{escape(title)}</b></p>" if title else ""
    scale = "".join(_shaded(f" {part * top:.3f} ", part * top, top) for part in (0, 0.25, 0.5, 0.75, 1))
    legend = f'<p style="font-size:85%">JS divergence (nats): {scale}</p>'
    text = "".join(spans)
    return HTML(f'{head}<div style="white-space:pre-wrap;overflow-wrap:anywhere">{text}</div>{legend}')


def _shaded(text: str, value: float, top: float) -> str:
    red, green, blue = INSTRUCTION
    strength = min(value / top, 1.0)
    shown = escape(text).replace("\n", "\u21b5\n")
    style = f"background:rgba({red},{green},{blue},{strength:.3f});color:#000"
    return f'<span style="{style}" title="{value:.4f} nats">{shown}</span>'
