"""What must not enter a profile: dropped and counted; and what a file leaves out: filled."""

from collections.abc import Set

import pandas as pd

from steerlib.tables import ATTRIBUTE_COLUMNS, SCHEMA

EMPTY = "EMPTY STRING"
COLUMNS = [name for name in SCHEMA["ratings"].columns if name not in ATTRIBUTE_COLUMNS]


def blank_to_empty(rows: pd.DataFrame) -> pd.DataFrame:
    """PRISM writes an empty text as "EMPTY STRING"; one of spaces only is as empty."""
    rows = rows.copy()
    for column in rows.columns.intersection(["user_prompt", "model_response"]):
        rows[column] = [
            EMPTY if isinstance(text, str) and not text.strip() else text for text in rows[column]
        ]
    return rows


def filled(table: pd.DataFrame) -> pd.DataFrame:
    """Optional columns that the file does not have, each with its default."""
    table = table.copy()
    if "conversation_id" not in table:
        talk = table.groupby(["user_id", "prompt"], sort=False).ngroup().add(1).astype(str)
        table["conversation_id"] = "conversation" + talk
    if "utterance_id" not in table:
        table["utterance_id"] = [f"row{number}" for number in range(1, len(table) + 1)]
    if "turn" not in table:
        table["turn"] = 0
    if "chosen" not in table:
        best_first = table.sort_values("rating", ascending=False, kind="stable")
        table["chosen"] = ~best_first.duplicated(["conversation_id", "turn"])
    if "prompt_category" not in table:
        table["prompt_category"] = ""
    return table[COLUMNS]


def cleaned(
    table: pd.DataFrame, *, turns: str, language: str, min_ratings: int, foreign: Set[str] | None
) -> tuple[pd.DataFrame, dict[str, int | None]]:
    """Without what must not enter a profile; every drop and every oddity is counted.

    Args:
        table: ratings with all columns but the six attributes.
        turns: "first" or "all".
        language: "all" or "english".
        min_ratings: users with fewer are dropped.
        foreign: ids of responses flagged as not English; None where no flags are at hand.

    Returns:
        The ratings kept; what -> count, None where it is not known.

    Raises:
        ValueError: `language="english"` without flags.
    """
    counts: dict[str, int | None] = {}
    empty = table["response"].eq(EMPTY) | table["prompt"].eq(EMPTY)
    counts[f'empty texts ("{EMPTY}") dropped'] = int(empty.sum())
    table = _from_turn_0(table[~empty], counts)
    table = _in_english(table, counts, language, foreign)
    table = _one_chosen(table, counts)
    later = table["turn"] > 0
    counts["responses of later turns" + (" dropped" if turns == "first" else " kept")] = int(later.sum())
    table = table[~later] if turns == "first" else table
    turn = ["conversation_id", "turn"]
    top = table["rating"].eq(table.groupby(turn)["rating"].transform("max"))
    counts["turns with a tie for the highest rating"] = int((table[top].groupby(turn).size() > 1).sum())
    counts["turns without a chosen response"] = int((~table.groupby(turn)["chosen"].any().to_numpy()).sum())
    few = table.groupby("user_id")["rating"].transform("size") < min_ratings
    counts[f"users with fewer than {min_ratings} ratings dropped"] = table.loc[few, "user_id"].nunique()
    counts["ratings of those users dropped"] = int(few.sum())
    return table[~few].reset_index(drop=True), counts


def _from_turn_0(table: pd.DataFrame, counts: dict[str, int | None]) -> pd.DataFrame:
    """PRISM counts turns from 0, its paper from 1; a file that has no turn 0 follows the paper."""
    from_1 = bool(table["turn"].min() == 1)
    counts["conversations counted from turn 1, moved to 0"] = table["conversation_id"].nunique() * int(from_1)
    return table.assign(turn=table["turn"] - 1) if from_1 else table


def _in_english(
    table: pd.DataFrame, counts: dict[str, int | None], language: str, foreign: Set[str] | None
) -> pd.DataFrame:
    if foreign is None:
        if language == "english":
            raise ValueError(
                "language='english' needs PRISM's metadata.jsonl, and none is beside the ratings"
            )
        counts["responses flagged as not English: not known, no metadata.jsonl"] = None
        return table
    flagged = table["utterance_id"].isin(list(foreign))
    done = "dropped" if language == "english" else "kept"
    counts[f"responses flagged as not English {done}"] = int(flagged.sum())
    return table[~flagged] if language == "english" else table


def _one_chosen(table: pd.DataFrame, counts: dict[str, int | None]) -> pd.DataFrame:
    chosen = table[table["chosen"]]
    again = chosen.duplicated(["conversation_id", "turn"]).reindex(table.index, fill_value=False)
    counts["further chosen responses of a turn, first kept"] = int(again.sum())
    return table.assign(chosen=table["chosen"] & ~again)
