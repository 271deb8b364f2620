"""What each answer measures, and its average over seeds: the values that arms are compared by, prompt by prompt."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from steerlib.evaluation.metrics import (
    ATTRIBUTES,
    distinct_n,
    length,
    overshoots,
    repetition,
    toxicity_distance,
)

CARRIED = ["nll_base", "kl_to_base", "n_tokens"]


def per_answer(
    generations: pd.DataFrame,
    prompts: pd.DataFrame,
    scores: ArrayLike | pd.DataFrame,
    accepted_scores: ArrayLike | pd.DataFrame | None,
) -> pd.DataFrame:
    """Measures of each answer, in the order of the generations.

    Args:
        generations, prompts, scores, accepted_scores: see `summarise`.

    Returns:
        arm_id, prompt_id, seed, toxicity, distance and overshoot (with accepted answers only), length, repetition,
        stopped, nll_base, kl_to_base, n_tokens.

    Raises:
        ValueError: scores of another length than their rows, or a prompt that is not in its table.
    """
    six = _scores(scores, len(generations), "answers")
    place = pd.Index(prompts["prompt_id"]).get_indexer(generations["prompt_id"])
    if (place < 0).any():
        unknown = generations["prompt_id"].iloc[int(np.argmax(place < 0))]
        raise ValueError(f"prompt {unknown!r} is not in the prompts")
    texts = generations["text"].tolist()
    values = generations[["arm_id", "prompt_id", "seed"]].reset_index(drop=True)
    values["toxicity"] = six["toxicity"]
    if accepted_scores is not None:
        accepted = _scores(accepted_scores, len(prompts), "prompts").iloc[place].reset_index(drop=True)
        values["distance"] = toxicity_distance(six, accepted)
        values["overshoot"] = overshoots(six, accepted).astype(float)
    values["length"], values["repetition"] = length(texts), repetition(texts)
    for column in ("stopped", *CARRIED):
        values[column] = generations[column].to_numpy(dtype=float)
    return values


def per_prompt(
    generations: pd.DataFrame,
    prompts: pd.DataFrame,
    scores: ArrayLike | pd.DataFrame,
    accepted_scores: ArrayLike | pd.DataFrame | None,
) -> pd.DataFrame:
    """Measures of each arm and prompt, `per_answer` averaged over seeds; distinct_2 over the seeds' answers together.

    Prompts count once, however many seeds there are. Sampling noise differs between prompts even at one seed, so that
    intervals clustered by user already cover it.
    """
    averages = per_answer(generations, prompts, scores, accepted_scores)
    averages = averages.drop(columns="seed").groupby(["arm_id", "prompt_id"]).mean()
    texts = generations.groupby(["arm_id", "prompt_id"])["text"]
    averages["distinct_2"] = texts.agg(lambda of_seeds: distinct_n(list(of_seeds)))
    return averages.reset_index()


def _scores(scores: ArrayLike | pd.DataFrame, rows: int, what: str) -> pd.DataFrame:
    six = scores[ATTRIBUTES].to_numpy() if isinstance(scores, pd.DataFrame) else np.asarray(scores)
    if six.shape != (rows, len(ATTRIBUTES)):
        raise ValueError(f"scores of the {what} must be ({rows}, 6), not {six.shape}")
    return pd.DataFrame(six.astype(np.float64), columns=ATTRIBUTES)


def check_paired(generations: pd.DataFrame, arms: pd.DataFrame, base_arm: str) -> None:
    """Refuse arms that cannot be compared prompt by prompt.

    Raises:
        ValueError: an arm is not in the arms table, the base has no answers, or an arm has other prompts or seeds.
    """
    unknown = sorted(set(generations["arm_id"]) - set(arms["arm_id"]))
    if unknown:
        raise ValueError(f"arm {unknown[0]!r} of the generations is not in the arms")
    keys = pd.MultiIndex.from_frame(generations[["prompt_id", "seed"]])
    base = keys[generations["arm_id"] == base_arm]
    if base.empty:
        raise ValueError(f"the base arm {base_arm!r} has no generations")
    for arm, rows in generations.groupby("arm_id").indices.items():
        shared = int(keys[rows].isin(base).sum())
        if not shared == len(base) == len(rows):
            raise ValueError(
                f"arm {arm!r} has {len(rows)} answers, the base {len(base)}, and {shared} share prompt and seed: "
                "finish the sweep first"
            )
