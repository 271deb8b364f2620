"""What each answer measures, and per prompt and arm its average over seeds: the values that are compared."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from steerlib.evaluation.diversity import distinct_n, length, repetition
from steerlib.evaluation.metrics import overshoots, toxicity_distance
from steerlib.toxicity.attributes import ATTRIBUTES

CARRIED = ["nll_base", "kl_to_base", "n_tokens"]


def per_answer(
    generations: pd.DataFrame,
    prompts: pd.DataFrame,
    scores: ArrayLike | pd.DataFrame,
    accepted_scores: ArrayLike | pd.DataFrame | None,
) -> pd.DataFrame:
    """What each answer measures, in the order of the generations.

    Args:
        generations, prompts, scores, accepted_scores: see `summarise`.

    Returns:
        arm_id, prompt_id, seed, toxicity, distance, overshoot, shift_<attribute> (the last three with accepted
        answers only), length, repetition, stopped, nll_base, kl_to_base, n_tokens.

    Raises:
        ValueError: scores of another length than their rows, or a prompt that is not in its table.
    """
    six = _scores(scores, len(generations), "answers")
    place = pd.Index(prompts["prompt_id"]).get_indexer(generations["prompt_id"])
    if (place < 0).any():
        raise ValueError(
            f"prompt {generations['prompt_id'].iloc[int(np.argmax(place < 0))]!r} is not in the prompts"
        )
    texts = generations["text"].tolist()
    values = generations[["arm_id", "prompt_id", "seed"]].reset_index(drop=True)
    values["toxicity"] = six["toxicity"]
    if accepted_scores is not None:
        accepted = _scores(accepted_scores, len(prompts), "prompts").iloc[place].reset_index(drop=True)
        values["distance"] = toxicity_distance(six, accepted)
        values["overshoot"] = overshoots(six, accepted).astype(float)
        values = values.join((six - accepted).add_prefix("shift_"))
    values["length"], values["repetition"] = length(texts), repetition(texts)
    values["stopped"] = generations["stopped"].to_numpy(dtype=float)
    for column in CARRIED:
        values[column] = generations[column].to_numpy(dtype=float)
    return values


def per_prompt(
    generations: pd.DataFrame,
    prompts: pd.DataFrame,
    scores: ArrayLike | pd.DataFrame,
    accepted_scores: ArrayLike | pd.DataFrame | None,
) -> pd.DataFrame:
    """Values of each arm and prompt, averaged over seeds; distinct_1 to 3 over the seeds' answers together.

    Args:
        generations, prompts, scores, accepted_scores: see `summarise`.

    Returns:
        Columns of `per_answer` without seed, and distinct_1, distinct_2, distinct_3.
    """
    return average_seeds(per_answer(generations, prompts, scores, accepted_scores), generations)


def average_seeds(answers: pd.DataFrame, generations: pd.DataFrame) -> pd.DataFrame:
    """`per_prompt` from what `per_answer` gave for the same generations."""
    averages = answers.drop(columns="seed").groupby(["arm_id", "prompt_id"]).mean()
    grouped = generations.groupby(["arm_id", "prompt_id"])["text"]
    for n in (1, 2, 3):
        averages[f"distinct_{n}"] = grouped.agg(lambda texts, n=n: distinct_n(list(texts), n))
    return averages.reset_index()


def _scores(scores: ArrayLike | pd.DataFrame, rows: int, what: str) -> pd.DataFrame:
    six = scores[list(ATTRIBUTES)].to_numpy() if isinstance(scores, pd.DataFrame) else np.asarray(scores)
    if six.shape != (rows, len(ATTRIBUTES)):
        raise ValueError(f"scores of the {what} must be ({rows}, 6), not {six.shape}")
    return pd.DataFrame(six.astype(np.float64), columns=list(ATTRIBUTES))


def check_paired(generations: pd.DataFrame, arms: pd.DataFrame, base_arm: str) -> None:
    """Refuse arms that cannot be compared prompt by prompt.

    Raises:
        ValueError: an arm is not in the arms table, the base has no answers, or an arm has other prompts or seeds.
    """
    unknown = set(generations["arm_id"]) - set(arms["arm_id"])
    if unknown:
        raise ValueError(f"arm {sorted(unknown)[0]!r} of the generations is not in the arms")
    answered = {
        arm: set(zip(rows["prompt_id"], rows["seed"], strict=True))
        for arm, rows in generations.groupby("arm_id")
    }
    if base_arm not in answered:
        raise ValueError(
            f"the base arm {base_arm!r} has no generations; arms are {', '.join(map(str, answered))}"
        )
    for arm, keys in answered.items():
        shared, wanted = len(keys & answered[base_arm]), len(answered[base_arm])
        if not shared == wanted == len(keys):
            raise ValueError(
                f"arm {arm!r} has {len(keys)} answers, the base {wanted}, and {shared} share prompt and seed: "
                "finish the sweep first"
            )
