"""Contrast pairs, an answer somebody preferred and one they did not to the same prompt, and their residuals."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import pandas as pd
from torch import Tensor

from steerlib.models import FrozenModel
from steerlib.profiles.sources import as_id, as_text, hash_order, read_rows
from steerlib.reading import answer_ids, prompt_ids, text_ids
from steerlib.residual import record_residual
from steerlib.tables import SCHEMA, check_table

REQUIRED = ("prompt", "preferred", "dispreferred")
OPTIONAL = ("user_id", "conversation_id")
TRANSCRIPTS = ("chosen", "rejected")
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def pairs_from_ratings(ratings: pd.DataFrame, splits: pd.DataFrame, *, tie: int = 5) -> pd.DataFrame:
    """One pair per conversation: the highest-rated answer of the first turn and the lowest-rated one.

    Only turn 0 is used, where the answers come from different models. Ratings that differ by `tie` points or fewer are
    a tie (PRISM's own margin is 5) and make no pair. A ValueError says that no pair is left in train, or
    none held out.
    """
    first = ratings[ratings.turn == 0].sort_values(["rating", "utterance_id"], kind="stable")
    grouped = first.groupby(["user_id", "conversation_id"], sort=True)
    best, worst = grouped.tail(1), grouped.head(1)
    pairs = best.merge(worst, on=["user_id", "conversation_id"], suffixes=("", "_worst"))
    pairs = pairs[pairs.rating - pairs.rating_worst > tie].assign(pair_id="pair-" + pairs.conversation_id)
    pairs = pairs.rename(columns={"response": "preferred", "response_worst": "dispreferred"})
    pairs = pairs.merge(splits[["conversation_id", "split"]], on="conversation_id")
    train = int((pairs["split"] == "train").sum())
    if train in (0, len(pairs)):
        raise ValueError(
            f"{train} train and {len(pairs) - train} held-out pairs of two answers to a prompt whose ratings differ by"
            f" more than tie {tie}: lower it or min_ratings, name a pairs_file, or go without notebook 02 and caa"
        )
    return pairs[list(SCHEMA["pairs"].columns)]


def read_pairs(
    path: str | Path, *, bad_rows: str = "refuse", seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Contrast pairs of a file, half of the conversations held out (split "test"; the others are "train").

    The file is one of two kinds. A table: `prompt`, `preferred`, `dispreferred`, and where known `user_id` and
    `conversation_id`. Or transcripts: `chosen` and `rejected`, each a whole conversation
    "\\n\\nHuman: ...\\n\\nAssistant: ..." of which only the last answer differs. Earlier turns of a transcript stand in
    the prompt as text with their labels, so that a chat model reads them within one message. Transcripts that open
    with the same words are one conversation, as HH-RLHF holds the same one at several lengths; a table without
    `conversation_id` has one conversation per prompt, and one without `user_id` one user per conversation.

    `bad_rows` says whether to "refuse" the file at its first bad row, or to "drop" such rows and list them. The order
    of rows does not matter for the draw of held-out conversations.

    Returns the pairs table; and the dropped rows with `row` (from 1), `column`, `reason`. A ValueError names columns
    that are missing or a bad row, or says that there are fewer than two conversations.

    Source: the transcripts' format is that of Bai et al. (arXiv 2204.05862).
    """
    path = Path(path)
    rows = read_rows(path)
    of_row = _own_row if {*REQUIRED} <= {*rows.columns} else _transcript_row
    if of_row is _transcript_row and not {*TRANSCRIPTS} <= {*rows.columns}:
        raise ValueError(
            f"{path.name}: needs columns {', '.join(REQUIRED)}, or {' and '.join(TRANSCRIPTS)}; "
            f"it has {', '.join(map(str, rows.columns))}"
        )
    found, dropped = [], []
    for number, row in enumerate(rows.to_dict("records"), start=1):
        try:
            pair = of_row(row)
            if pair["preferred"] == pair["dispreferred"]:
                raise _BadRow("dispreferred", "is the same answer as the preferred one")
            found.append({"pair_id": f"pair-{number}", **pair})
        except _BadRow as bad:
            column, reason = bad.args
            if bad_rows == "refuse":
                raise ValueError(f"{path.name}, row {number}, column {column}: {reason}") from None
            dropped.append((number, column, reason))
    conversations = hash_order([pair["conversation_id"] for pair in found], "pairs", seed)
    if len(conversations) < 2:
        raise ValueError(f"{path.name}: {len(conversations)} conversations; one must be left to hold out")
    held_out = {*conversations[: round(len(conversations) / 2)]}
    pairs = pd.DataFrame(found)
    pairs["split"] = pairs.conversation_id.isin(held_out).map({True: "test", False: "train"})
    return check_table("pairs", pairs), pd.DataFrame(dropped, columns=pd.Index(["row", "column", "reason"]))


class _BadRow(ValueError):
    """`args` are the column and the reason."""


def _own_row(row: Mapping) -> dict[str, str]:
    found = {}
    for column in (*REQUIRED, *(column for column in OPTIONAL if column in row)):
        value = as_text(row[column]) if column in REQUIRED else as_id(row[column])
        if value is None:
            raise _BadRow(column, f"must be text that is not empty, not {str(row[column])[:40]!r}")
        found[column] = value
    conversation = found.get("conversation_id", _name_of(found["prompt"]))
    return {"user_id": conversation, "conversation_id": conversation} | found


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
    words = histories[0].removeprefix(HUMAN)
    several = HUMAN in words or ASSISTANT in words
    prompt = (histories[0] if several else words).strip()
    if not prompt:
        raise _BadRow("chosen", "the human says nothing")
    conversation = _name_of(words.split(ASSISTANT)[0].split(HUMAN)[0].strip())
    texts = dict(zip(REQUIRED, (prompt, *answers), strict=True))
    return {"user_id": conversation, "conversation_id": conversation, **texts}


def _name_of(opening: str) -> str:
    """Name of a conversation that a file does not name, from the words that it opens with."""
    return f"opening-{sha256(opening.encode()).hexdigest()[:12]}"


def continuation_residuals(
    frozen: FrozenModel,
    prompts: Iterable[str],
    continuations: Iterable[str],
    *,
    layers: Sequence[int],
    style: str = "continuation",
    pool: str = "answer_mean",
) -> dict[int, Tensor]:
    """Pooled residuals of texts, each read after its prompt; see `record_residual`.

    After an empty prompt a text is read from its own second token on: the first token of a sequence is an attention
    sink, whose residual is far longer than all others. A ValueError says that the numbers of texts differ, or refuses
    the pool "prompt_last": the two answers of a pair share their prompt, and all differences would be 0.
    """
    if pool == "prompt_last":
        raise ValueError("pool 'prompt_last' reads nothing of an answer: name answer_mean or last")
    contexts, lengths = [], []
    for prompt, text in zip(prompts, continuations, strict=True):
        if prompt or style != "continuation":
            opening = prompt_ids(frozen, prompt, style=style)
            contexts.append(opening + answer_ids(frozen, text, style=style))
            lengths.append(len(opening))
        else:
            contexts.append(text_ids(frozen, text))
            lengths.append(1)
    return record_residual(frozen, contexts, layers=layers, prompt_lengths=lengths, pool=pool)


def pair_residuals(
    frozen: FrozenModel, pairs: pd.DataFrame, *, layers: Sequence[int], style: str, pool: str = "answer_mean"
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Pooled residuals of the preferred and of the dispreferred answers of a pairs table, see `record_residual`."""
    prompts, texts = [*pairs.prompt] * 2, [*pairs.preferred, *pairs.dispreferred]
    recorded = continuation_residuals(frozen, prompts, texts, layers=layers, style=style, pool=pool)
    n = len(pairs)
    return {la: h[:n] for la, h in recorded.items()}, {la: h[n:] for la, h in recorded.items()}
