"""Figures of notebooks 01 and 02: whose ratings, and which direction they give."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from steerlib.figures import style
from steerlib.rules import RULES
from steerlib.tables import ATTRIBUTE_COLUMNS

SIX = list(ATTRIBUTE_COLUMNS)
SIDES = {"preferred": "#56b4e9", "dispreferred": "#e69f00"}


def plot_profiles(profiles: pd.DataFrame, agreement: pd.DataFrame) -> Figure:
    """Percentiles of all users (left) and how far two halves of a user's conversations agree on the primary (right).

    Users are sorted by their primary category, which draws a diagonal even from noise: hence the right panel, from
    `split_half_agreement`. A ValueError where the table `profiles` has more than one estimator.
    """
    if profiles["estimator"].nunique() != 1:
        raise ValueError(f"choose one of the estimators {', '.join(profiles['estimator'].unique())}")
    wide = profiles.pivot(index="user_id", columns="attribute", values="percentile")[SIX]
    primary = profiles[profiles["primary"]].set_index("user_id")["attribute"].reindex(wide.index)
    rank = primary.map(SIX.index).to_numpy()
    order = np.lexsort((-wide.to_numpy()[np.arange(len(wide)), rank], rank))
    height = min(max(3.2, 0.05 * len(wide) + 1.6), 6.0)
    fig, ((axis, beside),) = style.new_figure(1, 2, height=height, gridspec_kw={"width_ratios": [3.2, 1]})
    image = axis.imshow(wide.to_numpy()[order], aspect="auto", vmin=0, vmax=1, cmap="cividis")
    axis.plot(rank[order], range(len(wide)), "o", color="black", markersize=2.5, markeredgewidth=0)
    counts = primary.value_counts().reindex(SIX, fill_value=0)
    names = [f"{style.label(name)} ({counts[name]})".replace(" ", "\n") for name in SIX]
    axis.set_xticks(range(len(SIX)), names)
    axis.set(ylabel=f"{len(wide)} users by primary category", yticks=[])
    axis.grid(visible=False)
    fig.colorbar(image, ax=axis, label="percentile among users (dot: primary)", shrink=0.9)
    row = agreement.iloc[[0]].rename(columns={"agreement": "value"})
    value, low, high, chance = (float(row[column].item()) for column in ("value", "low", "high", "chance"))
    beside.axhline(chance, color=style.GREY, **style.LEVEL)
    beside.annotate("chance", (0.62, chance), va="bottom", ha="right", fontsize=7.5, color=style.GREY)
    beside.errorbar([0], [value], yerr=style.half_widths(row), color="black", marker="o", capsize=3)
    beside.set(xlim=(-0.65, 0.65), ylim=(0, 1), xticks=[], ylabel="share of users whose two halves agree")
    above = "more often than" if low > chance else "not distinguishably more often than"
    return style.say(
        fig,
        "Sensitivity profiles, and whether they repeat",
        f"Two halves of a user's conversations name the same primary category in {value:.0%} of users "
        f"[{low:.0%}, {high:.0%}], {above} by chance ({chance:.0%}).",
    )


def plot_layers(described: pd.DataFrame) -> Figure:
    """Relative norm of the vector (left) and cosine of two halves' vectors (right), by layer: of `describe_vectors`."""
    fig, (axes,) = style.new_figure(1, 2, height=2.9)
    names = {"relative_norm": "norm of vector / of residual", "split_half_cosine": "cosine of two halves"}
    for axis, (column, name) in zip(axes, names.items(), strict=True):
        axis.plot(described["layer"], described[column], marker="o", color=RULES["caa"].colour)
        axis.set(xlabel="layer (0-based, output)", ylabel=name)
        axis.set_ylim(bottom=min(0.0, described[column].min()))
        axis.xaxis.get_major_locator().set_params(integer=True)
    (norm, most), (cosine, best) = (described[column].agg(["min", "max"]) for column in names)
    return style.say(
        fig,
        "Length and stability of the steering vector",
        f"At alpha 1 the vector has {norm:.2f} to {most:.2f} of the residual's norm; vectors of two random halves of "
        f"the pairs have a cosine of {cosine:.2f} to {best:.2f}.",
    )


def plot_projection(projected: pd.DataFrame, *, layer: int) -> Figure:
    """Held-out answers (side, projection) along a layer's vector: a line a side, a tick an answer, a dot the mean."""
    fig, axes = style.new_figure(height=2.7)
    axis = axes[0, 0]
    for line, (side, colour) in enumerate(SIDES.items()):
        values = projected.loc[projected["side"] == side, "projection"]
        axis.plot(values, np.full(len(values), line), "|", color=colour, markersize=16)
        axis.plot(values.mean(), line, "o", color="black", markersize=5)
    above, below = (projected.loc[projected["side"] == side, "projection"] for side in SIDES)
    gaps = np.subtract.outer(above.to_numpy(), below.to_numpy())
    auc = np.heaviside(gaps, 0.5).mean()  # a tie counts half
    axis.set_yticks(range(2), [f"preferred\n(n = {len(above)})", f"dispreferred\n(n = {len(below)})"])
    axis.set(ylim=(1.6, -0.6), xlabel=f"projection on the vector of layer {layer} (activation units)")
    axis.grid(axis="y", visible=False)
    return style.say(
        fig,
        "Held-out answers along the steering vector",
        f"A preferred answer lies further along than a dispreferred one with probability {auc:.2f} "
        "(area under the ROC curve; 0.50 is chance). Dots are means.",
    )
