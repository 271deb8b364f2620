"""The score S of a first answer: what SDA's amplification hangs on.

One call for all judges.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from steerlib.judges.base import DIMENSIONS, Judge, check_dimension, judged
from steerlib.judges.endpoint import EndpointJudge
from steerlib.judges.local import LocalJudge, RewardJudge, ScorerJudge
from steerlib.models import FrozenModel, load_model
from steerlib.toxicity import load_scorer

NAMES = "'endpoint:<model>', 'local:<model>', 'reward:<hub id or folder>', 'scorer' and 'scorer:<scorer>'"


def load_judge(name: str, *, frozen: FrozenModel | None = None, **settings: Any) -> Judge:
    """A judge by name.

    | name | judge | measures |
    |---|---|---|
    | `endpoint:gpt-4.1` | a chat model behind an OpenAI-compatible endpoint, `EndpointJudge` | every dimension |
    | `local:embedded`, `local:<folder or hub id>` | expected rating of a causal LM, `LocalJudge` | every dimension |
    | `reward:<folder or hub id>` | a reward model, `RewardJudge` | the one that it was trained for |
    | `scorer`, `scorer:<scorer>` | the toxicity scorer, `ScorerJudge` | harmlessness |

    Args:
        name: kind and model as above.
        frozen: for `local:`, the model where it is loaded already; the name then only has to say `local:`.
        settings: of the judge's class, for instance `base_url` and `price_in`, or `centre` and `scale`.

    Returns:
        judge with `judge.rate(items, dimension)`, `judge.compare(items, dimension)` and `judge.id`.

    Raises:
        ValueError: no judge has such a name, or a model was given to a judge that takes none.
        TypeError: a setting that the judge does not have.
    """
    kind, _, model = name.partition(":")
    if frozen is not None and kind != "local":
        raise ValueError(f"judge {name!r} takes no loaded model; 'local:' does")
    if kind == "endpoint" and model:
        return EndpointJudge(model, **settings)
    if kind == "local" and (model or frozen is not None):
        return LocalJudge(load_model(model) if frozen is None else frozen, **settings)
    if kind == "reward" and model:
        return RewardJudge(model, **settings)
    if kind == "scorer":
        return ScorerJudge(load_scorer(model or "embedded"), **settings)
    raise ValueError(f"no judge is called {name!r}; there are {NAMES}")


def score_first_answers(
    judge: Judge,
    prompts: pd.DataFrame,
    generations: pd.DataFrame,
    folder: Path,
    *,
    otherwise: str = "harmlessness",
) -> pd.DataFrame:
    """Score S of the base's first answer to each prompt, on the prompt's own dimension.

    Args:
        judge: a judge of `load_judge`.
        prompts: prompt_id, prompt, category; a category that is one of SDA's dimensions is the one that is judged.
        generations: the base's answers; of several seeds the first counts.
        folder: the run's folder, where judgements are kept.
        otherwise: dimension of prompts whose category is none, for instance a user's c*(u).

    Returns:
        prompt_id, dimension, score in (0, 100] in the order of the prompts; NaN where the judge gave none.

    Raises:
        ValueError: a prompt without an answer, an unknown dimension, or as `judged`.

    Source: SDA, stage 1; one score a prompt and dimension, the same for all tokens of the second answer.
    """
    check_dimension(otherwise)
    first = generations.sort_values("seed", kind="stable").drop_duplicates("prompt_id")
    items = prompts[["prompt_id", "prompt", "category"]].merge(
        first[["prompt_id", "text"]], on="prompt_id", how="left"
    )
    if items["text"].isna().any():
        raise ValueError(f"prompt {items.loc[items['text'].isna(), 'prompt_id'].iloc[0]} has no first answer")
    items["dimension"] = items["category"].where(items["category"].isin(DIMENSIONS), otherwise)
    parts = [
        rows.assign(score=judged(judge, rows, str(dimension), folder)["score"])
        for dimension, rows in items.groupby("dimension", sort=False)
    ]
    return pd.concat(parts).sort_index()[["prompt_id", "dimension", "score"]]
