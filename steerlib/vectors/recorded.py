"""Residuals of contrast pairs that are recorded once and kept: they cost hours with a large model, what is asked of
them costs seconds."""

import json
from hashlib import sha256
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file, save_file
from torch import Tensor

from steerlib.models import FrozenModel
from steerlib.prompting import answer_ids, prompt_ids
from steerlib.tables import atomic_path
from steerlib.vectors.pairs import pair_residuals

SIDES = ("preferred", "dispreferred")


def pair_tokens(frozen: FrozenModel, pairs: pd.DataFrame, *, style: str) -> pd.DataFrame:
    """Length of each pair's prompt and answers in the model's tokens.

    Args:
        frozen: the model whose tokenizer counts.
        pairs: the pairs table.
        style: "chat" or "continuation"; the chat template's tokens count to the prompt.

    Returns:
        Columns prompt, preferred, dispreferred, and `longest`, that of the prompt with the longer answer; rows as
        the pairs, under their index.
    """
    counts = pd.DataFrame(
        {"prompt": [len(prompt_ids(frozen, text, style=style)) for text in pairs["prompt"]]}
        | {side: [len(answer_ids(frozen, text, style=style)) for text in pairs[side]] for side in SIDES},
        index=pairs.index,
    )
    return counts.assign(longest=counts["prompt"] + counts[list(SIDES)].max(axis=1))


def kept_pair_residuals(
    folder: Path,
    frozen: FrozenModel,
    pairs: pd.DataFrame,
    *,
    layers: list[int],
    style: str,
    pool: str = "answer_mean",
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """`pair_residuals`, read from the run's folder where the same were recorded before.

    Args:
        folder: the run's folder; residuals lie in its `residuals/`, in float32.
        frozen, pairs, layers, style, pool: see `pair_residuals`. Another model, precision, text, layer, style or
            pooling is another file.

    Returns:
        Preferred and dispreferred residuals, by layer `(n_pairs, d_model)` each, float32.
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
