"""Contrast pairs from a file: a user's own, or transcripts as those of HH-RLHF.

Contrast pairs: the answer a user preferred and one they did not, to the same prompt.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pandas as pd
import torch

from steerlib.models import FrozenModel
from steerlib.profiles.sources import hash_order, read_rows
from steerlib.reading import answer_ids, prompt_ids
from steerlib.residual import record_residual
from steerlib.tables import check_table


def pairs_from_ratings(
    ratings: pd.DataFrame, splits: pd.DataFrame, *, tie: int = 5, ties: str = "drop"
) -> pd.DataFrame:
    """One pair a conversation: the highest-rated answer of the first turn against the lowest-rated.

    Args:
        ratings: the ratings table; only turn 0 is used, where the answers come from different models.
        splits: the splits table, which says on which side of the leak rule a conversation lies.
        tie: pairs whose ratings differ by this many points or fewer are ties (PRISM's own margin is 5).
        ties: "drop", or "half": a tie counts half as much as another pair. Equal ratings name no preferred answer
            and are dropped either way.

    Returns:
        The pairs table; `weight` is 1, and 0.5 for ties.

    Raises:
        ValueError: `ties` is neither.
    """
    if ties not in ("drop", "half"):
        raise ValueError(f"ties {ties!r} is neither 'drop' nor 'half'")
    first = ratings[ratings.turn == 0].sort_values(["rating", "utterance_id"], kind="stable")
    grouped = first.groupby(["user_id", "conversation_id"], sort=True)
    best, worst = grouped.tail(1), grouped.head(1)
    pairs = best.merge(worst, on=["user_id", "conversation_id"], suffixes=("", "_worst"))
    margin = pairs.rating - pairs.rating_worst
    pairs = pairs.assign(weight=(margin > tie).map({True: 1.0, False: 0.5}))
    pairs = pairs[(margin > tie) | ((margin > 0) & (ties == "half"))]
    pairs = pairs.merge(splits[["conversation_id", "split"]], on="conversation_id")
    table = pd.DataFrame(
        {
            "pair_id": "pair-" + pairs.conversation_id,
            "user_id": pairs.user_id,
            "conversation_id": pairs.conversation_id,
            "prompt": pairs.prompt,
            "preferred": pairs.response,
            "dispreferred": pairs.response_worst,
            "weight": pairs.weight,
            "split": pairs.split,
        }
    )
    return table.reset_index(drop=True)


def pair_residuals(
    frozen: FrozenModel, pairs: pd.DataFrame, *, layers: list[int], style: str, pool: str = "answer_mean"
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """Pooled residuals of both sides of each pair, recorded in one batched pass.

    Args:
        frozen: the model.
        pairs: the pairs table; both sides share the prompt's token ids.
        layers: 0-based decoder blocks.
        style: "chat" or "continuation", as for generation.
        pool: see `record_residual`.

    Returns:
        Preferred and dispreferred residuals, by layer `(n_pairs, d_model)` each.
    """
    prompts = [prompt_ids(frozen, prompt, style=style) for prompt in pairs.prompt]
    sides = [*pairs.preferred, *pairs.dispreferred]
    contexts = [p + answer_ids(frozen, side, style=style) for p, side in zip(prompts * 2, sides, strict=True)]
    lengths = [len(p) for p in prompts * 2]
    recorded = record_residual(frozen, contexts, layers=layers, prompt_lengths=lengths, pool=pool)
    n = len(pairs)
    return {la: h[:n] for la, h in recorded.items()}, {la: h[n:] for la, h in recorded.items()}


REQUIRED = ("prompt", "preferred", "dispreferred")
OPTIONAL = ("user_id", "conversation_id")
TRANSCRIPTS = ("chosen", "rejected")
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def read_pairs(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    bad_rows: str = "refuse",
    held_out_share: float = 0.5,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Contrast pairs of a file, with whole conversations held out.

    Either of two kinds, told apart by their columns. A table: `prompt`, `preferred`, `dispreferred`, and where known
    `user_id` and `conversation_id`. Or transcripts: `chosen` and `rejected`, each a whole conversation
    "\\n\\nHuman: ...\\n\\nAssistant: ..." of which only the last answer differs.

    A transcript of one turn gives the human's words as prompt. Of several turns, the earlier ones stand in the prompt
    as text with their labels ("Human: ...\\n\\nAssistant: ...\\n\\nHuman: ..."), so that a chat model reads them within
    one message. Transcripts that open with the same words are one conversation, as the same one may stand in the file
    at several lengths; a table without `conversation_id` has one conversation a prompt.

    Args:
        path: a `.jsonl`, `.jsonl.gz`, `.csv` or `.parquet` file.
        columns: the file's name of a column, by ours, where it has another.
        bad_rows: "refuse" the file at its first bad row, or "drop" such rows and list them.
        held_out_share: share of the conversations that are held out (split "test"; the others are "train").
        seed: of the draw of held-out conversations; the order of rows does not matter.

    Returns:
        The pairs table, every weight 1; and the dropped rows with `row` (from 1), `column`, `reason`. Where a file
        names no user, each conversation counts as one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: columns are missing; a bad row (named with its column: a text that is missing or empty, two equal
            answers, a transcript without a last answer, two transcripts with different histories); no row is left;
            held_out_share leaves a side without conversations.

    Source: the transcripts' format is that of Bai et al. (arXiv 2204.05862).
    """
    if bad_rows not in ("refuse", "drop"):
        raise ValueError(f"bad_rows {bad_rows!r} is neither 'refuse' nor 'drop'")
    path = Path(path)
    rows = read_rows(path).rename(columns={theirs: ours for ours, theirs in (columns or {}).items()})
    kept, dropped = _sorted_out(rows, path.name)
    if len(dropped) and bad_rows == "refuse":
        bad = dropped.iloc[0]
        raise ValueError(f"{path.name}, row {bad['row']}, column {bad['column']}: {bad['reason']}")
    if kept.empty:
        raise ValueError(f"{path.name}: none of its {len(rows)} rows is a pair")
    split = _held_out(kept["conversation_id"], held_out_share, seed)
    return check_table("pairs", kept.assign(weight=1.0, split=split)), dropped


def _sorted_out(rows: pd.DataFrame, file: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows as pairs, and those that are none."""
    read = _own_row if {*REQUIRED} <= {*rows.columns} else _transcript_row
    if read is _transcript_row and not {*TRANSCRIPTS} <= {*rows.columns}:
        raise ValueError(
            f"{file}: needs columns {', '.join(REQUIRED)}, or {' and '.join(TRANSCRIPTS)}; "
            f"it has {', '.join(map(str, rows.columns))}"
        )
    kept, dropped = [], []
    for number, row in enumerate(rows.to_dict("records"), start=1):
        try:
            kept.append({"pair_id": f"pair-{number}", **_checked(read(row))})
        except _BadRow as bad:
            dropped.append({"row": number, "column": bad.column, "reason": bad.reason})
    return pd.DataFrame(kept), pd.DataFrame(dropped, columns=pd.Index(["row", "column", "reason"]))


class _BadRow(Exception):
    def __init__(self, column: str, reason: str) -> None:
        self.column, self.reason = column, reason


def _own_row(row: Mapping) -> dict[str, str]:
    for column in REQUIRED:
        if not isinstance(row[column], str) or not row[column].strip():
            raise _BadRow(column, f"must be text that is not empty, not {row[column]!r}")
    for column in OPTIONAL:
        if column in row and (pd.isna(row[column]) or not str(row[column]).strip()):
            raise _BadRow(column, "is empty; name it in every row or leave the column out")
    conversation = str(row.get("conversation_id", _named("prompt", row["prompt"])))
    ids = {"user_id": str(row.get("user_id", conversation)), "conversation_id": conversation}
    return ids | {column: row[column] for column in REQUIRED}


def _transcript_row(row: Mapping) -> dict[str, str]:
    histories, answers = [], []
    for column in TRANSCRIPTS:
        text = row[column]
        if not isinstance(text, str) or not text.startswith(HUMAN) or ASSISTANT not in text:
            raise _BadRow(column, f"must open with {HUMAN!r} and have an {ASSISTANT!r}")
        history, answer = text.rsplit(ASSISTANT, 1)
        if HUMAN in answer or not answer.strip():
            raise _BadRow(column, "its last answer is empty, or the human speaks last")
        histories.append(history)
        answers.append(answer.strip())
    if histories[0] != histories[1]:
        raise _BadRow("rejected", "the turns before its last answer are not those of column chosen")
    opening = histories[0].removeprefix(HUMAN).split(ASSISTANT)[0].split(HUMAN)[0].strip()
    single = histories[0].removeprefix(HUMAN)
    several = HUMAN in single or ASSISTANT in single
    prompt = (histories[0] if several else single).strip()
    if not prompt:
        raise _BadRow("chosen", "the human says nothing")
    conversation = _named("opening", opening)
    texts = dict(zip(REQUIRED, (prompt, *answers), strict=True))
    return {"user_id": conversation, "conversation_id": conversation, **texts}


def _checked(pair: dict[str, str]) -> dict[str, str]:
    if pair["preferred"] == pair["dispreferred"]:
        raise _BadRow("dispreferred", "is the same answer as the preferred one")
    return pair


def _named(what: str, text: str) -> str:
    """Name of a conversation that a file does not name, from the text that makes it one."""
    return f"{what}-{sha256(text.encode()).hexdigest()[:12]}"


def _held_out(conversations: pd.Series, share: float, seed: int) -> pd.Series:
    """ "test" for a share of the conversations drawn by their hash, "train" for the others."""
    order = hash_order(conversations, "pairs", seed)
    n = round(share * len(order))
    if not 0 < n < len(order):
        raise ValueError(f"held_out_share {share} of {len(order)} conversations leaves one side empty")
    split = conversations.isin(order[:n]).map({True: "test", False: "train"})
    sides = [set(conversations[split == name]) for name in ("train", "test")]
    assert not sides[0] & sides[1], "a conversation lies on both sides"
    return split
