"""Base and steered answer as HTML. The text of a model is untrusted: all of it is escaped."""

import math
from html import escape

import pandas as pd
from pandas.io.formats.style import Styler

from steerlib.figures.style import COLOUR, label
from steerlib.toxicity import ATTRIBUTES

MUTED = "color:var(--jp-ui-font-color2,#666)"
BOX = "flex:3 1 16em;min-width:0;border-top:4px solid {};padding:6px 2px;line-height:1.45"
WORDS = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:14px;margin:6px 0;min-height:7em"


def answers_html(base: pd.Series, steered: pd.Series, *, category: str) -> str:
    """Both answers side by side, what they share at their head in a muted colour, with numbers and score bars.

    Args:
        base, steered: rows of `Explorer.answers`.
        category: the attribute that steers, set in bold.
    """
    shared = _shared(base["text"].strip(), steered["text"].strip())
    boxes = _answer(base, shared) + _answer(steered, shared)
    return f'<div style="display:flex;flex-wrap:wrap;gap:20px">{boxes}{_bars(base, steered, category)}</div>'


def answers_table(answers: pd.DataFrame, category: str) -> Styler:
    """All answers over alpha with their numbers, to be read where no slider runs; the texts are escaped.

    Args:
        answers: of `Explorer.answers`.
        category: the attribute that steers.
    """
    names = {
        "alpha": "alpha",
        category: label(category),
        "nll_per_token": "NLL/token",
        "kl_per_step": "KL/step",
    }
    table = answers[[*names, "text"]].rename(columns=names | {"text": "Answer"})
    # A dollar in an answer is a dollar, no formula.
    return (
        table.style.format(precision=2, escape="html")
        .format("{:g}", subset="alpha")
        .set_properties(subset="Answer", **{"text-align": "left"})
        .set_table_styles([{"selector": "th.col_heading:last-child", "props": "text-align:left"}])
        .set_table_attributes('class="explorer-table tex2jax_ignore"')
        .set_uuid("answers")
        .hide(axis="index")
    )


def note_html(text: str, *, error: bool = False) -> str:
    """One line of the widget's own words."""
    style = "color:var(--jp-error-color1,#b00020);font-weight:600" if error else MUTED
    return (
        f'<div style="{style}" class="{"explorer-error" if error else "explorer-note"}">{escape(text)}</div>'
    )


def _shared(one: str, other: str) -> int:
    """Characters of the words that two texts have in common at their heads."""
    if one == other:
        return len(one)
    first = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    return one.rfind(" ", 0, first) + 1


def _answer(row: pd.Series, shared: int) -> str:
    colour = COLOUR[row["method"]]
    text = row["text"].strip()
    words = f'<span style="{MUTED}">{escape(text[:shared])}</span>{escape(text[shared:])}'
    if not text:
        words = f'<i style="{MUTED}">(empty answer)</i>'
    ending = "ended by itself" if row["stopped"] else "cut at the limit"
    numbers = (
        f"{row['n_tokens']} tokens, {ending} · NLL under the base {_nats(row['nll_per_token'])} nats/token · "
        f"KL to the base {_nats(row['kl_per_step'])} nats/step"
    )
    return (
        f'<div style="{BOX.format(colour)}"><b>{escape(label(row["method"]))}</b> '
        f'<span style="{MUTED}">alpha = {row["alpha"]:g}</span>'
        f'<div style="{WORDS}" class="explorer-text">{words}</div>'
        f'<div style="{MUTED};font-size:12px">{escape(numbers)}</div></div>'
    )


def _nats(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.2f}"


def _bars(base: pd.Series, steered: pd.Series, category: str) -> str:
    rows = "".join(_pair(name, base, steered, bold=name == category) for name in ATTRIBUTES)
    return (
        f'<div style="flex:2 1 15em;border-top:4px solid transparent;padding:6px 2px;font-size:12px">'
        f"<b>Scores</b> <span style={MUTED!r}>of 1; base above, steered below</span>{rows}</div>"
    )


def _pair(name: str, base: pd.Series, steered: pd.Series, *, bold: bool) -> str:
    bars = "".join(
        f'<div style="height:6px;width:{100 * row[name]:.1f}%;min-width:1px;margin:1px 0;'
        f'background:{COLOUR[row["method"]]}"></div>'
        for row in (base, steered)
    )
    weight = "700" if bold else "400"
    return (
        f'<div style="display:grid;grid-template-columns:9em 1fr 6.5em;gap:8px;align-items:center;margin:5px 0;'
        f'font-weight:{weight}"><span style="white-space:nowrap">{escape(label(name))}</span>'
        f'<div style="background:rgba(127,127,127,.13)">{bars}</div>'
        f"<span>{base[name]:.2f} → {steered[name]:.2f}</span></div>"
    )
