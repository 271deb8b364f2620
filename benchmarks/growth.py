"""What a grid costs as alphas, prompts and tokens grow, in processor time and in decoded rows."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.rules import by_arm
from benchmarks.setting import Setting, stated
from benchmarks.timing import Decoder, race, write
from steerlib.decoding import Sampling, decode, make_arms
from steerlib.figures.style import new_figure, save, use_style

METHOD = "expert_anti_expert"
LARGEST_ALPHA = 2.2
COLOURS = {"greedy": "#0072b2", "sampled": "#e69f00"}


@dataclass(frozen=True)
class Axis:
    """What grows, and the sizes it takes while the two others keep theirs."""

    name: str
    sizes: tuple[int, ...]


AXES = (
    Axis("alphas", (1, 3, 5, 9, 17, 33)),
    Axis("prompts", (1, 2, 4, 8)),
    Axis("tokens", (6, 12, 24, 48)),
)
KEPT = {"alphas": 9, "prompts": 2, "tokens": 24}
SMALL_AXES = (Axis("alphas", (1, 2, 4)), Axis("prompts", (1, 2)), Axis("tokens", (2, 4)))
SMALL_KEPT = {"alphas": 2, "prompts": 2, "tokens": 4}


def run(setting: Setting, *, small: bool = False) -> pd.DataFrame:
    """Time grids that differ in one size; keep table and figure."""
    about = stated(setting)
    axes, kept = (SMALL_AXES, SMALL_KEPT) if small else (AXES, KEPT)
    rows = []
    for manner in COLOURS:
        known: dict[tuple, dict] = {}
        for axis in axes:
            for size in axis.sizes:
                sizes = kept | {axis.name: size}
                key = tuple(sizes.values())
                known[key] = known.get(key) or _cost(setting, manner, **sizes)
                rows.append({"grows": axis.name, "manner": manner, **sizes, **known[key]})
    table = write("growth", rows, about=about | kept, folder=setting.folder)
    use_style()
    save(growth_figure(table, kept), "growth", setting.folder, data=table)
    return table


def _cost(setting: Setting, manner: str, *, alphas: int, prompts: int, tokens: int) -> dict:
    """Processor time of a grid, and the rows its steps decoded beside those of a grid that merges none."""
    choice = {"temperature": 0.0} if manner == "greedy" else {"temperature": 0.7, "top_p": 0.9}
    sampling = Sampling(**choice, repetition_penalty=1.0, max_new_tokens=tokens)
    grid = np.linspace(LARGEST_ALPHA / alphas, LARGEST_ALPHA, alphas)
    arms = make_arms(METHOD, grid.tolist(), profile="own", sampling=sampling)
    texts = setting.prompts(prompts)
    ours = Decoder("ours", "all", lambda: by_arm(decode(setting.frozen, texts, arms)))
    (timed,) = race(setting.models, [ours], repeats=setting.size.repeats)
    steps = sum(min(len(ids), tokens - 1) for ids in timed.answers.values())
    return {
        "processor seconds": round(timed.processor_seconds, 3),
        "rows decoded": timed.row_steps,
        "rows not merged": 3 * steps,
    }


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
