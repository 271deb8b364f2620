"""Figures of notebooks 01 and 02: whose ratings, and which direction they give."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from steerlib.figures import style
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
    counts = primary.value_counts().reindex(SIX, fill_value=0)
    names = [f"{style.label(name)} ({counts[name]})".replace(" ", "\n") for name in SIX]
    bar = {"label": "percentile among users (dot: primary)"}
    look = {"vmin": 0, "vmax": 1, "cmap": "cividis", "xticklabels": names, "yticklabels": False}
    sns.heatmap(wide.to_numpy()[order], ax=axis, cbar_kws=bar, **look)
    axis.plot(rank[order] + 0.5, np.arange(len(wide)) + 0.5, "o", color="black", markersize=2.5)
    axis.set(ylabel=f"{len(wide)} users by primary category")
    axis.tick_params(axis="x", rotation=0)
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
        f"[{low:.0%}, {high:.0%}], {above} by chance ({chance:.0%}). "
        "Sorting draws the diagonal of dots even from noise.",
    )


def plot_projection(projected: pd.DataFrame, *, layer: int) -> Figure:
    """Held-out answers (side, projection) along a layer's vector: a line a side, a tick an answer, a dot the mean."""
    fig, axes = style.new_figure(height=2.7)
    axis = axes[0, 0]
    look = {"data": projected, "x": "projection", "y": "side", "order": list(SIDES), "ax": axis}
    sns.stripplot(**look, hue="side", palette=SIDES, marker="|", size=16, linewidth=1.5, jitter=False)
    sns.pointplot(**look, color="black", linestyle="none", errorbar=None, markersize=5)
    above, below = (projected.loc[projected["side"] == side, "projection"] for side in SIDES)
    gaps = np.subtract.outer(above.to_numpy(), below.to_numpy())
    auc = np.heaviside(gaps, 0.5).mean()  # a tie counts half
    axis.set_yticks(range(2), [f"preferred\n(n = {len(above)})", f"dispreferred\n(n = {len(below)})"])
    axis.set(ylabel="", xlabel=f"projection on the vector of layer {layer} (activation units)")
    axis.grid(axis="y", visible=False)
    return style.say(
        fig,
        "Held-out answers along the steering vector",
        f"A preferred answer lies further along than a dispreferred one with probability {auc:.2f} "
        "(area under the ROC curve; 0.50 is chance). Dots are means. 0 is the origin of the residual stream, no border "
        "between the two sides: only which answer lies further counts.",
    )
