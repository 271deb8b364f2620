"""Which answers of PRISM were flagged as not English, where its metadata are at hand."""

import json
from pathlib import Path


def not_english(metadata: Path) -> set[str]:
    """Ids of the responses whose detected language is not English.

    The file is large, so it is read line by line.

    Args:
        metadata: PRISM's metadata.jsonl, with column_id, utterance_id and en_flag, or else language_flag.

    Raises:
        ValueError: a line is no JSON object, or a response has neither flag, named by file and row.

    Source: PRISM codebook; the flags come from langid, which errs on short answers.
    """
    flagged = set()
    with metadata.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if row["column_id"] == "model_response" and not _english(row):
                    flagged.add(str(row["utterance_id"]))
            except (json.JSONDecodeError, KeyError, TypeError) as failure:
                message = f"{metadata.name}, row {number}: not PRISM's metadata ({failure})"
                raise ValueError(message) from None
    return flagged


def _english(row: dict) -> bool:
    if row.get("en_flag") is not None:
        return str(row["en_flag"]).strip().lower() in ("true", "1", "1.0")
    return row["language_flag"] == "en"
