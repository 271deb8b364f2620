"""Conditional steering, and how large each addition is relative to the residual it is added to."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from steerlib.decoding.requests import Factor, strength
from steerlib.models import FrozenModel
from steerlib.residual import VectorFamily, Vectors, family_of, prompt_residuals
from steerlib.tables import check_table


class Threshold(NamedTuple):
    """Where a gate opens, in activation units, and how well that separates the prompts it was chosen on (0 to 1)."""

    value: float
    balanced_accuracy: float


def prompt_projections(
    frozen: FrozenModel, prompts: pd.DataFrame, vector: Vectors, *, layer: int, style: str
) -> pd.Series:
    """How far each prompt lies along a direction, in activation units, by prompt_id.

        s = h_l . v_l / ||v_l||     at the prompt's last position, of the unsteered model

    The vector need not be the one that steers; a ValueError says that it is absent or 0 at this layer.

    Source: after Lee et al., Programming Refusal with Conditional Activation Steering (arXiv 2409.05907), who compare
    cosines with a subspace; ours is the projection on one direction.
    """
    if layer not in vector or not vector[layer].norm() > 0:
        raise ValueError(f"the gate's vector is absent or 0 at layer {layer}; it has layers {sorted(vector)}")
    residual = prompt_residuals(frozen, prompts, layers=[layer], style=style)[layer]
    along = residual @ (vector[layer].to(residual) / vector[layer].to(residual).norm())
    index = pd.Index(prompts["prompt_id"], name="prompt_id")
    return pd.Series(along.tolist(), index=index, name="projection")


def choose_threshold(projections: pd.Series, labels: pd.Series) -> Threshold:
    """Threshold of the projections that separates dev prompts to be steered (label True) from the others best.

        balanced accuracy = (share of the labelled above + share of the others not above) / 2

    Candidates are the midpoints between neighbouring projections, and -inf (every prompt is steered) and inf (none). Of
    several equally good ones the highest is taken, which steers the fewest prompts.

    Both are by prompt_id. A ValueError names a prompt without a label, a projection that is not finite, or the only
    kind of label.
    """
    missing = projections.index.difference(labels.index)
    if len(missing):
        raise ValueError(f"prompt {missing[0]} has a projection and no label")
    along = projections.to_numpy(dtype=float)
    wanted = labels.loc[projections.index].to_numpy(dtype=bool)
    for prompt in projections.index[~np.isfinite(along)]:
        raise ValueError(f"the projection of prompt {prompt} is not finite")
    if wanted.all() or not wanted.any():
        raise ValueError(f"all {len(wanted)} prompts have the label {wanted.all()}: nothing to separate")
    values = np.unique(along)
    candidates = np.r_[-np.inf, (values[1:] + values[:-1]) / 2, np.inf]
    above = along > candidates[:, None]
    accuracy = (above[:, wanted].mean(axis=1) + (~above[:, ~wanted]).mean(axis=1)) / 2
    best = int(np.flatnonzero(accuracy >= accuracy.max() - 1e-12)[-1])
    return Threshold(float(candidates[best]), float(accuracy[best]))


def relative_norms(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arms: pd.DataFrame,
    vectors: Sequence[VectorFamily],
    *,
    factors: Sequence[Factor] = (),
) -> pd.DataFrame:
    """Norm of what each arm adds to the residual, relative to the residual's own, for each prompt and layer.

        relative_norm = ||alpha v_l|| / ||h_l||     h_l at the prompt's last position, of the unsteered model

    Alphas of different vectors cannot be compared, relative norms can. An arm that adds at seven layers adds at each of
    them, to what the layers before have changed.

    Everything is as given to `decode`; arms without a vector have no rows. The table is `relative_norms`, its norm that
    of h_l in activation units.
    """
    steered = arms[arms["family"] != ""].to_dict("records")
    families = {arm["arm_id"]: family_of(arm, vectors) for arm in steered}
    layers = sorted({layer for family in families.values() for v in family.vectors.values() for layer in v})
    norms, rows = {}, []
    for style in {arm["style"] for arm in steered}:
        residuals = prompt_residuals(frozen, prompts, layers=layers, style=style)
        norms[style] = {layer: h.norm(dim=-1).tolist() for layer, h in residuals.items()}
    for arm in steered:
        for row, prompt in enumerate(prompts.to_dict("records")):
            _, alpha = strength(arm, prompt["prompt_id"], factors)
            for layer, v in families[arm["arm_id"]].of(prompt.get("user_id", "")).items():
                norm = norms[arm["style"]][layer][row]
                relative = abs(alpha) * float(v.double().norm()) / norm
                rows.append((arm["arm_id"], prompt["prompt_id"], layer, norm, relative))
    columns = pd.Index(["arm_id", "prompt_id", "layer", "norm", "relative_norm"])
    return check_table("relative_norms", pd.DataFrame(rows, columns=columns))
