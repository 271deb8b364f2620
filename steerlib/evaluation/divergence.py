"""Where in an answer the instruction matters: divergence of the instructed from the plain branch, token by token."""

from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor

from steerlib.evaluation.forced import forced_logits
from steerlib.generation.contexts import Contexts, branch_ids, default_contexts
from steerlib.generation.realignment import js_divergence
from steerlib.models import FrozenModel, check_length
from steerlib.progress import progress_bar
from steerlib.prompting import TokenIds, answer_ids

COLUMNS = ["prompt_id", "place", "token_id", "token", "js", "lp_base", "lp_instructed"]


def token_divergence(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    answers: pd.Series,
    *,
    style: str = "chat",
    contexts: Contexts | None = None,
    branch: str = "instructed",
    batch_tokens: int = 1024,
) -> pd.DataFrame:
    """Jensen-Shannon divergence of two branches at every token of given answers.

        JS_t = KL(P1 || M)/2 + KL(P2 || M)/2,   P1 = P(. | Q, y_<t),  P2 = P(. | Q, I, y_<t),  M = (P1 + P2)/2

    It is what SDA's temperature reads while it decodes, here read off a text that is already there.

    Args:
        frozen: the model.
        prompts: prompt_id, prompt, category (key of the contexts).
        answers: text by prompt_id; prompts without one are left out, as are empty texts.
        style: "chat" or "continuation".
        contexts: by category; None for the style's defaults.
        branch: the second branch, "instructed", "expert" or "anti"; the first is always the plain one.
        batch_tokens: answer tokens in one forward pass; bounds memory.

    Returns:
        One row a token: prompt_id, place (from 0), token_id, token (its text), js in nats (0 to ln 2), and the
        token's own log-probability under each branch, lp_base and lp_instructed (the second branch), in nats.

    Raises:
        ValueError: an answer to no prompt, contexts that lack the branch, or a text longer than the model's context.

    Source: SDA, eq. 6.
    """
    texts = default_contexts(style) if contexts is None else contexts
    placed = _placed(frozen, prompts, answers, style, texts, branch)
    rows: list[tuple] = []
    with progress_bar(len(placed), unit="answer", what="divergence") as bar:
        for prompt_id, (branches, ids) in placed.items():
            ((_, z),) = forced_logits(frozen, branches, [ids], batch_tokens=batch_tokens)
            words = frozen.tokenizer.batch_decode([[one] for one in ids])
            columns = (range(len(ids)), ids, words, *_divergence(z, ids, branch))
            rows += [(prompt_id, *row) for row in zip(*columns, strict=True)]
            bar.update()
    return pd.DataFrame(rows, columns=COLUMNS)


def _placed(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    answers: pd.Series,
    style: str,
    contexts: Contexts,
    branch: str,
) -> dict[str, tuple[dict[str, TokenIds], TokenIds]]:
    """By prompt, the ids that both branches read and those of the answer."""
    strange = answers.index.difference(prompts["prompt_id"])
    if len(strange):
        raise ValueError(f"answer to {strange[0]!r}: there is no such prompt")
    placed = {}
    for row in prompts[prompts["prompt_id"].isin(answers.index)].itertuples():
        ids = answer_ids(frozen, answers[row.prompt_id], style=style)
        branches = {
            name: branch_ids(frozen, row.prompt, name, category=row.category, style=style, contexts=contexts)
            for name in ("base", branch)
        }
        for name, context in branches.items():
            check_length(frozen, context, len(ids), what=f"prompt {row.prompt_id}, branch {name}")
        if ids:
            placed[row.prompt_id] = (branches, ids)
    return placed


def _divergence(z: dict[str, Tensor], ids: TokenIds, branch: str) -> Iterator[list[float]]:
    tokens = torch.tensor(ids, device=z["base"].device)[:, None]
    yield js_divergence(z["base"], z[branch]).tolist()
    for name in ("base", branch):
        high = z[name] if z[name].device.type == "mps" else z[name].double()
        yield high.log_softmax(-1).gather(-1, tokens)[:, 0].tolist()
