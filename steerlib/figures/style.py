"""How every figure looks and how it is saved: one colour a method, one width, the plotted data beside it."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from steerlib.tables import atomic_path

COLOUR = {
    "base": "#7f7f7f",
    "anti_expert": "#d55e00",
    "expert_anti_expert": "#0072b2",
    "caa": "#009e73",
    "prompt_only": "#cc79a7",
    "sda": "#e69f00",
    "instructed": "#56b4e9",
    "aligner": "#000000",
}
"""Okabe-Ito, one a method in every figure; the base is grey."""

LABEL = {
    "base": "Base",
    "anti_expert": "Anti-Expert",
    "expert_anti_expert": "Expert-Anti-Expert",
    "caa": "CAA",
    "prompt_only": "Prompt only",
    "sda": "SDA",
    "instructed": "Instruction only",
    "aligner": "Aligner",
    "steering_only": "steering without temperature",
    "repo_tf1": "steep (repo_tf1)",
    "repo_tf0": "mild (repo_tf0)",
    "own": "own profile",
    "shuffled": "shuffled profile",
    "population": "population profile",
    "toxicity": "Toxicity",
    "severe_toxicity": "Severe toxicity",
    "identity_attack": "Identity attack",
    "insult": "Insult",
    "profanity": "Profanity",
    "threat": "Threat",
}
"""Readable names of methods, profiles and attributes."""

WIDTH = 7.5
"""Width of a figure in inches: 900 pixels in a notebook."""

SETTINGS: dict[str, Any] = {
    "figure.dpi": 120,
    "savefig.dpi": 200,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.handlelength": 2.8,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
}


def use_style() -> None:
    """Set fonts, grid and sizes; once, at the head of a notebook."""
    mpl.rcParams.update(SETTINGS)  # ty: ignore[no-matching-overload]


def new_figure(
    n_rows: int = 1,
    n_columns: int = 1,
    *,
    height: float = 3.2,
    width: float = WIDTH,
    polar: bool = False,
    share_y: bool = False,
) -> tuple[Figure, np.ndarray]:
    """A figure of the suite's width and its axes.

    It is closed for pyplot at once, so that a notebook shows it where it is returned, and only there.

    Args:
        n_rows, n_columns: of the grid of axes.
        height, width: of the whole figure, in inches.
        polar: axes are polar.
        share_y: one vertical scale for all.

    Returns:
        The figure; its axes, `(n_rows, n_columns)`.
    """
    fig, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(width, height),
        layout="constrained",
        squeeze=False,
        sharey=share_y,
        subplot_kw={"projection": "polar"} if polar else None,
    )
    plt.close(fig)
    return fig, axes


def label(name: str) -> str:
    """Readable form of a name: from `LABEL`, else the name without its underscores."""
    return LABEL.get(name, str(name).replace("_", " "))


def strength(method: str) -> str:
    """What a method's strength is called: k of SDA, alpha of all others."""
    return "k" if method == "sda" else "alpha"


def save(fig: Figure, name: str, folder: Path, *, data: pd.DataFrame) -> Figure:
    """Write a figure as PNG and SVG and the numbers it shows as CSV; the same figure gives the same bytes.

    Args:
        fig: the figure.
        name: stem of the three files.
        folder: the run's folder; they go to its `figures/`.
        data: what is plotted, one row a mark.

    Returns:
        The figure, so that a notebook shows it.

    Raises:
        ValueError: the name is not a plain file name, or there are no data.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"a figure's name must be a plain file name, not {name!r}")
    if data.empty:
        raise ValueError(f"figure {name!r} has no data to write beside it")
    target = folder / "figures" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        with (
            atomic_path(target.with_name(name + suffix)) as partial,
            mpl.rc_context({"svg.hashsalt": "steerlib", "savefig.dpi": SETTINGS["savefig.dpi"]}),
        ):
            fig.savefig(partial, format=suffix[1:], metadata=metadata)
    with atomic_path(target.with_name(f"{name}.csv")) as partial:
        data.to_csv(partial, index=False, lineterminator="\n", float_format="%.6g")
    return fig
