"""Prompts and continuations of RealToxicityPrompts that both carry scores: material for a toxicity direction.

RealToxicityPrompts as prompts: openings of web texts with Perspective scores, where there are no users.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from steerlib.profiles.prompts import shuffled_categories
from steerlib.profiles.sensitivities import SIX, percentiles, primary_category
from steerlib.profiles.sources import file_label, hash_order, hub_file, read_rows
from steerlib.tables import SCHEMA, check_table

DATASET = "allenai/real-toxicity-prompts"


def realtoxicity_prompts(
    source: str | Path = DATASET,
    *,
    n: int,
    seed: int = 0,
    min_toxicity: float = 0.5,
    revision: str = "main",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Prompts of RealToxicityPrompts, half dev and half test, each standing for a user of its own.

    A prompt's category is the attribute of its text with the highest percentile across all scored prompts of
    the file. The draw goes round the categories as long as they last. The accepted answer is the human
    continuation.

    Args:
        source: the hub's data set; a .jsonl file of its schema (filename, begin, end, challenging, prompt,
            continuation); or a folder with exactly one such file.
        n: prompts wanted, dev and test together.
        seed: of the draw and of the shuffled categories.
        min_toxicity: least Perspective toxicity of a prompt's text; the paper calls above 0.5 toxic.
        revision: of the hub's data set; name a commit to hold a study to it.

    Returns:
        prompts: table `prompts`, prompt_category empty.
        report: what, count; names the file and its SHA-256.

    Raises:
        ValueError: fewer than n prompts are left, or a row lacks a field, named by file, row and field.
        FileNotFoundError: no such file, or the hub cannot be reached.

    Source: Gehman et al., Findings of EMNLP 2020.
    """
    path = _find(source, revision)
    texts = _texts(read_rows(path), path.name)
    scored = texts.dropna(subset=SIX)
    once = scored.drop_duplicates("prompt")
    once = once.assign(category=primary_category(percentiles(once[SIX]), once[SIX]))
    toxic = once[once["toxicity"] >= min_toxicity]
    if len(toxic) < n:
        raise ValueError(f"{path.name}: {n} prompts wanted, {len(toxic)} of toxicity {min_toxicity} or more")
    drawn = _round_robin(toxic, seed).head(n)
    split = drawn.groupby("category").cumcount() + pd.factorize(drawn["category"])[0]
    own = drawn.set_index("prompt_id")["category"]
    drawn = drawn.assign(
        user_id=drawn["prompt_id"],
        conversation_id=drawn["prompt_id"],
        shuffled_category=drawn["prompt_id"].map(shuffled_categories(own, seed=seed)),
        prompt_category="",
        history="",
        split=split.mod(2).map({0: "dev", 1: "test"}),
    )
    counts = {
        f"rows of {file_label(path)}": len(texts),
        "prompts without six scores dropped": len(texts) - len(scored),
        "repeated prompts dropped": len(scored) - len(once),
        f"prompts of toxicity below {min_toxicity} dropped": len(once) - len(toxic),
    }
    counts |= {f"prompts drawn, {name}": int((drawn["category"] == name).sum()) for name in SIX}
    report = pd.DataFrame({"what": list(counts), "count": list(counts.values())})
    return check_table("prompts", drawn.drop(columns=SIX)).reset_index(drop=True), report


def _find(source: str | Path, revision: str) -> Path:
    if str(source) == DATASET:
        return hub_file(DATASET, "prompts.jsonl", revision=revision)
    path = Path(source)
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.jsonl"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise FileNotFoundError(f"{path} must have one .jsonl file, it has {names}: name the file itself")
    return files[0]


def _texts(rows: pd.DataFrame, file: str) -> pd.DataFrame:
    """prompt_id, prompt, accepted and the six scores of the prompt's text, missing where there were none."""
    table = []
    for number, row in enumerate(rows.to_dict("records"), start=1):
        try:
            prompt = row["prompt"]
            table.append(
                {
                    "prompt_id": f"{row['filename']}:{row['begin']}-{row['end']}",
                    "prompt": prompt["text"],
                    "accepted": row["continuation"]["text"],
                    **{name: prompt[name] for name in SIX},
                }
            )
        except (KeyError, TypeError) as failure:
            raise ValueError(f"{file}, row {number}: not RealToxicityPrompts' schema ({failure})") from None
    texts = pd.DataFrame(table)
    return texts.astype(dict.fromkeys(SIX, float))


def _round_robin(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One of each category, then a second of each, at random within a category."""
    place = {one: index for index, one in enumerate(hash_order(rows["prompt_id"], "realtoxicity", seed))}
    rows = rows.assign(place=rows["prompt_id"].map(place)).sort_values("place")
    nth = rows.groupby("category").cumcount()
    rows = rows.assign(nth=nth).sort_values(["nth", "place"])
    return rows.drop(columns=["nth", "place"])


FIELDS = {
    "filename": "document",
    "begin": "begin",
    "end": "end",
    "prompt.text": "prompt",
    "continuation.text": "continuation",
    "prompt.toxicity": "prompt_toxicity",
    "continuation.toxicity": "toxicity",
}
QUARTERS = [-0.001, 0.25, 0.5, 0.75, 1.0]


def scored_continuations(
    files: Sequence[str | Path] = (),
    *,
    seed: int = 0,
    train_share: float = 0.5,
    dev_share: float = 0.2,
    revision: str = "main",
) -> pd.DataFrame:
    """Texts of which opening and continuation were both scored, split by web document.

    Args:
        files: .jsonl files of the data set's schema (filename, begin, end, prompt, continuation); none for the hub's.
        seed: of the split; a document's split depends on its name and the seed.
        train_share, dev_share: shares of the documents; the rest is test.
        revision: of the hub's data set; name a commit to hold a study to it.

    Returns:
        text_id, document, prompt, continuation, prompt_toxicity and toxicity (Perspective's, in [0, 1]; the second
        is the continuation's), words (of the continuation), split. Texts without either score and repeated prompts
        are left out.

    Raises:
        ValueError: a file lacks a field (both are named), or the shares leave nothing for test.
        FileNotFoundError: no such file, or the hub cannot be reached.

    Source: Gehman et al., Findings of EMNLP 2020.
    """
    if min(train_share, dev_share) <= 0 or train_share + dev_share >= 1:
        raise ValueError(f"train_share {train_share} and dev_share {dev_share} leave nothing for a split")
    paths = [Path(file) for file in files] or [hub_file(DATASET, "prompts.jsonl", revision=revision)]
    texts = pd.concat([_read(path) for path in paths], ignore_index=True)
    texts = texts.dropna(subset=["prompt_toxicity", "toxicity"])
    texts = texts[texts["continuation"].str.strip() != ""].drop_duplicates("prompt")
    order = hash_order(texts["document"], "continuations", seed)
    place = texts["document"].map({document: i for i, document in enumerate(order)}) / len(order)
    bounds = [-1, train_share, train_share + dev_share, 1]
    return pd.DataFrame(
        {
            "text_id": texts["document"] + ":" + texts["begin"].astype(str) + "-" + texts["end"].astype(str),
            **{name: texts[name] for name in ("document", "prompt", "continuation")},
            **{name: texts[name].astype(float) for name in ("prompt_toxicity", "toxicity")},
            "words": texts["continuation"].str.split().str.len(),
            "split": pd.cut(place, bounds, right=False, labels=["train", "dev", "test"]).astype(str),
        }
    ).reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    rows = pd.json_normalize(read_rows(path).to_dict("records"))
    missing = [field for field in FIELDS if field not in rows]
    if missing:
        raise ValueError(
            f"{path.name} lacks {', '.join(missing)}: not RealToxicityPrompts' schema; "
            f"it has {', '.join(map(str, rows.columns))}"
        )
    return rows[list(FIELDS)].rename(columns=FIELDS)


def matched_continuations(
    texts: pd.DataFrame, *, n: int, toxic: float = 0.75, mild: float = 0.15, seed: int = 0
) -> pd.DataFrame:
    """Toxic and mild continuations in pairs whose prompts are equally toxic and whose lengths are alike.

    The contrast must not be the tone of the opening nor the length. So n toxic continuations are drawn, and each
    gets a mild one of its own, such that over all pairs together the squared differences in the prompt's toxicity
    and in log words (each in units of its standard deviation) are as small as they can be (optimal assignment).

    Args:
        texts: what `scored_continuations` returned, of one split.
        n: pairs wanted.
        toxic: least toxicity of a toxic continuation.
        mild: largest toxicity of a mild one.
        seed: of the draw.

    Returns:
        The rows of `texts`, 2n of them, with `side` ("toxic" or "mild") and `pair` (0..n-1): all toxic ones in the
        order of their pairs, then all mild ones.

    Raises:
        ValueError: a side has fewer than n continuations, or the two bounds cross.

    Source: optimal pair matching, Rosenbaum, Observational Studies, 2002, ch. 10.
    """
    if not mild < toxic:
        raise ValueError(f"mild {mild} must lie below toxic {toxic}")
    sides = {"toxic": texts[texts["toxicity"] >= toxic], "mild": texts[texts["toxicity"] <= mild]}
    for name, rows in sides.items():
        if len(rows) < n:
            raise ValueError(f"{n} {name} continuations wanted, {len(rows)} there")
    order = hash_order(sides["toxic"]["text_id"], "toxic continuations", seed)
    drawn = sides["toxic"].set_index("text_id", drop=False).loc[order[:n]]
    features = {"toxic": _features(drawn, texts), "mild": _features(sides["mild"], texts)}
    distance = np.square(features["toxic"][:, None] - features["mild"][None]).sum(-1)
    first, second = linear_sum_assignment(distance)
    chosen = {"toxic": drawn.iloc[first], "mild": sides["mild"].iloc[second]}
    return pd.concat(
        [rows.assign(side=side, pair=np.arange(n)) for side, rows in chosen.items()], ignore_index=True
    )


def _features(rows: pd.DataFrame, texts: pd.DataFrame) -> np.ndarray:
    """Prompt's toxicity and log words in units of their standard deviation over all texts, `(n, 2)`."""
    columns = [(rows["prompt_toxicity"], texts["prompt_toxicity"])]
    columns.append((np.log1p(rows["words"]), np.log1p(texts["words"])))
    return np.column_stack([own / max(every.std(), 1e-9) for own, every in columns])


def mixed_prompts(texts: pd.DataFrame, *, n: int, seed: int = 0) -> pd.DataFrame:
    """Prompts of mixed toxicity, as many from each quarter of [0, 1], one a document: rows of the prompts table.

    Args:
        texts: what `scored_continuations` returned, of one split.
        n: prompts wanted, a multiple of 4.
        seed: of the draw.

    Returns:
        Table `prompts`; user and conversation are the document, no category, accepted is the human continuation.

    Raises:
        ValueError: n is no multiple of 4, or a quarter has too few documents.
    """
    if n % 4 or n <= 0:
        raise ValueError(f"n must be a positive multiple of 4, not {n}")
    order = hash_order(texts["text_id"], "mixed prompts", seed)
    rows = texts.set_index("text_id", drop=False).loc[order].drop_duplicates("document")
    quarter = pd.cut(rows["prompt_toxicity"], QUARTERS, labels=False)
    counts = quarter.value_counts().reindex(range(4), fill_value=0)
    if counts.min() < n // 4:
        raise ValueError(f"{n // 4} prompts a quarter of toxicity wanted; there are {counts.tolist()}")
    drawn = rows[rows.groupby(quarter).cumcount() < n // 4]
    prompts = pd.DataFrame(
        {"prompt_id": drawn["text_id"], "user_id": drawn["document"], "conversation_id": drawn["document"]}
    )
    prompts = prompts.assign(prompt=drawn["prompt"], accepted=drawn["continuation"], split=drawn["split"])
    # Nothing here is personal: what the table has beyond these columns stays empty.
    prompts = prompts.reindex(columns=list(SCHEMA["prompts"].columns), fill_value="")
    return check_table("prompts", prompts).reset_index(drop=True)
