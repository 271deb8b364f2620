"""Conditional steering: a vector is added only for prompts whose own residual says so.

    open(p) = s(p) > threshold      s, the projection of prompt p on a direction, decided once a prompt

Source: after Lee et al., Programming Refusal with Conditional Activation Steering (arXiv 2409.05907), who compare
cosines with a subspace; ours is the projection on one direction.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from steerlib.models import FrozenModel
from steerlib.vectors.prompt_residuals import prompt_residuals


class Threshold(NamedTuple):
    """Where a gate opens, in activation units, and how well that separates the prompts it was chosen on (0 to 1)."""

    value: float
    balanced_accuracy: float


def prompt_projections(
    frozen: FrozenModel, prompts: pd.DataFrame, vector: Mapping[int, Tensor], *, layer: int, style: str
) -> pd.Series:
    """How far each prompt lies along a direction.

        s = h_l . v_l / ||v_l||     at the prompt's last position, of the unsteered model

    Args:
        frozen: the model.
        prompts: prompt_id, prompt and, where there are earlier turns, history.
        vector: the direction by layer, `(d_model,)`; it need not be the one that steers.
        layer: 0-based block that is read.
        style: "chat" or "continuation".

    Returns:
        Projections in activation units, by prompt_id.

    Raises:
        ValueError: the vector has no such layer, or is zero there.
    """
    unit = _unit(vector, layer)
    residual = prompt_residuals(frozen, prompts, layers=[layer], style=style)[layer]
    along = (residual @ unit.to(residual)).tolist()
    return pd.Series(along, index=pd.Index(prompts["prompt_id"], name="prompt_id"), name="projection")


def choose_threshold(projections: pd.Series, labels: pd.Series) -> Threshold:
    """Threshold that separates dev prompts to be steered from the others best.

        balanced accuracy = (share of the labelled above + share of the others not above) / 2

    Candidates are the midpoints between neighbouring projections, and -inf (every prompt is steered) and inf (none). Of
    several equally good ones the highest is taken, which steers the fewest prompts. Dev prompts only: on the prompts it
    was chosen on the accuracy is too good.

    Args:
        projections: by prompt_id, see `prompt_projections`.
        labels: True for prompts that shall be steered, by prompt_id.

    Raises:
        ValueError: a prompt without a label, a projection that is not finite, or only one kind of label.
    """
    missing = projections.index.difference(labels.index)
    if len(missing):
        raise ValueError(f"prompt {missing[0]} has a projection and no label")
    along = projections.to_numpy(dtype=float)
    wanted = labels.loc[projections.index].to_numpy(dtype=bool)
    if not np.isfinite(along).all():
        raise ValueError(
            f"the projection of prompt {projections.index[~np.isfinite(along)][0]} is not finite"
        )
    if wanted.all() or not wanted.any():
        raise ValueError(
            f"all {len(wanted)} prompts have the label {bool(wanted.all())}: nothing to separate"
        )
    places = np.unique(along)
    candidates = np.r_[-np.inf, (places[1:] + places[:-1]) / 2, np.inf]
    above = along > candidates[:, None]
    accuracy = (above[:, wanted].mean(axis=1) + (~above[:, ~wanted]).mean(axis=1)) / 2
    best = int(np.flatnonzero(accuracy >= accuracy.max() - 1e-12)[-1])
    return Threshold(float(candidates[best]), float(accuracy[best]))


def _unit(vector: Mapping[int, Tensor], layer: int) -> Tensor:
    if layer not in vector:
        raise ValueError(f"the gate's vector has layers {sorted(vector)}, not {layer}")
    direction = vector[layer].double()
    if not direction.norm() > 0:
        raise ValueError(f"the gate's vector is zero at layer {layer}")
    return direction / direction.norm()
