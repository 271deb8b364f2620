"""The residual of a prompt's last token: where the answer's first token is decided."""

import pandas as pd
from torch import Tensor

from steerlib.models import FrozenModel
from steerlib.prompting import prompt_ids, read_history
from steerlib.vectors.residual import record_residual


def prompt_residuals(
    frozen: FrozenModel, prompts: pd.DataFrame, *, layers: list[int], style: str
) -> dict[int, Tensor]:
    """Residuals of the unsteered model at the last position of each prompt, without any context.

    Args:
        frozen: the model.
        prompts: the prompts table, or any frame with prompt_id, prompt and, where there are earlier turns, history.
        layers: 0-based decoder blocks.
        style: "chat" or "continuation", as for generation.

    Returns:
        By layer `(n_prompts, d_model)`, float64, rows as the prompts.

    Raises:
        IndexError: the model has no such layer.
        ValueError: an empty prompt or an unknown style.
    """
    ids = [
        prompt_ids(frozen, row["prompt"], style=style, history=read_history(row.get("history") or ""))
        for row in prompts.to_dict("records")
    ]
    return record_residual(
        frozen, ids, layers=layers, prompt_lengths=[len(one) for one in ids], pool="prompt_last"
    )
