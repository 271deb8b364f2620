"""How every figure looks, what its title and caption say, how curves are drawn and labelled, and how it is saved."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from PIL.PngImagePlugin import PngInfo

from steerlib.rules import RULES
from steerlib.tables import ATTRIBUTE_COLUMNS, atomic_path, read_manifest

LABEL = {
    "own": "own profile",
    "shuffled": "shuffled profile",
    "population": "population profile",
    **{name: name.capitalize().replace("_", " ") for name in ATTRIBUTE_COLUMNS},
}
"""Readable names of methods, profiles and attributes."""

GREY = RULES["base"].colour
LEVEL: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.1}
"""Of the line that stands for no steering."""

STYLE: Any = {
    "font.sans-serif": ["DejaVu Sans"],
    "figure.dpi": 120,
    "savefig.dpi": 200,
    "figure.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "black",
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "steerlib",
}
WIDTH, PIXELS = 7.5, 900
"""Width of a figure in inches and in a notebook."""


def use_style() -> None:
    """Set fonts, grid and sizes; once, at the head of a notebook."""
    sns.set_theme(context="paper", style="whitegrid", font_scale=0.92, rc=STYLE)


def new_figure(
    n_rows: int = 1, n_columns: int = 1, *, height: float = 3.2, **settings: Any
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, `(n_rows, n_columns)`; a notebook shows it only where it is returned.

    The height is in inches; settings are those of `matplotlib.pyplot.subplots`.
    """
    settings |= {"figsize": (WIDTH, height), "layout": "constrained", "squeeze": False}
    fig, axes = plt.subplots(n_rows, n_columns, **settings)
    plt.close(fig)
    return fig, axes


def label(name: str) -> str:
    """Readable form of a name: a rule's label, one of `LABEL`, else the name without its underscores."""
    return RULES[name].label if name in RULES else LABEL.get(name, str(name).replace("_", " "))


def arm_name(arm: pd.Series, *, method: bool = True) -> str:
    """What an arm is called, from the columns of the arms table that set it apart; in its panel without the method."""
    signal = f"{label(arm['family']).removesuffix(' profile')} vector" if arm["family"] else ""
    if arm["vector_user"]:
        signal = ("another user's " if arm["vector_user"] == "shuffled" else "own ") + signal
    elif not signal and arm["profile"] not in ("none", ""):
        signal = label(arm["profile"])
    parts = [label(arm["method"]) if method else "", signal, arm["variant"]]
    return ", ".join(part for part in parts if part) or label(arm["method"])


def arm_at(arm: pd.Series) -> str:
    """An arm's name with its strength, where it has one."""
    rule = RULES[arm["method"]]
    return f"{arm_name(arm)}, {rule.symbol} {arm['alpha']:g}" if rule.has_alpha else arm_name(arm)


def say(fig: Figure, title: str, caption: str) -> Figure:
    """The figure with a title above it (what is drawn) and a caption below it (what is found)."""
    fig.suptitle(title, x=0.01, ha="left")
    caption = textwrap.fill(caption, int(17 * fig.get_figwidth()))
    fig.supxlabel(caption, x=0.01, ha="left", fontsize=8, color="#333333")
    return fig


def _counted(data: pd.DataFrame) -> str:
    """How much a figure rests on, "n = 18 of 17 users"; empty where the data have no n."""
    ends = [data[column].agg(["min", "max"]) for column in ("n", "n_clusters") if column in data]
    spans = dict.fromkeys(" to ".join(dict.fromkeys(map("{:.0f}".format, pair))) for pair in ends)
    return f"n = {' of '.join(spans)}{' users' * (len(spans) > 1)}" if spans else ""


def save(fig: Figure, name: str, folder: Path, *, data: pd.DataFrame, model: str | None = None) -> Image:
    """The picture for a notebook, written as PNG and SVG, its numbers as CSV; equal figures give equal bytes.

    The files lie in the `figures/` of the run's folder, their stem is the name; `data` has a row a mark. The title's
    second line names model (by default what the run's manifest says, "" for none), n and run. The caption is in the
    PNG's own text, for the report. A ValueError where there are no data.
    """
    if data.empty:
        raise ValueError(f"figure {name!r} has no data to write beside it")
    if model is None:
        stages = read_manifest(folder).values()
        model = next((one["params"]["model"] for one in stages if "model" in one["params"]), "")
    facts = " · ".join(part for part in (model, _counted(data), f"run {folder.name}") if part)
    fig.suptitle(f"{fig.get_suptitle()}\n{facts}".strip(), x=0.01, ha="left")
    target = folder / "figures" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    written = {".png": {"Software": None, "Description": fig.get_supxlabel()}, ".svg": {"Date": None}}
    for suffix, metadata in written.items():
        with atomic_path(target.with_name(name + suffix)) as partial, plt.style.context(STYLE):
            fig.savefig(partial, format=suffix[1:], metadata=metadata)
            if suffix == ".png":
                _with_few_colours(partial, fig.get_supxlabel())
    with atomic_path(target.with_name(f"{name}.csv")) as partial:
        data.to_csv(partial, index=False, lineterminator="\n", float_format="%.6g")
    width = round(PIXELS * fig.get_figwidth() / WIDTH)
    return Image(target.with_name(f"{name}.png").read_bytes(), width=width, alt=fig.get_supxlabel())


def _with_few_colours(png: Path, description: str) -> None:
    """Rewrite a picture with 128 colours: a third of the bytes, and no difference to the eye."""
    text = PngInfo()
    text.add_itxt("Description", description)
    with PIL.Image.open(png) as picture:
        few = picture.convert("RGB").quantize(128, dither=PIL.Image.Dither.NONE)
    few.save(png, "png", pnginfo=text, optimize=True)


def half_widths(rows: pd.DataFrame) -> np.ndarray:
    """Distances from the value down to `low` and up to `high`, `(2, n)`; 0 where there is no interval."""
    value, low, high = (rows[column].to_numpy(float) for column in ("value", "low", "high"))
    return np.clip(np.nan_to_num(np.array([value - low, high - value])), 0, None)


def mark(row: pd.Series) -> dict[str, Any]:
    """Look of one arm's mark: in its method's colour, open where it is a control."""
    colour = RULES[row["method"]].colour
    return {"color": colour, "marker": "o", "markerfacecolor": "white" if row["control"] else colour}


def log_scale(axis: Axes, which: str = "y") -> None:
    """A logarithmic axis, "x" or "y", whose ticks are plain numbers: 1, 2, 5, 10."""
    axis.set(**{f"{which}scale": "log"})
    ticks = axis.xaxis if which == "x" else axis.yaxis
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ticks.set_major_formatter("{x:g}")
    ticks.set_minor_locator(NullLocator())


def beside(axis: Axes) -> None:
    """A legend to the right of an axis."""
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=7.5)
