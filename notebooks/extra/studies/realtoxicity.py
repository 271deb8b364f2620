"""RealToxicityPrompts: openings as prompts, and scored continuations in matched pairs for a toxicity direction.

Source: Gehman et al., Findings of EMNLP 2020.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from steerlib.evaluation import cluster_interval, response_slopes
from steerlib.evaluation.intervals import Interval, cluster_sums, halves
from steerlib.profiles.prompts import shuffled_users
from steerlib.profiles.sensitivities import percentiles, primary_category
from steerlib.profiles.sources import (
    as_text,
    file_label,
    hash_order,
    hub_file,
    in_hash_order,
    read_rows,
    round_robin,
)
from steerlib.tables import ATTRIBUTE_COLUMNS, SCHEMA, check_table

DATASET = "allenai/real-toxicity-prompts"
SIX = list(ATTRIBUTE_COLUMNS)
FIELDS = {
    "filename": "document",
    "begin": "begin",
    "end": "end",
    "prompt.text": "prompt",
    "continuation.text": "continuation",
    "continuation.toxicity": "toxicity",
    **{f"prompt.{name}": f"prompt_{name}" for name in SIX},
}


def read_texts(files: Sequence[str | Path] = ()) -> tuple[pd.DataFrame, int]:
    """Openings and continuations with their Perspective scores, one row a text, of .jsonl files or the hub's.

    Returns:
        text_id, document, prompt, continuation, toxicity (of the continuation), prompt_toxicity and the five other
        attributes of the prompt; missing where Perspective gave no score. And the number of texts dropped because
        opening or continuation is empty.

    Raises:
        ValueError: a file lacks a field, both named.
        FileNotFoundError: no such file, or the hub cannot be reached.
    """
    tables = []
    for path in [Path(file) for file in files] or [hub_file(DATASET, "prompts.jsonl")]:
        rows = pd.json_normalize(read_rows(path).to_dict("records"))
        missing = [field for field in FIELDS if field not in rows and not field.startswith("prompt.")]
        missing += [field for field in ("prompt.text", "prompt.toxicity") if field not in rows]
        if missing:
            raise ValueError(f"{path.name} lacks {', '.join(missing)}; it has {', '.join(map(str, rows))}")
        tables.append(rows.reindex(columns=list(FIELDS)).rename(columns=FIELDS))
    texts = pd.concat(tables, ignore_index=True)
    scores = [name for name in texts if name.endswith("toxicity") or name.startswith("prompt_")]
    texts[scores] = texts[scores].astype(float)
    ids = texts["document"] + ":" + texts["begin"].astype(str) + "-" + texts["end"].astype(str)
    filled = texts[["prompt", "continuation"]].map(lambda text: as_text(text) is not None).all(axis=1)
    return texts.assign(text_id=ids).drop(columns=["begin", "end"])[filled], int((~filled).sum())


def realtoxicity_prompts(
    file: str | Path | None = None, *, n: int, seed: int = 0, min_toxicity: float = 0.5
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Openings as prompts, half dev and half test, each standing for a user of its own.

    A prompt's category is the attribute of its text with the highest percentile across all scored openings of the
    file (None for the hub's). The draw takes one of each category, then a second of each. The accepted answer is the
    human continuation. A ValueError where fewer than n prompts are left.

    Returns:
        prompts: table `prompts`, prompt_category empty.
        report: what, count; names the file and its SHA-256.
    """
    path = Path(file) if file else hub_file(DATASET, "prompts.jsonl")
    texts, empty = read_texts([path])
    six = texts[[f"prompt_{name}" for name in SIX]].set_axis(SIX, axis=1)
    scored = texts.assign(**six)[six.notna().all(axis=1)]
    once = scored.drop_duplicates("prompt")
    once = once.assign(category=primary_category(percentiles(once[SIX]), once[SIX]))
    toxic = once[once["prompt_toxicity"] >= min_toxicity]
    if len(toxic) < n:
        raise ValueError(f"{path.name}: {n} prompts wanted, {len(toxic)} of toxicity {min_toxicity} or more")
    drawn = round_robin(in_hash_order(toxic, "text_id", "realtoxicity", seed), "category").head(n)
    half = (drawn.groupby("category").cumcount() + pd.factorize(drawn["category"])[0]) % 2
    category = drawn.set_index("text_id")["category"]
    prompts = drawn.rename(columns={"text_id": "prompt_id", "continuation": "accepted"}).assign(
        user_id=drawn["text_id"],
        conversation_id=drawn["text_id"],
        shuffled_category=drawn["text_id"].map(shuffled_users(category, seed=seed)).map(category),
        prompt_category="",
        history="",
        split=half.map({0: "dev", 1: "test"}),
    )
    counts = {
        f"rows of {file_label(path)}": len(texts) + empty,
        "empty openings or continuations dropped": empty,
        "prompts without six scores dropped": len(texts) - len(scored),
        "repeated prompts dropped": len(scored) - len(once),
        f"prompts of toxicity below {min_toxicity} dropped": len(once) - len(toxic),
    }
    counts |= {f"prompts drawn, {name}": int((drawn["category"] == name).sum()) for name in SIX}
    report = pd.DataFrame({"what": list(counts), "count": list(counts.values())})
    return check_table("prompts", prompts[list(SCHEMA["prompts"].columns)]).reset_index(drop=True), report


def scored_continuations(files: Sequence[str | Path] = (), *, seed: int = 0) -> pd.DataFrame:
    """Texts of which opening and continuation were both scored; half of the web documents train, a fifth dev.

    text_id, document, prompt, continuation, prompt_toxicity and toxicity (Perspective's, in [0, 1]; the second is the
    continuation's), words (of the continuation), split. Repeated prompts are left out.
    """
    texts, _ = read_texts(files)
    texts = texts.dropna(subset=["prompt_toxicity", "toxicity"]).drop_duplicates("prompt")
    order = hash_order(texts["document"], "continuations", seed)
    place = texts["document"].map({document: i for i, document in enumerate(order)}) / len(order)
    split = pd.cut(place, [-1, 0.5, 0.7, 1], right=False, labels=["train", "dev", "test"]).astype(str)
    columns = ["text_id", "document", "prompt", "continuation", "prompt_toxicity", "toxicity"]
    words = texts["continuation"].str.split().str.len()
    return texts[columns].assign(words=words, split=split).reset_index(drop=True)


def matched_continuations(
    texts: pd.DataFrame, *, n: int, toxic: float = 0.75, mild: float = 0.15, seed: int = 0
) -> pd.DataFrame:
    """Toxic and mild continuations in pairs whose prompts are equally toxic and whose lengths are alike.

    The contrast must not be the tone of the opening nor the length. So n toxic continuations are drawn, and each
    gets a mild one of its own, such that over all pairs together the squared differences in the prompt's toxicity
    and in log words (each in units of its standard deviation) are as small as they can be (optimal assignment).

    Args:
        texts: of `scored_continuations`, of one split.
        toxic, mild: least toxicity of a toxic continuation, largest of a mild one.

    Returns:
        The rows of `texts`, 2n of them, with `side` ("toxic" or "mild") and `pair` (0..n-1): all toxic ones in the
        order of their pairs, then all mild ones. A ValueError where a side has fewer than n.

    Source: optimal pair matching, Rosenbaum, Observational Studies, 2002, ch. 10.
    """
    sides = {"toxic": texts[texts["toxicity"] >= toxic], "mild": texts[texts["toxicity"] <= mild]}
    for name, rows in sides.items():
        if len(rows) < n:
            raise ValueError(f"{n} {name} continuations wanted, {len(rows)} there")
    sides["toxic"] = in_hash_order(sides["toxic"], "text_id", "toxic continuations", seed).head(n)
    columns = {"prompt_toxicity": texts["prompt_toxicity"], "words": np.log1p(texts["words"])}
    features = pd.DataFrame({name: values / max(values.std(), 1e-9) for name, values in columns.items()})
    at = {name: features.loc[rows.index].to_numpy() for name, rows in sides.items()}
    distance = np.square(at["toxic"][:, None] - at["mild"][None]).sum(-1)
    chosen = dict(zip(sides, linear_sum_assignment(distance), strict=True))
    paired = [rows.iloc[chosen[side]].assign(side=side, pair=np.arange(n)) for side, rows in sides.items()]
    return pd.concat(paired, ignore_index=True)


def mixed_prompts(texts: pd.DataFrame, *, n: int, seed: int = 0) -> pd.DataFrame:
    """Openings of mixed toxicity, as many from each quarter of [0, 1], one a document: table `prompts`.

    User and conversation are the document, no category, accepted is the human continuation. A ValueError where n is no
    multiple of 4, or a quarter of `texts` (see `matched_continuations`) has too few documents.
    """
    if n % 4 or n <= 0:
        raise ValueError(f"n must be a positive multiple of 4, not {n}")
    rows = in_hash_order(texts, "text_id", "mixed prompts", seed).drop_duplicates("document")
    quarter = pd.cut(rows["prompt_toxicity"], [-0.001, 0.25, 0.5, 0.75, 1.0], labels=False)
    counts = quarter.value_counts().reindex(range(4), fill_value=0)
    if counts.min() < n // 4:
        raise ValueError(f"{n // 4} prompts a quarter of toxicity wanted; there are {counts.tolist()}")
    drawn = rows[rows.groupby(quarter).cumcount() < n // 4]
    prompts = drawn.rename(columns={"text_id": "prompt_id", "continuation": "accepted"})
    prompts = prompts.assign(user_id=drawn["document"], conversation_id=drawn["document"])
    # Nothing here is personal: the other columns of the table stay empty.
    prompts = prompts.reindex(columns=list(SCHEMA["prompts"].columns), fill_value="")
    return check_table("prompts", prompts).reset_index(drop=True)


class Trend(NamedTuple):
    """Mean of the prompts' slopes on alpha, and the two-sided sign-flip p value of a slope of 0."""

    slope: Interval
    p_value: float


def sign_flip_test(values: ArrayLike, clusters: ArrayLike | None = None) -> float:
    """Two-sided p value of a mean of 0, in (0, 1], the signs of whole clusters being flipped; see `cluster_sums`."""
    sums, _, _ = cluster_sums(values, clusters)
    flipped = np.abs(sums[0] @ (2 * halves(sums.shape[1]) - 1))
    return float((flipped >= flipped[0] * (1 - 1e-12)).mean())


def trend(responses: pd.DataFrame) -> Trend:
    """Mean slope of a measure on alpha (t over prompts) and its sign-flip test; responses as of `response_slopes`.

    Page's test does not serve: arms share their noise, so that neighbouring alphas often give one and the same answer.
    Flipping signs needs less: that reversing the order of alphas would be as likely.
    """
    slopes = response_slopes(responses)
    return Trend(cluster_interval(slopes), sign_flip_test(slopes))
