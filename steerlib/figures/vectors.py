"""Picture of a direction that was made to steer one measure: what it does on both sides of 0, and what that costs.

Pictures of notebook 02: how long, how stable and how alike the steering vectors are, and what they separate.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from steerlib.figures.responses import ZERO, half_widths
from steerlib.figures.style import new_figure
from steerlib.rules import RULES


def plot_layers(described: pd.DataFrame) -> Figure:
    """Relative norm of the vector and its split-half cosine, by layer.

    Args:
        described: what `describe_vectors` returned: layer, relative_norm, split_half_cosine.
    """
    fig, axes = new_figure(1, 2, height=2.8)
    for axis, column, name in (
        (axes[0, 0], "relative_norm", "vector norm / residual norm"),
        (axes[0, 1], "split_half_cosine", "split-half cosine"),
    ):
        axis.plot(described["layer"], described[column], marker="o", color=RULES["caa"].colour)
        lowest, highest = described[column].min(), described[column].max()
        axis.set(xlabel="layer (0-based, output)", ylabel=name, ylim=(min(0, lowest * 1.1), highest * 1.1))
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 1].set_ylim(top=1.02)
    return fig


def cosines_between_layers(vectors: Mapping[int, Tensor]) -> pd.DataFrame:
    """Cosine of every two layers' vectors, `(layers, layers)`.

    Args:
        vectors: steering vectors by layer, `(d_model,)` each.
    """
    layers = sorted(vectors)
    unit = np.stack([(vectors[layer].double() / vectors[layer].double().norm()).numpy() for layer in layers])
    return pd.DataFrame(unit @ unit.T, index=pd.Index(layers, name="layer"), columns=layers)


def plot_cosines(cosines: pd.DataFrame) -> Figure:
    """Heat map of the cosines between layers.

    Args:
        cosines: what `cosines_between_layers` returned.
    """
    fig, axes = new_figure(height=4.2, width=5.2)
    axis = axes[0, 0]
    values = cosines.to_numpy()
    image = axis.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="none")
    axis.set_xticks(range(len(cosines)), list(cosines.columns))
    axis.set_yticks(range(len(cosines)), list(cosines.index))
    axis.set(xlabel="layer (0-based, output)", ylabel="layer (0-based, output)")
    axis.grid(visible=False)
    if len(cosines) <= 12:
        for row, column in np.ndindex(values.shape):
            value = values[row, column]
            ink = "white" if abs(value) > 0.6 else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    fig.colorbar(image, ax=axis, label="cosine of the two vectors")
    return fig


def projections(preferred: Tensor, dispreferred: Tensor, vector: Tensor) -> pd.DataFrame:
    """Where residuals lie along a steering vector: h . v / ||v||.

    Args:
        preferred, dispreferred: pooled residuals of held-out answers, `(n, d_model)`; their numbers may differ.
        vector: `(d_model,)`.

    Returns:
        One row an answer: `side` ("preferred" or "dispreferred"), `projection` (activation units).

    Raises:
        ValueError: the vector is zero.
    """
    norm = vector.double().norm()
    if norm == 0:
        raise ValueError("the vector is zero: nothing can be projected on it")
    sides = {"preferred": preferred, "dispreferred": dispreferred}
    return pd.concat(
        [
            pd.DataFrame({"side": side, "projection": (residual.double() @ vector.double() / norm).numpy()})
            for side, residual in sides.items()
        ],
        ignore_index=True,
    )


def auc(projected: pd.DataFrame) -> float:
    """Chance that a preferred answer lies further along the vector than a dispreferred one; ties count half.

    Args:
        projected: what `projections` returned.
    """
    above = projected.loc[projected["side"] == "preferred", "projection"].to_numpy()
    below = projected.loc[projected["side"] == "dispreferred", "projection"].to_numpy()
    difference = above[:, None] - below[None, :]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def plot_projection(projected: pd.DataFrame, *, layer: int) -> Figure:
    """Held-out preferred and dispreferred answers along the vector, with the area under the ROC curve.

    Args:
        projected: what `projections` returned, of answers that did not make the vector.
        layer: whose residual and vector they are.
    """
    fig, axes = new_figure(height=2.9)
    axis = axes[0, 0]
    colours = {"preferred": "#56b4e9", "dispreferred": "#e69f00"}  # Okabe-Ito too, and no method's
    numbers = projected["side"].value_counts()
    for side, colour in colours.items():
        values = projected.loc[projected["side"] == side, "projection"]
        sns.kdeplot(
            x=values, ax=axis, color=colour, fill=True, alpha=0.25, label=f"{side} (n = {numbers[side]})"
        )
        axis.plot(values, np.full(len(values), 0.0), "|", color=colour, markersize=8, alpha=0.6)
    axis.set(
        xlabel=f"projection on the vector of layer {layer} (activation units)", ylabel="density of answers"
    )
    axis.legend(title=f"AUC {auc(projected):.2f} (chance 0.50)", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


RANDOM = "random"


def plot_direction(
    response: pd.DataFrame,
    perplexity: pd.DataFrame,
    *,
    draws: pd.DataFrame,
    ylabel: str = "toxicity of the continuation,\n95 % simultaneous band",
) -> Figure:
    """A measure against alpha of both signs with its band, random directions beside it; perplexity in a second panel.

    The steered direction is solid with full marks; random directions are thin with hollow marks, their mean with its
    band and each draw as a dot.

    Args:
        response: vector (a name, or "random" for the mean of the draws), alpha, value, low, high; alpha 0 is the base.
        perplexity: the same of the perplexity, with an interval at each alpha.
        draws: vector, alpha, value of each random direction alone.
        ylabel: the measure with the interval drawn.

    Raises:
        ValueError: no direction other than the random one, or a value to be drawn is missing.
    """
    names = [name for name in response["vector"].unique() if name != RANDOM]
    if not names:
        raise ValueError("no direction to draw: all curves are random")
    for what, table in (("response", response), ("perplexity", perplexity)):
        if table["value"].isna().any():
            raise ValueError(f"{what}: a value is missing")
    fig, axes = new_figure(1, 2, height=3.6)
    left, right = axes[0]
    shown = [_draw_band(left, rows, str(name)) for name, rows in _in_order(response)]
    shown.append(_draw_draws(left, draws))
    for name, rows in _in_order(perplexity):
        _draw_bars(right, rows, str(name))
    left.set_ylim(bottom=min(0.0, float(response["value"].min())))
    right.set_ylim(bottom=0)
    for axis, label in ((left, ylabel), (right, "perplexity under the unsteered base,\n95 % interval")):
        axis.axvline(0, color=RULES["base"].colour, **ZERO)
        axis.set(xlabel="alpha (units of the mean difference)", ylabel=label)
    fig.legend(handles=shown, loc="outside lower center", ncols=len(shown))
    return fig


def _in_order(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Curves by rising alpha, random directions last."""
    groups = {str(name): rows.sort_values("alpha") for name, rows in table.groupby("vector")}
    return sorted(groups.items(), key=lambda item: item[0] == RANDOM)


def _style(name: str) -> dict[str, Any]:
    control = name == RANDOM
    return {
        "color": RULES["caa"].colour,
        "linewidth": 0.8 if control else 1.8,
        "linestyle": (0, (1, 1)) if control else "-",
        "marker": "o",
        "markersize": 4.5,
        "markerfacecolor": "white" if control else RULES["caa"].colour,
    }


def _label(name: str) -> str:
    return (
        "random directions of equal norm, mean" if name == RANDOM else f"{name.replace('_', ' ')} direction"
    )


def _draw_band(axis: Axes, rows: pd.DataFrame, name: str) -> Any:
    faint = 0.10 if name == RANDOM else 0.22
    axis.fill_between(
        rows["alpha"], rows["low"], rows["high"], color=RULES["caa"].colour, alpha=faint, linewidth=0
    )
    return axis.plot(rows["alpha"], rows["value"], label=_label(name), **_style(name))[0]


def _draw_draws(axis: Axes, draws: pd.DataFrame) -> Any:
    number = draws["vector"].nunique()
    return axis.plot(
        draws["alpha"],
        draws["value"],
        linestyle="",
        marker=".",
        markersize=4,
        color=RULES["base"].colour,
        label=f"each of {number} random directions",
    )[0]


def _draw_bars(axis: Axes, rows: pd.DataFrame, name: str) -> None:
    reach = np.ptp(rows["alpha"].to_numpy(float))
    shift = 0.012 * reach if name == RANDOM else 0.0
    axis.errorbar(
        rows["alpha"] + shift, rows["value"], yerr=half_widths(rows), elinewidth=0.8, **_style(name)
    )
