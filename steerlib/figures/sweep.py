"""Figures and tables of notebook 03: the answers, every alpha, and what steers SDA.

All text comes from a model or a person and is escaped: it is shown, never obeyed.
"""

import textwrap
from collections.abc import Mapping
from html import escape

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from steerlib.decoding.sampling import Sampling
from steerlib.figures import style
from steerlib.rules import RULES, SCORE_FUNCTIONS

CELL = (
    'style="text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere;'
    'min-width:10em;padding:4px 8px"'
)
UNPLEASANT = 0.5
"""Toxicity above which a scored text waits behind a click."""


def examples_html(
    generations: pd.DataFrame,
    arms: pd.DataFrame,
    prompts: pd.DataFrame,
    *,
    toxicity: Mapping[str, float] | None = None,
    n: int = 3,
) -> HTML:
    """Answers of several arms to the same prompts, one column an arm, as an HTML table with everything escaped.

    The smallest seed's answers to the first n prompts that every arm answered; a ValueError where there is none.
    `toxicity` by answer text stands above each answer, and texts above 0.5 wait behind a click.
    """
    answers = generations[generations["arm_id"].isin(arms["arm_id"])]
    answers = answers[answers["seed"] == answers["seed"].min()]
    wide = answers.pivot(index="prompt_id", columns="arm_id", values="text")
    wide = wide.reindex(columns=list(arms["arm_id"])).dropna()
    asked = prompts.set_index("prompt_id")["prompt"]
    shown = [prompt for prompt in asked.index if prompt in wide.index][:n]
    if not shown:
        raise ValueError(f"no prompt was answered by all {len(arms)} arms with the same seed")
    heads = ["Prompt", *(style.arm_at(arm) for _, arm in arms.iterrows())]
    rows = ["".join(f"<th {CELL}>{escape(head)}</th>" for head in heads)]
    for prompt in shown:
        texts = [escape(asked[prompt]), *(_scored(text, toxicity) for text in wide.loc[prompt])]
        rows.append("".join(f"<td {CELL}>{text}</td>" for text in texts))
    return HTML("<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>")


def _scored(text: str, toxicity: Mapping[str, float] | None) -> str:
    if toxicity is None or text not in toxicity:
        return escape(text)
    head = f"<i>toxicity {toxicity[text]:.2f}</i>"
    if toxicity[text] <= UNPLEASANT:
        return f"{head}\n{escape(text)}"
    return f"<details><summary>{head}: show</summary>{escape(text)}</details>"


def plot_alpha_path(segments: pd.DataFrame, measures: Mapping[str, str], *, method: str) -> Figure:
    """Measures of a few prompts' answers against continuous alpha, one panel a measure, a step line a prompt.

    There is no interval: a path shows what alpha does to a few answers, not what steering does to people. `segments`
    are of one method and seed, with `prompt` and one column a measure; `measures` are labels with units by column.
    """
    rule, prompts = RULES[method], list(dict.fromkeys(segments["prompt"]))
    fig, axes = style.new_figure(len(measures), 1, height=1.3 + 1.4 * len(measures), sharex=True)
    shades = [RULES[method].colour, *(str(0.15 + 0.25 * number) for number in range(len(prompts) - 1))]
    for axis, (column, name) in zip(axes[:, 0], measures.items(), strict=True):
        for prompt, colour in zip(prompts, shades, strict=True):
            rows = segments[segments["prompt"] == prompt].sort_values("alpha_low")
            values = rows[column].to_numpy(float)
            axis.stairs(
                values,
                [*rows["alpha_low"], rows["alpha_high"].iloc[-1]],
                baseline=None,
                color=colour,
                label=textwrap.fill(textwrap.shorten(prompt, 32, placeholder=" \u2026"), 20),
            )
        axis.set(ylabel=name, xlim=(segments["alpha_low"].min(), segments["alpha_high"].max()))
    style.beside(axes[0, 0])
    axes[-1, 0].set_xlabel(f"{rule.symbol} of {rule.label}, continuous")
    return style.say(
        fig,
        f"Every answer of {len(prompts)} prompts as {rule.symbol} of {rule.label} grows",
        f"{len(segments)} answers with {len(segments) - len(prompts)} exact breakpoints. No interval is meant: these "
        "are single prompts.",
    )


def plot_sda(scores: ArrayLike, divergences: ArrayLike, *, function: str, sampling: Sampling) -> Figure:
    """What steers SDA: amplification F (a `SCORE_FUNCTIONS`) by the first answer's score S, temperature by divergence.

    A tick stands for a score in (0, 100] of this run's first answers, and for a divergence of the plain and the
    instructed branch at one of its tokens, in nats. The temperature is that of the run's
    sampling, see `rules.js_temperature`.
    """
    scores, js = (np.asarray(values, dtype=float) for values in (scores, divergences))
    fig, ((left, right),) = style.new_figure(1, 2, height=3.4)
    grid = np.linspace(1, 100, 400)
    left.plot(grid, SCORE_FUNCTIONS[function](grid), color=RULES["sda"].colour)
    left.set(xlim=(0, 100), ylim=(0, 1.05), xlabel="score S of the first answer (ticks: this run)")
    left.set_ylabel(f"amplification a = F(S), {style.label(function)}")
    grid = np.geomspace(1e-4, np.log(2), 400)
    halvings = grid / sampling.js_sigma if sampling.js_sigma else 0 * grid
    falling = np.maximum(sampling.temperature * 0.5**halvings, sampling.min_temperature)
    right.plot(grid, falling, color=RULES["sda"].colour)
    right.set(xscale="log", xlim=(1e-4, np.log(2)), ylim=(0, None), ylabel="temperature T")
    right.set_xlabel("JS divergence of the two branches (nats, log axis)")
    for axis, values in ((left, scores), (right, js.clip(1e-4))):
        axis.plot(values, np.zeros(len(values)), "|", color="black", markersize=9, alpha=0.4, clip_on=False)
    amplified = np.median(SCORE_FUNCTIONS[function](scores))
    return style.say(
        fig,
        "What steers SDA: amplification and temperature",
        f"At the median score of {len(scores)} first answers, {np.median(scores):.1f}, a is {amplified:.3f}. At the "
        f"median divergence of {len(js)} tokens, {np.median(js):.2g} nats, the temperature is "
        f"{np.interp(np.median(js), grid, falling):.2g}; it starts at {sampling.temperature:g}.",
    )
