"""What kind of prompt each is: four categories over which the CAA study shows that steering is selective.

    benign_control      nothing in it is sensitive: steering should leave its answer alone
    context_dependent   whether an answer is acceptable depends on what is meant, by whom, to whom
    safe_sensitive      a sensitive matter that can be answered without harm
    harmful_borderline  asks for harm, or is itself worded as an attack

The study names the four and no rule. The rules below are ours; none reads words, so none favours a vocabulary.

Which answers of PRISM were flagged as not English, where its metadata are at hand.

Prompts to steer on, drawn from the held-out conversations of users by their primary category.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from steerlib.profiles.sources import PROMPT_CATEGORIES, find_file, hash_order, read_rows
from steerlib.tables import ATTRIBUTE_COLUMNS, SCHEMA, check_table


def draw_prompts(
    ratings: pd.DataFrame,
    splits: pd.DataFrame,
    profiles: pd.DataFrame,
    *,
    per_category: int,
    split: str,
    turn: int = 0,
    seed: int = 0,
    short: str = "error",
) -> pd.DataFrame:
    """Prompts of one turn of a held-out split's conversations, equally many for each primary category of their users.

    Within a category the draw goes round the users, one prompt each, then a second each, and takes a text
    that was drawn before only when no other is left.

    Args:
        ratings: user_id, conversation_id, turn, prompt, response, chosen, prompt_category.
        splits: conversation_id, user_id, split.
        profiles: of one estimator, fitted on train conversations.
        per_category: prompts wanted in each of the six categories; the paper has 40.
        split: "dev" or "test".
        turn: 0 for the opening prompt, as in the paper; later ones have the turns before them, with the answers that
            the user chose, as their history.
        seed: of the draw and of the shuffled categories.
        short: "error" refuses a category with too few prompts, "take" takes what there is.

    Returns:
        Table `prompts`: category is c*(u) of the prompt's user; shuffled_category is that of another user and
        differs from it; accepted is the response that the user chose.

    Raises:
        ValueError: too few prompts in a category, a split that is not held out, profiles of two estimators,
            or users who all share one category, so that no shuffled profile exists.

    Source: STEER-Away, 240 prompts = 6 x 40. The paper does not say how they were drawn.
    """
    if split not in ("dev", "test"):
        raise ValueError(f"prompts come from the held-out splits 'dev' and 'test', not from {split!r}")
    if short not in ("error", "take"):
        raise ValueError(f"short must be 'error' or 'take', not {short!r}")
    category = _primary(profiles)
    held_out = splits.loc[splits["split"] == split, "conversation_id"]
    chosen = ratings[ratings["conversation_id"].isin(held_out) & ratings["chosen"]]
    chosen = chosen.drop_duplicates(["conversation_id", "turn"])
    rows, histories = chosen[chosen["turn"] == turn], _histories(chosen, turn)
    rows = rows.rename(columns={"response": "accepted"}).assign(
        prompt_id=rows["conversation_id"],
        history=[histories.get(conversation, "") for conversation in rows["conversation_id"]],
        category=rows["user_id"].map(category),
        shuffled_category=rows["user_id"].map(shuffled_categories(category, seed=seed)),
        split=split,
    )
    drawn = _by_turns(rows.dropna(subset="category"), seed).groupby("category").head(per_category)
    found = drawn["category"].value_counts()
    few = [f"{name} {found.get(name, 0)}" for name in ATTRIBUTE_COLUMNS if found.get(name, 0) < per_category]
    if few and short == "error":
        raise ValueError(f"{split} prompts, wanted {per_category} in each category, found: {', '.join(few)}")
    order = pd.Categorical(drawn["category"], ATTRIBUTE_COLUMNS)
    drawn = drawn.assign(order=order.codes).sort_values("order", kind="stable")
    return check_table("prompts", drawn[list(SCHEMA["prompts"].columns)]).reset_index(drop=True)


def shuffled_categories(category: Mapping[str, str] | pd.Series, *, seed: int = 0) -> dict[str, str]:
    """For each user the category of another user, drawn at random among those whose category differs.

    Args:
        category: user -> primary category.
        seed: of the draw; the order of the users does not matter.

    Raises:
        ValueError: all users have one category.
    """
    own = dict(category.items())
    if len(set(own.values())) == 1:
        raise ValueError(f"every user's category is {next(iter(own.values()))}: no shuffled profile exists")
    order = hash_order(own, "shuffled", seed)
    shuffled = {}
    for place, user in enumerate(order):
        others = order[place + 1 :] + order[:place]
        shuffled[user] = next(own[other] for other in others if own[other] != own[user])
    return shuffled


def _histories(chosen: pd.DataFrame, turn: int) -> dict[str, str]:
    """What was said before a turn, by conversation, as the prompts table keeps it."""
    before = chosen[chosen["turn"] < turn].sort_values("turn")
    turns = {
        conversation: [
            {"role": role, "content": text}
            for said in zip(rows["prompt"], rows["response"], strict=True)
            for role, text in zip(("user", "assistant"), said, strict=True)
        ]
        for conversation, rows in before.groupby("conversation_id")
    }
    return {conversation: json.dumps(said, ensure_ascii=False) for conversation, said in turns.items()}


def _primary(profiles: pd.DataFrame) -> pd.Series:
    estimators = sorted(profiles["estimator"].unique())
    if len(estimators) != 1:
        raise ValueError(f"profiles must be of one estimator, these are of {', '.join(estimators)}")
    return profiles[profiles["primary"]].set_index("user_id")["attribute"]


def _by_turns(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows in the order of the draw: texts not seen before first, users in turn, then at random."""
    place = {one: index for index, one in enumerate(hash_order(rows["prompt_id"], "prompts", seed))}
    rows = rows.assign(place=rows["prompt_id"].map(place)).sort_values("place")
    rows["again"] = rows.duplicated(["category", "prompt"])
    rows["nth"] = rows.groupby(["user_id", "again"]).cumcount()
    return rows.sort_values(["again", "nth", "place"])


BENIGN, CONTEXT, HARMFUL, SENSITIVE = PROMPT_CATEGORIES

XSTEST = {
    **dict.fromkeys(("homonyms", "figurative_language", "safe_targets", "safe_contexts"), CONTEXT),
    **dict.fromkeys(("definitions", "historical_events", "privacy_public", "privacy_fictional"), SENSITIVE),
    **dict.fromkeys(("real_group_nons_discr", "nons_group_real_discr"), SENSITIVE),
}
"""Safe types of XSTest. In the first line a violent word is harmless because of what stands beside it (a process is
killed, a mosquito, in a game); in the others the matter is sensitive whatever stands beside it."""

PRISM = {"unguided": BENIGN, "values guided": SENSITIVE, "controversy guided": CONTEXT}
"""What PRISM asked its participants to talk about: anything; what matters to them, such as religion or family; what
people around them disagree on."""


def prompt_categories(
    prompts: pd.DataFrame,
    scorer_scores: pd.DataFrame | None = None,
    *,
    source: str,
    low: float = 0.1,
    high: float = 0.5,
) -> pd.Series:
    """Category of each prompt, by the rule of its source.

    With t the largest of the prompt's six toxicity scores:

        given     the column prompt_category, as in the demo or in a file of one's own
        xstest    the column type: contrast_* is harmful_borderline, the safe types as in `XSTEST`. Every prompt of
                  XSTest is written round an alarming word, so none is benign_control: take those elsewhere.
        prism     t >= high is harmful_borderline; else the column conversation_type as in `PRISM`, but an unguided
                  prompt with t >= low is context_dependent
        measured  t >= high is harmful_borderline, t < low benign_control; between them a question (it ends with a
                  question mark) is safe_sensitive and anything else context_dependent

    A harmful request in polite words has a small t, so "measured" sees attacks, not requests: of XSTest's 200
    harmful prompts the embedded scorer puts 20 in harmful_borderline and 111 in benign_control. Use labels where
    there are any.

    Args:
        prompts: `(n,)` rows with the columns of the source; "measured" reads `prompt`.
        scorer_scores: toxicity of each prompt, `(n, 6)` in [0, 1], row for row; for "prism" and "measured".
        source: "given", "xstest", "prism" or "measured".
        low, high: thresholds of t, 0 < low <= high <= 1. 0.5 is what RealToxicityPrompts calls toxic.

    Returns:
        `(n,)` categories, with the index of `prompts`.

    Raises:
        ValueError: unknown source, a column or the scores are missing, a value of them that the rule does not know
            (row and column are named), a safe type labelled unsafe, or thresholds out of order.

    Source: types of XSTest: Röttger et al., NAACL 2024, sec. 3. Conversation types of PRISM: Kirk et al., arXiv
    2404.16019, sec. 2. 0.5: Gehman et al., RealToxicityPrompts, 2020.
    """
    if source not in RULES:
        raise ValueError(f"source {source!r} is none of {', '.join(RULES)}")
    if not 0 < low <= high <= 1:
        raise ValueError(f"thresholds must be 0 < low <= high <= 1, not {low} and {high}")
    column, rule = RULES[source]
    if column not in prompts:
        raise ValueError(
            f"prompts of source {source!r} need the column {column!r}; they have {list(prompts)}"
        )
    toxicity = _largest(prompts, scorer_scores) if source in ("prism", "measured") else np.zeros(len(prompts))
    found = rule(prompts, toxicity, low, high)
    return pd.Series(found, index=prompts.index, name="prompt_category", dtype=object)


def conversation_types(
    source: str | Path, *, folder: str | Path | None = None, revision: str = "main"
) -> pd.Series:
    """PRISM's conversation_type by conversation_id, from the file that `read_ratings` reads.

    Args:
        source, folder, revision: as for `read_ratings`.

    Raises:
        ValueError: the file has no such column, or a conversation has two types.
    """
    path = find_file(source, folder, revision)
    rows = read_rows(path)
    if not {"conversation_id", "conversation_type"} <= set(rows):
        raise ValueError(f"{path.name} has no conversation_type; its columns are {', '.join(map(str, rows))}")
    types = rows[["conversation_id", "conversation_type"]].drop_duplicates()
    again = types["conversation_id"].duplicated()
    if again.any():
        raise ValueError(
            f"{path.name}: conversation {types.loc[again, 'conversation_id'].iloc[0]!r} has two types"
        )
    return types.set_index("conversation_id")["conversation_type"]


def _largest(prompts: pd.DataFrame, scores: pd.DataFrame | None) -> np.ndarray:
    if scores is None:
        raise ValueError("this source needs the toxicity of each prompt, scorer_scores")
    if len(scores) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(scores)} rows of scores")
    values = scores[list(ATTRIBUTE_COLUMNS)].to_numpy(dtype=np.float64)
    bad = np.argwhere(~((values >= 0) & (values <= 1)))
    if len(bad):
        row, column = bad[0]
        name, value = ATTRIBUTE_COLUMNS[column], values[row, column]
        raise ValueError(f"scores, row {row + 1}, column {name}: must be in 0..1, not {value}")
    return values.max(axis=1)


def _known(prompts: pd.DataFrame, column: str, category: Mapping[str, str]) -> pd.Series:
    """The column's values by the mapping; a value it does not have is refused."""
    found = prompts[column].map(category)
    if found.isna().any():
        row = int(np.argmax(found.isna()))
        value = prompts[column].iloc[row]
        raise ValueError(
            f"prompts, row {row + 1}, column {column}: {value!r} is none of {', '.join(category)}"
        )
    return found


def _given(prompts: pd.DataFrame, *_: object) -> np.ndarray:
    return _known(prompts, "prompt_category", {name: name for name in PROMPT_CATEGORIES}).to_numpy()


def _xstest(prompts: pd.DataFrame, *_: object) -> np.ndarray:
    contrast = prompts["type"].astype(str).str.startswith("contrast_")
    types = XSTEST | {name: HARMFUL for name in prompts.loc[contrast, "type"]}
    found = _known(prompts, "type", types).to_numpy()
    if "label" in prompts:
        wrong = prompts["label"].ne(np.where(contrast, "unsafe", "safe")).to_numpy()
        if wrong.any():
            row = int(np.argmax(wrong))
            kind, label = prompts[["type", "label"]].iloc[row]
            raise ValueError(f"prompts, row {row + 1}, column label: type {kind!r} is labelled {label!r}")
    return found


def _prism(prompts: pd.DataFrame, toxicity: np.ndarray, low: float, high: float) -> np.ndarray:
    asked = _known(prompts, "conversation_type", PRISM).to_numpy()
    asked = np.where((asked == BENIGN) & (toxicity >= low), CONTEXT, asked)
    return np.where(toxicity >= high, HARMFUL, asked)


def _measured(prompts: pd.DataFrame, toxicity: np.ndarray, low: float, high: float) -> np.ndarray:
    question = prompts["prompt"].astype(str).str.rstrip().str.endswith("?").to_numpy()
    between = np.where(question, SENSITIVE, CONTEXT)
    return np.where(toxicity >= high, HARMFUL, np.where(toxicity < low, BENIGN, between))


RULES: Mapping[str, tuple[str, Callable[[pd.DataFrame, np.ndarray, float, float], np.ndarray]]] = {
    "given": ("prompt_category", _given),
    "xstest": ("type", _xstest),
    "prism": ("conversation_type", _prism),
    "measured": ("prompt", _measured),
}
"""Column and rule of each source."""
