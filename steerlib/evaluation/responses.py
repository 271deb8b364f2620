"""Responses over alpha: slopes and bands of decoded arms, greedy against sampled, and an arm's exact path."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from steerlib.decoding import Contexts, alpha_path, make_arms
from steerlib.decoding.requests import sampling_of
from steerlib.evaluation.intervals import Interval, cluster_interval, sign_flip_test
from steerlib.evaluation.metrics import Floats
from steerlib.models import FrozenModel


class Trend(NamedTuple):
    """Mean of the prompts' slopes on alpha, and the two-sided sign-flip p value of a slope of 0."""

    slope: Interval
    p_value: float


def dose_responses(values: pd.DataFrame, arms: pd.DataFrame, column: str) -> dict[str, pd.DataFrame]:
    """Responses by vector family: a row a prompt, a column an alpha, the base being alpha 0 of every family.

    Args:
        values: arm_id, prompt_id and the column, one row an arm and prompt (see `per_prompt`).
        arms: the arms table with one base arm; arms without a vector other than the base are left out.
        column: the measure.

    Returns:
        By family (", shuffled" after it for another user's vectors), `(prompts, alphas)` by rising alpha.

    Raises:
        ValueError: there is not exactly one base arm, or a prompt lacks an arm.
    """
    base = arms.loc[arms["control"] == "base", "arm_id"]
    if len(base) != 1:
        raise ValueError(f"need exactly one base arm, not {len(base)}")
    wide = values.pivot(index="prompt_id", columns="arm_id", values=column)
    found = {}
    for (family, user), rows in arms[arms["family"] != ""].groupby(["family", "vector_user"], sort=False):
        named = {base.iloc[0]: 0.0} | dict(zip(rows["arm_id"], rows["alpha"], strict=True))
        responses = wide[list(named)].rename(columns=named).sort_index(axis=1).astype(float)
        if responses.isna().any(axis=None):
            prompt = responses.index[responses.isna().any(axis=1)][0]
            raise ValueError(f"prompt {prompt!r} lacks an answer of vector {family!r}")
        found[f"{family}, shuffled" if user == "shuffled" else str(family)] = responses
    return found


def response_slopes(responses: pd.DataFrame) -> pd.Series:
    """Least-squares slope of each prompt's responses on alpha, in units of the response per unit of alpha.

        b_i = sum_a (a - mean a) y_ia / sum_a (a - mean a)^2

    Args:
        responses: `(prompts, alphas)`, alphas as column labels.

    Raises:
        ValueError: fewer than 2 alphas, or a value that is not finite.
    """
    alphas, y = responses.columns.to_numpy(dtype=np.float64), responses.to_numpy(dtype=np.float64)
    if len(set(alphas)) != len(alphas) or len(alphas) < 2:
        raise ValueError(f"a trend needs 2 different alphas or more, not {alphas.tolist()}")
    bad = np.argwhere(~np.isfinite(y))
    if len(bad):
        raise ValueError(
            f"prompt {responses.index[bad[0, 0]]!r} at alpha {alphas[bad[0, 1]]:g} is {y[tuple(bad[0])]}"
        )
    centred = alphas - alphas.mean()
    return pd.Series(y @ centred / np.square(centred).sum(), index=responses.index, name="slope")


def trend(responses: pd.DataFrame, clusters: ArrayLike | None = None) -> Trend:
    """Mean slope of a measure on alpha (cluster-t) and its sign-flip test, prompt by prompt.

    Page's test does not serve: arms share their noise, so that neighbouring alphas often give one and the same
    answer.
    Flipping signs needs less: that reversing the order of alphas would be as likely.

    Args:
        responses: see `response_slopes`; clusters: of each prompt; None for independent prompts.
    """
    slopes = response_slopes(responses)
    return Trend(cluster_interval(slopes, clusters), sign_flip_test(slopes, clusters))


CHOICE = ("temperature", "top_p", "min_p", "js_sigma", "min_temperature")
"""Settings in which greedy and sampled twins may differ; a repetition penalty is not one of them."""


def quality_by_sampling(values: pd.DataFrame, arms: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """What steering adds to repetition and perplexity when sampled, against what it adds when greedy.

        repetition   growth = (sampled - sampled base) - (greedy - greedy base)
        perplexity   growth = (sampled / sampled base) / (greedy / greedy base)

    Sampling makes text less likely, and greedy text repeats itself, without any steering. That errors of steering
    add up under sampling would show as a growth above 0 (or 1).

    Args:
        values: arm_id, prompt_id, repetition, nll_base, n_tokens, from `per_prompt`; greedy and sampled arms may
            have been run with other seeds.
        arms: the arms table. Twins differ in their sampling settings alone.
        prompts: the prompts table; test prompts are read.

    Returns:
        arm_id (sampled), greedy_arm, measure, greedy, sampled (the two values), value, low, high, n, n_clusters, how.

    Raises:
        ValueError: no sampled arm has a greedy twin, or twins were not run on the same prompts.

    Source: the CAA-on-PRISM study says that sampling spoils quality and greedy decoding does not, and shows the
    greedy half.
    """
    arms = arms[arms["arm_id"].isin(values["arm_id"])]
    settings = [column for column in arms if column not in ("arm_id", "variant", *CHOICE)]
    greedy = arms["temperature"] == 0
    twins = arms[~greedy].merge(arms[greedy], on=settings, suffixes=("", "_greedy"))
    bases = twins[twins["control"] == "base"]
    if twins.empty or bases.empty:
        raise ValueError(
            "no sampled arm has a greedy twin (temperature 0, all other settings equal), base included"
        )
    users = prompts.loc[prompts["split"] == "test"].set_index("prompt_id")["user_id"]
    wide = values.pivot(index="prompt_id", columns="arm_id").reindex(users.index)
    rows = []
    for twin in twins[twins["control"] != "base"].to_dict("records"):
        same = bases[(bases[list(CHOICE)] == pd.Series(twin)[list(CHOICE)]).all(axis=1)]
        base = (same if len(same) else bases).iloc[0]  # SDA's temperature is its own
        four = [twin["arm_id"], base["arm_id"], twin["arm_id_greedy"], base["arm_id_greedy"]]
        columns = {
            name: wide[name][four].to_numpy(np.float64) for name in ("repetition", "nll_base", "n_tokens")
        }
        if np.isnan(columns["repetition"]).any():
            raise ValueError(f"arms {four} were not run on the same prompts: finish the sweep first")
        mean = columns["repetition"].mean(axis=0)
        found = cluster_interval(columns["repetition"] @ [1, -1, -1, 1], users)
        rows.append([twin["arm_id"], twin["arm_id_greedy"], "repetition", mean[2], mean[0], *found])
        if columns["n_tokens"].sum(axis=0).all():
            eight = np.hstack([columns["nll_base"], columns["n_tokens"]])
            log = cluster_interval(eight, users, _log_growth)
            ppl = np.exp(columns["nll_base"].sum(axis=0) / columns["n_tokens"].sum(axis=0))
            found = log._replace(value=np.exp(log.value), low=np.exp(log.low), high=np.exp(log.high))
            rows.append([twin["arm_id"], twin["arm_id_greedy"], "perplexity", ppl[2], ppl[0], *found])
    names = ["arm_id", "greedy_arm", "measure", "greedy", "sampled", *Interval._fields]
    return pd.DataFrame(rows, columns=names)


def _log_growth(m: Floats) -> Floats:
    return (m[..., :4] / m[..., 4:]) @ np.array([1.0, -1.0, -1.0, 1.0])


def arm_path(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arm: pd.Series,
    *,
    min_p: float,
    max_new_tokens: int,
    contexts: Contexts,
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Every answer that a logit rule gives from alpha 0 to the arm's own alpha: the segments table, see `alpha_path`.

    Args:
        frozen, prompts: the model and the prompts to be answered.
        arm: a row of the arms table, of a logit rule whose branches are contexts; of SDA the path has a = 1.
        min_p: nucleus of a sampled path, linear in alpha, in place of the arm's top-p; a greedy arm has none.
        max_new_tokens: longest answer.
        contexts: texts of the branches by category.
        seeds: of the noise.
    """
    own = sampling_of(arm)
    own = replace(own, top_p=1.0, min_p=min_p if own.temperature else 0.0, max_new_tokens=max_new_tokens)
    kept: dict[str, Any] = {name: arm[name] for name in ("profile", "category", "style")}
    arms = make_arms(
        arm["method"],
        [float(arm["alpha"])],
        model=frozen.name,
        contexts=contexts,
        sampling=own,
        base_top_p=float(arm["base_top_p"]),
        **kept,
    )
    return alpha_path(frozen, prompts, arms, seeds=seeds, contexts=contexts)
