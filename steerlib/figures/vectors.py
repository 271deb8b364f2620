"""Pictures of notebook 02: how long, how stable and how alike the steering vectors are, and what they separate."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from torch import Tensor

from steerlib.figures.style import COLOUR, new_figure


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
        axis.plot(described["layer"], described[column], marker="o", color=COLOUR["caa"])
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
