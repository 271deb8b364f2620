"""What the alpha explorer shows: both answers, all answers, and curves over alpha. All text of a model is escaped."""

import math
from html import escape

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from plotly.subplots import make_subplots

from steerlib.explorer.session import Answers
from steerlib.figures.style import label, new_figure
from steerlib.rules import RULES
from steerlib.toxicity import ATTRIBUTES

NLL = "nll_per_token"
LEAST_TOPS = (0.25, 1.0)
"""The axes of score and NLL reach at least here: noise in a third decimal should not look like an effect."""
MUTED = "color:var(--jp-ui-font-color2,#666)"
BOX = "flex:3 1 16em;min-width:0;border-top:4px solid {};padding:6px 2px;line-height:1.45"
WORDS = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:14px;margin:6px 0;min-height:7em"
ROW = "display:grid;grid-template-columns:9em 1fr 6.5em;gap:8px;align-items:center;margin:5px 0"


def curve(answers: Answers, column: str) -> tuple[list[float], list[float]]:
    """A number of the steered answers over alpha: corners of a step function, or the points of a grid.

    Args:
        answers: of `Explorer.answers`.
        column: of its table; NaN where an answer is not complete, for its number is that of a piece of text.
    """
    corners = ["alpha_low", "alpha_high"] if answers.exact else ["alpha_low"]
    heights = answers.steered[column].where(answers.steered["complete"])
    return answers.steered[corners].to_numpy().ravel().tolist(), heights.repeat(len(corners)).tolist()


class LiveCurves:
    """Score of the steering category and NLL under the base over alpha, with a marker at one alpha.

    Attributes:
        widget: the figure, a plotly FigureWidget. Its traces are base, steered answers and marker of the score, then
            of the NLL.
    """

    def __init__(self) -> None:
        grid = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
        ring = {"size": 15, "symbol": "circle-open", "line": {"width": 3}}
        for column in (1, 2):
            grid.add_scatter(mode="lines", line={"dash": "dash"}, row=1, col=column)
            grid.add_scatter(mode="lines", marker={"size": 7}, row=1, col=column)
            grid.add_scatter(mode="markers", marker=ring, cliponaxis=False, row=1, col=column)
        grid.update_traces(showlegend=False, hovertemplate="alpha %{x:.4~g}: %{y:.3f}<extra></extra>")
        grid.update_xaxes(title="alpha", zeroline=False, gridcolor="rgba(127,127,127,.2)")
        grid.update_yaxes(zeroline=False, gridcolor="rgba(127,127,127,.2)")
        clear, margin = "rgba(0,0,0,0)", {"l": 60, "r": 15, "t": 15, "b": 45}
        grid.update_layout(height=260, margin=margin, font={"color": "#7a7a7a", "size": 11})
        grid.update_layout(autosize=True, paper_bgcolor=clear, plot_bgcolor=clear)
        self.widget = go.FigureWidget(grid)
        self.widget._config = {"displayModeBar": False}

    def draw(self, answers: Answers, category: str) -> None:
        """Show other answers; the marker goes to alpha 0."""
        colour, traces, layout = RULES[answers.method].colour, self.widget.data, self.widget.layout
        paint = {"line_color": colour, "marker_color": colour}
        with self.widget.batch_update():
            for first, column in ((0, category), (3, NLL)):
                level = [answers.base[column]] * 2
                traces[first].update(x=[0.0, answers.alpha_max], y=level, line_color=RULES["base"].colour)
                alphas, heights = curve(answers, column)
                traces[first + 1].update(
                    x=alphas, y=heights, mode="lines" if answers.exact else "markers", **paint
                )
                traces[first + 2].update(marker_color=colour)
            layout.yaxis.title, layout.yaxis2.title = _axis_label(category), _axis_label(NLL)
            layout.yaxis.range, layout.yaxis2.range = _ranges(answers, category)
            layout.xaxis.range = layout.xaxis2.range = _reach(answers)
        self.mark(answers, 0.0, category)

    def mark(self, answers: Answers, alpha: float, category: str) -> None:
        """Move the marker to the answer of an alpha."""
        row = answers.at(alpha)
        place = alpha if answers.exact else row["alpha_low"]
        with self.widget.batch_update():
            for trace, column in ((2, category), (5, NLL)):
                self.widget.data[trace].update(x=[place], y=[row[column] if row["complete"] else None])


def curves_figure(answers: Answers, category: str) -> Figure:
    """The same curves as a picture; one prompt, so no interval can be drawn."""
    fig, axes = new_figure(1, 2, height=2.8)
    look = {} if answers.exact else {"marker": "o", "linestyle": "none"}
    dashed = {"color": RULES["base"].colour, "linestyle": (0, (4, 2)), "label": label("base")}
    solid = {"color": RULES[answers.method].colour, "label": label(answers.method)} | look
    for axis, column, ends in zip(axes[0], (category, NLL), _ranges(answers, category), strict=True):
        axis.axhline(answers.base[column], **dashed)
        axis.plot(*curve(answers, column), **solid)
        axis.set(xlabel="alpha", ylabel=_axis_label(column), ylim=ends, xlim=_reach(answers))
    axes[0, 1].legend(loc="lower right")
    return fig


def _axis_label(column: str) -> str:
    return "NLL under the base, nats per token" if column == NLL else f"{label(column)} score"


def _reach(answers: Answers) -> tuple[float, float]:
    return -0.04 * answers.alpha_max, 1.04 * answers.alpha_max


def _ranges(answers: Answers, category: str) -> list[tuple[float, float]]:
    """Range of the score's axis and of the NLL's; a NaN (an empty answer) counts for nothing."""
    highest = answers.table.loc[answers.table["complete"], [category, NLL]].max().fillna(0)
    return [(0.0, 1.08 * max(pair)) for pair in zip(highest, LEAST_TOPS, strict=True)]


def answers_html(answers: Answers, alpha: float, *, category: str) -> str:
    """Base and steered answer side by side, what they share at their head muted, with numbers and score bars.

    Args:
        answers: of `Explorer.answers`.
        alpha: of the steered answer.
        category: the attribute that steers, set in bold.
    """
    base, steered = answers.base, answers.at(alpha)
    low, high = _alpha(steered["alpha_low"]), _alpha(steered["alpha_high"])
    where = f"this answer from {low} to {high}" if answers.exact else f"answer decoded at {low}"
    shared = _shared(base["text"].strip(), steered["text"].strip())
    boxes = _answer(base, "no steering", shared) + _answer(
        steered, f"alpha = {_alpha(alpha)}, {where}", shared
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:20px">{boxes}{_bars(base, steered, category)}</div>'


def _shared(one: str, other: str) -> int:
    """Characters of the words that two texts have in common at their heads."""
    if one == other:
        return len(one)
    parted = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one.rfind(" ", 0, next(parted, min(len(one), len(other)))) + 1


def _alpha(value: float) -> str:
    return f"{round(value, 4):g}"


def _ending(row: pd.Series) -> str:
    if not row["complete"]:
        return "not complete"
    return "by itself" if row["stopped"] else "at the limit"


def _answer(row: pd.Series, where: str, shared: int) -> str:
    text, rule = row["text"].strip(), RULES[row["method"]]
    words = f'<span style="{MUTED}">{escape(text[:shared])}</span>{escape(text[shared:])}'
    if not text:
        words = f'<i style="{MUTED}">(empty answer)</i>'
    if not row["complete"]:
        words += f'<i style="{MUTED}"> … (not complete: all that its alphas were seen to share)</i>'
    nll = "undefined" if math.isnan(row[NLL]) else f"{row[NLL]:.2f}"
    numbers = f"{row['n_tokens']} tokens, ends {_ending(row)} · NLL under the base {nll} nats per token"
    if not math.isnan(row["alpha_low"]) and not math.isnan(row["kl_per_token"]):
        numbers += f" · KL to the base {row['kl_per_token']:.2f} nats per token"
    return (
        f'<div style="{BOX.format(rule.colour)}"><b>{escape(rule.label)}</b> '
        f'<span style="{MUTED}" class="explorer-alpha">{where}</span>'
        f'<div style="{WORDS}" class="explorer-text">{words}</div>'
        f'<div style="{MUTED};font-size:12px">{escape(numbers)}</div></div>'
    )


def _bars(base: pd.Series, steered: pd.Series, category: str) -> str:
    rows = ""
    for name in ATTRIBUTES:
        bars = "".join(
            f'<div style="height:6px;width:{100 * row[name]:.1f}%;min-width:1px;margin:1px 0;'
            f'background:{RULES[row["method"]].colour}"></div>'
            for row in (base, steered)
            if not math.isnan(row[name])
        )
        rows += (
            f'<div style="{ROW};font-weight:{700 if name == category else 400}">'
            f'<span style="white-space:nowrap">{escape(label(name))}</span>'
            f'<div style="background:rgba(127,127,127,.13)">{bars}</div>'
            f"<span>{base[name]:.2f} → {steered[name]:.2f}</span></div>"
        )
    return (
        '<div style="flex:2 1 15em;border-top:4px solid transparent;padding:6px 2px;font-size:12px">'
        f"<b>Scores</b> <span style={MUTED!r}>of 1; base above, steered below</span>{rows}</div>"
    )


def answers_table(answers: Answers, category: str) -> Styler:
    """All answers over alpha with their numbers, to be read where no slider runs; the base comes first.

    A row of a path holds from its first alpha up to its second, a row of a grid at one alpha.

    Args:
        answers: of `Explorer.answers`.
        category: the attribute that steers.
    """
    stretch = {"alpha_low": "alpha from", "alpha_high": "to"} if answers.exact else {"alpha_low": "alpha"}
    kl = {} if answers.exact else {"kl_per_token": "KL/token"}
    names = (
        stretch | {category: label(category), NLL: "NLL/token"} | kl | {"ending": "Ends", "text": "Answer"}
    )
    table = answers.table.assign(ending=answers.table.apply(_ending, axis=1))[[*names]].rename(columns=names)
    left = [{"selector": "td:last-child, th:last-child", "props": "text-align:left"}]
    return (
        table.style.format(precision=2, escape="html", na_rep="")
        .format(_alpha, subset=[*stretch.values()], na_rep="")
        .format(_alpha, subset=next(iter(stretch.values())), na_rep="base")
        .set_table_styles(left)
        .set_table_attributes('class="explorer-table tex2jax_ignore"')  # a dollar in an answer is no formula
        .set_uuid("answers")
        .hide(axis="index")
    )


def summary(answers: Answers, seconds: float) -> str:
    """What was found over alpha, in a line."""
    steered, found = answers.steered, f"{answers.distinct} different answers"
    if not answers.exact:
        return f"{len(steered)} alphas in {seconds:.1f} s, {found}; between them the nearest is shown"
    end, parted = _alpha(answers.alpha_max), int((~steered["complete"]).sum())
    line = f"{found}, {len(steered) - 1} breakpoints between alpha 0 and {end}, in {seconds:.1f} s"
    return line + (f"; {parted} stretches are not complete, the row budget ended them" if parted else "")


def note_html(text: str, *, error: bool = False) -> str:
    """One line of the widget's own words."""
    style = "color:var(--jp-error-color1,#b00020);font-weight:600" if error else MUTED
    return f'<div style="{style}" class="explorer-{"error" if error else "note"}">{escape(text)}</div>'
