"""Judges of an answer: SDA's score S and pairwise verdicts, by four kinds of judge behind one protocol, cached."""

from pathlib import Path
from typing import Any

import pandas as pd

from steerlib.judges.base import DIMENSIONS, Judge, judged, verdicts

__all__ = ["DIMENSIONS", "Judge", "judged", "load_judge", "score_first_answers", "verdicts"]


def load_judge(name: str, **settings: Any) -> Judge:
    """A judge by name, with settings of `EndpointJudge` or `RewardJudge`; ValueError where the name is none of these.

    "endpoint:<model>", a chat model behind an OpenAI-compatible endpoint, and "local:<model>", a causal model's
    expected rating, judge every dimension; "reward:<model>" the one it was trained for; "scorer" or
    "scorer:<scorer>", the toxicity scorer, harmlessness.
    """
    from steerlib.judges.endpoint import EndpointJudge
    from steerlib.judges.local import LocalJudge, RewardJudge, ScorerJudge
    from steerlib.models import load_model
    from steerlib.toxicity import load_scorer

    kind, _, model = str(name).partition(":")
    if kind == "scorer":
        return ScorerJudge(load_scorer(model or "calibrated"), **settings)
    if kind == "local" and model:
        return LocalJudge(load_model(model), **settings)
    if kind in ("endpoint", "reward") and model:
        return {"endpoint": EndpointJudge, "reward": RewardJudge}[kind](model, **settings)
    raise ValueError(
        f"no judge is called {name!r}; there are 'endpoint:<model>', 'local:<model>', 'reward:<model>', 'scorer'"
        " and 'scorer:<scorer>'"
    )


def score_first_answers(
    judge: Judge, prompts: pd.DataFrame, generations: pd.DataFrame, folder: Path
) -> pd.DataFrame:
    """Score S of the base's first answer to each prompt: prompt_id, dimension, score in the order of the prompts.

    Of several seeds' generations the first counts. The dimension is the prompt's category where that is one of SDA's
    five, else harmlessness (a category may be a user's c*(u)). See `judged`, also for errors.

    Source: SDA, stage 1; one score a prompt and dimension, the same for all tokens of the second answer.
    """
    first = generations.sort_values("seed", kind="stable").drop_duplicates("prompt_id").set_index("prompt_id")
    items = prompts[["prompt_id", "prompt", "category"]].reset_index(drop=True)
    items["text"] = items["prompt_id"].map(first["text"])
    items["dimension"] = items["category"].where(items["category"].isin(DIMENSIONS), "harmlessness")
    parts = [
        rows.assign(score=judged(judge, rows, str(dimension), folder)["score"])
        for dimension, rows in items.groupby("dimension", sort=False)
    ]
    return pd.concat(parts).sort_index()[["prompt_id", "dimension", "score"]]
