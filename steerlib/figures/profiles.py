"""Where users stand in the first two axes of a basis.

Pictures of notebook 01: who is sensitive to what, and how surely that is known.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from steerlib.figures.style import label, new_figure
from steerlib.rules import RULES
from steerlib.tables import ATTRIBUTE_COLUMNS

SIX = list(ATTRIBUTE_COLUMNS)
USER_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
ESTIMATOR_COLOUR = {"paper": "#e69f00", "exposure_adjusted": "#56b4e9", "shrunk": "#000000"}
"""Okabe-Ito, those that no method has."""
ESTIMATOR_LINE = {"paper": ("-", "o"), "exposure_adjusted": ("-", "s"), "shrunk": ((0, (2, 2)), "^")}
DESIGN = {"equal": "all users have as many", "mixed": "users have different numbers"}


def plot_profiles(profiles: pd.DataFrame) -> Figure:
    """Percentiles of all users, one row a user, sorted by primary category; a dot marks the primary.

    Args:
        profiles: table `profiles` with one estimator: user_id, attribute, percentile, primary.

    Raises:
        ValueError: more than one estimator.
    """
    wide = _wide(profiles, "percentile")
    primary = _primaries(profiles).reindex(wide.index)
    rank = primary.map(SIX.index)
    own = wide.to_numpy()[np.arange(len(wide)), rank]
    order = np.lexsort((-own, rank))
    fig, axes = new_figure(height=min(max(2.6, 0.07 * len(wide) + 1.0), 7.0))
    axis = axes[0, 0]
    image = axis.imshow(
        wide.to_numpy()[order], aspect="auto", vmin=0, vmax=1, cmap="cividis", interpolation="none"
    )
    axis.plot(rank.to_numpy()[order], range(len(wide)), "o", color="black", markersize=2.5, markeredgewidth=0)
    axis.set_xticks(range(len(SIX)), [label(name) for name in SIX])
    edges = np.flatnonzero(np.diff(rank.to_numpy()[order])) + 0.5
    axis.hlines(edges, -0.5, len(SIX) - 0.5, color="white", linewidth=0.8)
    axis.set(ylabel=f"{len(wide)} users, by primary category")
    axis.set_yticks([])
    axis.grid(visible=False)
    fig.colorbar(image, ax=axis, label="percentile among users (dot: primary)", shrink=0.9)
    return fig


def plot_radar(profiles: pd.DataFrame, users: Sequence[str]) -> Figure:
    """A few users side by side: raw sensitivity, and percentile among all users.

    Args:
        profiles: table `profiles` with one estimator.
        users: up to six ids.

    Raises:
        ValueError: more than one estimator, or more users than colours.
        KeyError: a user who is not in the profiles.
    """
    if len(users) > len(USER_COLOURS):
        raise ValueError(f"{len(users)} users are more than a radar shows, {len(USER_COLOURS)}")
    missing = [user for user in users if user not in set(profiles["user_id"])]
    if missing:
        raise KeyError(f"user {missing[0]!r} has no profile")
    fig, axes = new_figure(1, 2, height=3.9, polar=True)
    angle = np.linspace(0, 2 * np.pi, len(SIX), endpoint=False)
    primary = _primaries(profiles)
    names = {"sensitivity": "raw sensitivity (probability)", "percentile": "percentile among all users"}
    for axis, (column, name) in zip(axes[0], names.items(), strict=True):
        wide = _wide(profiles, column)
        for user, colour in zip(users, USER_COLOURS, strict=False):
            values = wide.loc[user].to_numpy()
            text = f"{user}: {label(primary[user]).lower()}"
            axis.fill(angle, values, color=colour, alpha=0.08)
            axis.plot(np.append(angle, angle[0]), np.append(values, values[0]), color=colour, label=text)
        axis.set_xticks(angle, [label(attribute).replace(" ", "\n") for attribute in SIX])
        axis.tick_params(axis="x", pad=8)
        axis.set_xlabel(name, labelpad=14)
        axis.set_theta_zero_location("N")
        axis.set_rlabel_position(30)
        axis.yaxis.set_major_locator(MaxNLocator(4))
        axis.set_ylim(0, 1 if column == "percentile" else None)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def plot_primary_categories(profiles: pd.DataFrame) -> Figure:
    """How many users have each of the six categories as their primary one.

    Args:
        profiles: table `profiles` with one estimator.
    """
    counted = _primaries(profiles).value_counts().reindex(SIX, fill_value=0)
    fig, axes = new_figure(height=2.4)
    axis = axes[0, 0]
    bars = axis.barh([label(name) for name in SIX], counted, color=RULES["base"].colour, height=0.65)
    axis.bar_label(bars, padding=3, fontsize=8)
    axis.axvline(
        counted.sum() / len(SIX), color="black", linestyle=(0, (4, 2)), linewidth=1, label="equal shares"
    )
    axis.invert_yaxis()
    axis.set(xlabel=f"users (of {counted.sum()})")
    axis.grid(axis="y", visible=False)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def plot_recovery(shares: pd.DataFrame) -> Figure:
    """Share of planted categories found against the number of ratings; a panel a design, bands 95 %.

    Args:
        shares: what `recovery_shares` returned.
    """
    designs = [design for design in DESIGN if design in set(shares["design"])]
    fig, axes = new_figure(1, len(designs), height=3.4, share_y=True)
    numbers = sorted(shares["ratings"].unique())
    for axis, design in zip(axes[0], designs, strict=True):
        for estimator, (line, marker) in ESTIMATOR_LINE.items():
            rows = shares[(shares["design"] == design) & (shares["estimator"] == estimator)]
            rows = rows.sort_values("ratings")
            look = {"color": ESTIMATOR_COLOUR[estimator], "linestyle": line, "marker": marker}
            axis.plot(rows["ratings"], rows["share"], markersize=4, label=label(estimator), **look)
            axis.fill_between(
                rows["ratings"], rows["low"], rows["high"], color=look["color"], alpha=0.2, linewidth=0
            )
        axis.axhline(1 / len(SIX), color="black", linestyle=(0, (1, 2)), linewidth=1, label="chance")
        axis.set_xscale("log", base=2)
        axis.set_xticks(numbers, [f"{number}" for number in numbers])
        axis.minorticks_off()
        axis.set(xlabel=f"ratings of a user ({DESIGN[design]})", ylim=(0, 1))
    axes[0, 0].set_ylabel("share of users whose planted\ncategory is found (band: 95 %)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return fig


def plot_confusion(confusions: Mapping[str, pd.DataFrame]) -> Figure:
    """Which category is found where another was planted, a panel an estimator.

    Args:
        confusions: name of each panel -> (6, 6) shares, rows planted, columns found.
    """
    fig, axes = new_figure(1, len(confusions), height=3.9, share_y=True)
    names = [label(name) for name in SIX]
    for axis, (name, table) in zip(axes[0], confusions.items(), strict=True):
        values = table.loc[SIX, SIX].to_numpy()
        image = axis.imshow(values, vmin=0, vmax=1, cmap="cividis")
        for row, column in np.ndindex(values.shape):
            value = float(values[row, column])
            ink = "black" if value > 0.55 else "white"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
        axis.set_xticks(range(len(SIX)), names, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(SIX)), names)
        axis.set_xlabel(f"found by {label(name)}", labelpad=2)
        axis.grid(visible=False)
    axes[0, 0].set_ylabel("planted")
    fig.colorbar(image, ax=axes[0].tolist(), label="share of the planted", shrink=0.75)
    return fig


def plot_reliability(agreement: pd.DataFrame) -> Figure:
    """How often two halves of a user's conversations agree on c*, beside what chance would give.

    Args:
        agreement: rows of `split_half_agreement`, one an estimator.
    """
    fig, axes = new_figure(height=0.3 * len(agreement) + 1.2)
    axis = axes[0, 0]
    place = np.arange(len(agreement))
    reach = np.abs(agreement[["low", "high"]].to_numpy().T - agreement["agreement"].to_numpy())
    axis.errorbar(
        agreement["agreement"], place, xerr=reach, fmt="o", color="black", capsize=3, label="agreement, 95 %"
    )
    axis.plot(
        agreement["chance"], place, "|", color="#d55e00", markersize=16, markeredgewidth=2, label="chance"
    )
    axis.set_yticks(place, [label(name) for name in agreement["estimator"]])
    axis.invert_yaxis()
    axis.margins(y=0.25)
    axis.set(xlabel="share of users whose two halves have the same primary category", xlim=(0, 1))
    axis.grid(axis="y", visible=False)
    fig.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


def _wide(profiles: pd.DataFrame, column: str) -> pd.DataFrame:
    estimators = profiles["estimator"].unique()
    if len(estimators) != 1:
        raise ValueError(f"choose one estimator; the profiles have {', '.join(map(str, estimators))}")
    return profiles.pivot(index="user_id", columns="attribute", values=column)[SIX]


def _primaries(profiles: pd.DataFrame) -> pd.Series:
    return profiles[profiles["primary"]].set_index("user_id")["attribute"]


CATEGORY_MARK = dict(
    zip(
        ATTRIBUTE_COLUMNS,
        [
            ("#0072b2", "o"),
            ("#d55e00", "s"),
            ("#009e73", "^"),
            ("#cc79a7", "D"),
            ("#e69f00", "v"),
            ("#56b4e9", "P"),
        ],
        strict=True,
    )
)
"""Okabe-Ito and a shape a category, so that the map reads without colour."""


def plot_user_map(coordinates: pd.DataFrame, population: Sequence[float]) -> Figure:
    """Users in the first two axes of the basis, by primary category, about the population.

    Users whose pairs say little lie near the population, where shrinkage has put them: distance from it is evidence as
    much as taste.

    Args:
        coordinates: user_id, axis_1, axis_2 (logits a standard deviation of answers), primary (of the six categories).
        population: the population's coordinates, at least two.

    Raises:
        ValueError: a missing column, no users, fewer than two axes, or a primary that is no category.
    """
    missing = [one for one in ("user_id", "axis_1", "axis_2", "primary") if one not in coordinates]
    if missing:
        raise ValueError(f"a user map needs two axes and each user's primary category; missing {missing}")
    if coordinates.empty or len(population) < 2:
        raise ValueError(f"nothing to map: {len(coordinates)} users, population of {len(population)} axes")
    unknown = coordinates[~coordinates["primary"].isin(ATTRIBUTE_COLUMNS)]
    if len(unknown):
        user, primary = unknown[["user_id", "primary"]].iloc[0]
        raise ValueError(f"user {user!r} has primary {primary!r}, which is none of the six categories")
    fig, axes = new_figure(height=4.2, width=6.4)
    axis = axes[0, 0]
    for category, (colour, marker) in CATEGORY_MARK.items():
        own = coordinates[coordinates["primary"] == category]
        if len(own):
            style = {"marker": marker, "s": 34, "color": colour, "edgecolor": "white", "linewidth": 0.4}
            axis.scatter(own["axis_1"], own["axis_2"], label=f"{label(category)} ({len(own)})", **style)
    axis.axhline(0, color="#b0b0b0", linewidth=0.8, zorder=0.5)
    axis.axvline(0, color="#b0b0b0", linewidth=0.8, zorder=0.5)
    axis.plot(*population[:2], "*", color="black", markersize=13, markeredgecolor="white", label="population")
    axis.set(xlabel="axis 1 (logits / sd of answers)", ylabel="axis 2 (logits / sd of answers)")
    axis.set_aspect("equal", adjustable="datalim")
    axis.legend(title="primary category (users)", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig
