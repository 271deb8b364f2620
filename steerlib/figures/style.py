"""Which rows of the metrics table a figure shows, and what tells one curve from another.

How every figure looks and how it is saved: one colour a method, one width, the plotted data beside it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from steerlib.rules import RULES
from steerlib.tables import atomic_path

LABEL = {
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
"""Readable names of profiles, attributes and parts of methods; methods have theirs in `RULES`."""

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
    """Readable form of a name: of a method, from `LABEL`, else the name without its underscores."""
    return RULES[name].label if name in RULES else LABEL.get(name, str(name).replace("_", " "))


def strength(method: str) -> str:
    """What a method's strength is called: k of SDA, alpha of all others."""
    return RULES[method].symbol


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


SETTINGS_POINTS = ["arm_id", "method", "alpha", "profile", "family", "vector_user", "control", "variant"]
SPLIT_LINE = {"dev": (0, (4, 2)), "test": "-"}


def points(
    metrics: pd.DataFrame,
    arms: pd.DataFrame,
    metric: str,
    *,
    split: str | None = None,
    subgroup: str | None = "all",
    scorer: str | None = None,
    comparator: str | None = None,
) -> pd.DataFrame:
    """One metric of every arm, with the arm's settings beside it.

    Args:
        metrics: table `metrics`.
        arms: table `arms`.
        metric: name of the metric.
        split, subgroup, scorer, comparator: keep these rows only; None keeps all.

    Returns:
        The rows of `metrics`, sorted by method, profile, family, variant, split and alpha.

    Raises:
        KeyError: no row is left; the metrics there are get named.
        ValueError: an arm is unknown, or one arm has several values on a split, so that a choice is missing.
    """
    wanted = {
        "metric": metric,
        "split": split,
        "subgroup": subgroup,
        "scorer": scorer,
        "comparator": comparator,
    }
    chosen = metrics
    for column, value in wanted.items():
        chosen = chosen if value is None else chosen[chosen[column] == value]
    if chosen.empty:
        given = {column: value for column, value in wanted.items() if value is not None}
        raise KeyError(
            f"no row with {given}; the metrics are {', '.join(sorted(metrics['metric'].unique()))}"
        )
    unknown = sorted(set(chosen["arm_id"]) - set(arms["arm_id"]))
    if unknown:
        raise ValueError(f"{len(unknown)} arms are not in the arms table, the first is {unknown[0]!r}")
    several = [c for c in ("subgroup", "scorer", "comparator") if chosen[c].nunique() > 1]
    if chosen.duplicated(["arm_id", "split"]).any():
        raise ValueError(
            f"{metric}: an arm has several values on a split; choose one {' and one '.join(several)}"
        )
    joined = chosen.merge(arms[SETTINGS_POINTS], on="arm_id", validate="many_to_one")
    return joined.sort_values(["method", "profile", "family", "variant", "split", "alpha"], ignore_index=True)


def reduced(points: pd.DataFrame) -> str:
    """What a reduction is of: the toxicity distance, or toxicity where the prompts have no accepted answer."""
    itself = "metric" in points and (points["metric"] == "toxicity_reduction_percent").any()
    return "toxicity" if itself else "toxicity distance"


def is_control(points: pd.DataFrame) -> pd.Series:
    """Which rows are controls of equal strength: a shuffled profile, or a random vector."""
    return points["control"].isin(("shuffled_profile", "random_vector"))


def curves(points: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each curve of a method's panel: what sets it apart within the method, and its rows by alpha.

    The steered arms come first, then population profiles, then the placebos.
    """
    rank = is_control(points).astype(int) * 2 + (points["profile"] == "population")
    keys = ["_rank", "profile", "family", "vector_user", "variant", "split"]
    for _, rows in points.assign(_rank=rank).sort_values([*keys, "alpha"]).groupby(keys, sort=False):
        first = rows.iloc[0]
        yield (
            ", ".join(part for part in (arm_name(first, method=False), first["split"]) if part),
            rows.drop(columns="_rank"),
        )


def arm_name(arm: pd.Series, *, method: bool = True) -> str:
    """How a row of the arms table, or of `points`, is called; without its method inside a method's own panel."""
    # A vector beside a logit rule is in the variant's words; the signal of the rule is the profile.
    family = "" if "beside" in arm["variant"] else arm["family"].replace("_", " ")
    whose = {"own": "own ", "shuffled": "another user's "}.get(arm["vector_user"], "")
    profile = "" if arm["profile"] in ("none", "") else label(arm["profile"])
    signal = f"{whose}{family} vector" if family else profile
    parts = (label(arm["method"]) if method else "", signal, arm["variant"])
    return ", ".join(part for part in parts if part)


def counts(points: pd.DataFrame) -> str:
    """How much the figure rests on, for its caption: n and the number of clusters (users) of each split."""
    parts = []
    for split, rows in points.groupby("split"):
        n, clusters = (_span(rows[column]) for column in ("n", "n_clusters"))
        parts.append(f"{split}: n = {n} in {clusters} clusters")
    return "; ".join(parts)


def _span(numbers: pd.Series) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low} to {high}"


def headline(points: pd.DataFrame) -> pd.DataFrame:
    """The result table: one row an arm and split, the value with its interval, placebos marked.

    Args:
        points: what `points` returned, for instance cut to the chosen alphas on test prompts.

    Returns:
        Method, alpha, split, value, low, high (as in `points`), n, clusters, and whether it is a control.
    """
    names = [arm_name(row) for _, row in points.iterrows()]
    table = points[["alpha", "split", "value", "low", "high", "n", "n_clusters"]].rename(
        columns={"n_clusters": "clusters"}
    )
    table.insert(0, "arm", names)
    return table.assign(control=is_control(points).map({True: "placebo", False: ""})).reset_index(drop=True)
