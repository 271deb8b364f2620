"""Whether a direction of train pairs orders held-out pairs, better than their length and better than chance directions.

Residuals of the pairs are recorded once and kept: they cost hours with a large model, what is asked of them seconds.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from steerlib.evaluation.intervals import cluster_interval
from steerlib.figures.style import new_figure
from steerlib.models import FrozenModel
from steerlib.reading import answer_ids, prompt_ids
from steerlib.rules import RULES
from steerlib.tables import atomic_path
from steerlib.vectors.pairs import pair_residuals

Floats = NDArray[np.float64]
Scores = tuple[ArrayLike, ArrayLike]
"""A number for each preferred and each dispreferred answer, `(n,)` both, pair by pair."""


def scores_along(
    vectors: Mapping[int, Tensor], preferred: Mapping[int, Tensor], dispreferred: Mapping[int, Tensor]
) -> dict[int, tuple[Floats, Floats]]:
    """How far each answer of both sides lies along the vector of each layer, `(n_pairs,)`, in activation units.

        s_l(p, y) = h_l(p + y) . v_l / ||v_l||

    Residuals are pooled, `(n_pairs, d_model)` by layer, see `pair_residuals`. A ValueError names a layer whose vector
    is zero.
    """
    found = {}
    for layer, vector in vectors.items():
        v = vector.double()
        if not v.norm() > 0:
            raise ValueError(f"the vector of layer {layer} is zero: nothing can be projected on it")
        found[layer] = tuple(
            (side[layer].double() @ v / v.norm()).numpy() for side in (preferred, dispreferred)
        )
    return found


def without_length(scores: Scores, lengths: Scores, *, train: Scores, train_lengths: Scores) -> Scores:
    """Scores minus what length explains of them.

        s' = s - b n,     with b from least squares on train pairs: s+ - s- = a + b (n+ - n-)

    The constant a takes up the preference, so that b holds only how the score moves with length within a pair. A
    ValueError where all train pairs have the same difference in length.
    """
    (above, below), (n_above, n_below) = _arrays(train), _arrays(train_lengths)
    longer = n_above - n_below
    if np.ptp(longer) == 0:
        raise ValueError("all train pairs differ equally in length: no slope can be fitted")
    slope = np.polyfit(longer, above - below, 1)[0]
    (first, second), (n_first, n_second) = _arrays(scores), _arrays(lengths)
    return first - slope * n_first, second - slope * n_second


def preference_rows(models: Mapping[str, Scores], pairs: pd.DataFrame) -> pd.DataFrame:
    """The preference table of several scores by name on the same pairs, ready for `compare_preferences`."""
    tables = []
    for name, scores in models.items():
        above, below = _arrays(scores)
        tables.append(pairs[["pair_id", "user_id"]].assign(model=name, margin=above - below))
    return pd.concat(tables, ignore_index=True)[["model", "pair_id", "user_id", "margin"]]


def compare_auc(models: Mapping[str, Scores], clusters: ArrayLike, *, reference: str) -> pd.DataFrame:
    """Area under the ROC curve of several scores on the same pairs, and its paired difference from one of them.

        AUC = chance that a preferred answer scores above a dispreferred one, of whichever pair; ties count half

    Unlike the accuracy within pairs it asks for one scale over all prompts. Its interval is that of the pairs'
    contributions V10_i + V01_i - AUC, clustered by conversation or user. Columns are model, comparator ("" or the
    reference), value, low, high, n, n_clusters, how. A ValueError for an unknown reference or unequal numbers of pairs.

    Source: DeLong et al., Biometrics 1988; clustered as Obuchowski, Biometrics 1997.
    """
    if reference not in models:
        raise ValueError(f"no scores of {reference!r}; there are {', '.join(models)}")
    parts = {name: _contributions(scores) for name, scores in models.items()}
    rows = []
    for name, part in parts.items():
        rows.append([name, "", *cluster_interval(part, clusters)])
        if name != reference:
            rows.append([name, reference, *cluster_interval(part - parts[reference], clusters)])
    columns = ["model", "comparator", "value", "low", "high", "n", "n_clusters", "how"]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def chance_accuracies(
    train: Scores, held_out: Scores, *, draws: int = 500, seed: int = 0
) -> dict[str, Floats]:
    """Held-out accuracy within pairs of chance directions, `(draws,)` of each kind.

    "random": directions drawn at random; like length's, their sign is chosen on train pairs.
    "shuffled": mean differences of the same train pairs with preferred and dispreferred swapped at random.

    Residuals are those of one layer, `(n_pairs, d_model)` of both sides.
    """
    rng = np.random.default_rng(seed)
    (above, below), (first, second) = _arrays(train), _arrays(held_out)
    fitted, tested = above - below, first - second
    directions = rng.standard_normal((fitted.shape[1], draws))
    directions *= np.where(np.sign(fitted @ directions).sum(axis=0) >= 0, 1.0, -1.0)
    signs = rng.choice([-1.0, 1.0], size=(draws, len(fitted)))
    candidates = {"random": directions, "shuffled": (signs @ fitted).T}
    return {name: np.heaviside(tested @ found, 0.5).mean(axis=0) for name, found in candidates.items()}


def _contributions(scores: Scores) -> Floats:
    above, below = _arrays(scores)
    wins = np.heaviside(above[:, None] - below[None, :], 0.5)
    return wins.mean(axis=1) + wins.mean(axis=0) - wins.mean()


def _arrays(scores: Scores) -> tuple[Floats, Floats]:
    first, second = (np.asarray(side, dtype=np.float64) for side in scores)
    if first.shape != second.shape:
        raise ValueError(
            f"preferred and dispreferred must be equally many, not {first.shape} and {second.shape}"
        )
    return first, second


SIDES = ("preferred", "dispreferred")


def pair_tokens(frozen: FrozenModel, pairs: pd.DataFrame, *, style: str) -> pd.DataFrame:
    """Length of each pair's prompt and answers in the model's tokens, under the index of the pairs.

    Columns prompt (with the tokens of a chat template), preferred, dispreferred, and `longest`, that of the prompt with
    the longer answer.
    """
    counts = pd.DataFrame(
        {"prompt": [len(prompt_ids(frozen, text, style=style)) for text in pairs["prompt"]]}
        | {side: [len(answer_ids(frozen, text, style=style)) for text in pairs[side]] for side in SIDES},
        index=pairs.index,
    )
    return counts.assign(longest=counts["prompt"] + counts[list(SIDES)].max(axis=1))


def kept_pair_residuals(
    folder: Path, frozen: FrozenModel, pairs: pd.DataFrame, *, layers: list[int], style: str, pool: str
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """`pair_residuals` in float32, read from the run's folder where the same were recorded before.

    They lie in `residuals/`; another model, precision, text, layer, style or pooling is another file.
    """
    texts = pairs[["prompt", *SIDES]].to_numpy().tolist()
    settings = [frozen.name, str(frozen.dtype), layers, style, pool, texts]
    name = sha256(json.dumps(settings).encode()).hexdigest()[:12]
    path = folder / "residuals" / f"{style}-{pool}-{name}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sides = pair_residuals(frozen, pairs, layers=layers, style=style, pool=pool)
        tensors = {
            f"{side}.{layer}": residual.float().contiguous()
            for side, recorded in zip(SIDES, sides, strict=True)
            for layer, residual in recorded.items()
        }
        with atomic_path(path) as partial:
            save_file(tensors, partial)
    read = load_file(path)
    preferred, dispreferred = ({layer: read[f"{side}.{layer}"] for layer in layers} for side in SIDES)
    return preferred, dispreferred


CHANCE = {"color": "black", "linewidth": 0.8, "linestyle": (0, (1, 2))}
KINDS = {"vector": ("mean difference", "-", "o"), "without length": ("length taken out", "--", "s")}


def plot_accuracy_by_layer(compared: pd.DataFrame) -> Figure:
    """Held-out accuracy within pairs against the layer, one panel a style, with length alone beside it.

    Columns are style, kind ("vector", "without length" or "length"), layer (missing for length), value, low, high.
    """
    styles = list(dict.fromkeys(compared["style"]))
    fig, axes = new_figure(1, len(styles), height=3.4, sharey=True)
    for axis, style in zip(axes[0], styles, strict=True):
        rows = compared[compared["style"] == style]
        _draw_length(axis, rows[rows["kind"] == "length"].iloc[0])
        for kind in KINDS:
            _draw_layers(axis, rows[rows["kind"] == kind].sort_values("layer"), kind)
        axis.axhline(0.5, label="chance", **CHANCE)
        axis.set(xlabel=f"layer (0-based, output), {style}")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("held-out pairs in the right order,\n95 % interval")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return fig


def _draw_length(axis: Axes, row: pd.Series) -> None:
    axis.axhspan(row["low"], row["high"], color=RULES["base"].colour, alpha=0.18, linewidth=0)
    axis.axhline(row["value"], color=RULES["base"].colour, label="length alone")


def _draw_layers(axis: Axes, rows: pd.DataFrame, kind: str) -> None:
    name, line, marker = KINDS[kind]
    shift = 0.3 if kind != "vector" else 0.0
    errors = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
    axis.errorbar(
        rows["layer"] + shift,
        rows["value"],
        yerr=np.array(errors),
        color=RULES["caa"].colour,
        markerfacecolor=RULES["caa"].colour if kind == "vector" else "white",
        linestyle=line,
        linewidth=1.2,
        marker=marker,
        markersize=3,
        elinewidth=0.6,
        label=name,
    )


def plot_chance(accuracies: Mapping[str, Mapping[str, NDArray]], reached: Mapping[str, float]) -> Figure:
    """Accuracies of `chance_accuracies` as histograms, and that of the vector as a line; one panel a style."""
    fig, axes = new_figure(1, len(accuracies), height=2.9, sharey=True)
    looks = {"random": ("#e69f00", "random directions"), "shuffled": ("#56b4e9", "shuffled pairs")}
    for axis, (style, kinds) in zip(axes[0], accuracies.items(), strict=True):
        bins = np.histogram_bin_edges(np.concatenate(list(kinds.values())), bins=30)
        for kind, values in kinds.items():
            colour, name = looks[kind]
            axis.hist(values, bins=bins, color=colour, alpha=0.45, label=name)
        axis.axvline(reached[style], color=RULES["caa"].colour, linewidth=2, label="mean difference")
        axis.axvline(0.5, label="chance", **CHANCE)
        axis.set(xlabel=f"held-out pairs in the right order, {style}")
    axes[0, 0].set_ylabel("directions")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return fig
