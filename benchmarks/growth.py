"""What a grid costs as alphas, prompts and tokens grow, in processor time and in decoded rows."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.rules import by_arm
from benchmarks.setting import Setting, stated
from benchmarks.timing import Decoder, measured, write
from steerlib.decoding import Sampling, decode, make_arms
from steerlib.figures.style import new_figure, save, use_style

METHOD = "expert_anti_expert"
LARGEST_ALPHA = 2.2
COLOURS = {"greedy": "#0072b2", "sampled": "#e69f00"}


AXES = {"alphas": (1, 3, 5, 9, 17, 33), "prompts": (1, 2, 4, 8), "tokens": (6, 12, 24, 48)}
"""What grows, and the sizes it takes while the two others keep theirs."""
KEPT = {"alphas": 9, "prompts": 2, "tokens": 24}
SMALL_AXES = {"alphas": (1, 2, 4), "prompts": (1, 2), "tokens": (2, 4)}
SMALL_KEPT = {"alphas": 2, "prompts": 2, "tokens": 4}


def run(setting: Setting) -> pd.DataFrame:
    """Time grids that differ in one size; keep table and figure."""
    axes, kept = (SMALL_AXES, SMALL_KEPT) if setting.small else (AXES, KEPT)
    about = stated(setting) | kept
    lines = [
        {"grows": axis, "manner": manner, **kept, axis: size}
        for manner in COLOURS
        for axis, sizes in axes.items()
        for size in sizes
    ]
    groups = {_name(line): [_decoder(setting, line)] for line in lines}
    timed = measured("growth", groups, setting=setting, about=about)
    rows = []
    for line in lines:
        (found,) = timed[_name(line)]
        steps = sum(min(len(ids), line["tokens"] - 1) for ids in found.answers.values())
        cost = {"processor seconds": round(found.processor_seconds, 3), "rows decoded": found.row_steps}
        rows.append({**line, **cost, "rows not merged": 3 * steps})
    table = write("growth", rows, about=about, folder=setting.folder)
    use_style()
    save(growth_figure(table, kept), "growth", setting.folder, data=table)
    return table


def _name(line: Mapping) -> str:
    return f"{line['manner']}, {line['alphas']} alphas, {line['prompts']} prompts, {line['tokens']} tokens"


def _decoder(setting: Setting, line: Mapping) -> Decoder:
    choice = {"temperature": 0.0} if line["manner"] == "greedy" else {"temperature": 0.7, "top_p": 0.9}
    sampling = Sampling(**choice, repetition_penalty=1.0, max_new_tokens=line["tokens"])
    grid = np.linspace(LARGEST_ALPHA / line["alphas"], LARGEST_ALPHA, line["alphas"])
    arms = make_arms(METHOD, grid.tolist(), profile="own", sampling=sampling)
    texts = setting.prompts(line["prompts"])
    return Decoder("ours", "all", lambda: by_arm(decode(setting.frozen, texts, arms)))


def growth_figure(table: pd.DataFrame, kept: dict[str, int]) -> Figure:
    """Cost against alphas, prompts and tokens, each relative to its smallest size; dotted is linear growth."""
    fig, axes = new_figure(1, 3, height=3.0, sharey=True)
    for ax, (what, part) in zip(axes[0], table.groupby("grows", sort=False), strict=True):
        for manner, line in part.groupby("manner", sort=False):
            _draw(ax, line, str(what), str(manner))
        sizes = np.sort(part[what].unique())
        ax.plot(sizes, sizes / sizes[0], color="#7f7f7f", linestyle=":", label="linear")
        rest = ", ".join(f"{n} {name}" for name, n in kept.items() if name != what)
        ax.set(xscale="log", xlabel=f"{what} ({rest})", xticks=sizes, xticklabels=sizes)
        ax.minorticks_off()
    axes[0, 0].set_yscale("log", base=2)
    axes[0, 0].yaxis.set_major_formatter("{x:g}")
    axes[0, 0].set_ylabel("cost, smallest size = 1")
    axes[0, 1].legend(loc="upper left")
    return fig


def _draw(ax: Axes, line: pd.DataFrame, what: str, manner: str) -> None:
    colour = COLOURS[manner]
    for column, style, marker in (("processor seconds", "-", "o"), ("rows decoded", "--", "s")):
        cost = line[column] / line[column].iloc[0]
        ax.plot(
            line[what], cost, style, marker=marker, markersize=3, color=colour, label=f"{manner}, {column}"
        )
