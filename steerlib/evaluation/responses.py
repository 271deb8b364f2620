"""Responses: slopes over alpha, greedy against sampled, selectivity by category of prompt."""

import numpy as np
import pandas as pd

from steerlib.evaluation.intervals import Floats, Interval, cluster_interval, paired_interval


def dose_responses(values: pd.DataFrame, arms: pd.DataFrame, column: str) -> dict[str, pd.DataFrame]:
    """Responses by vector family, `(prompts, alphas)` by rising alpha, the base being alpha 0 of every family.

    Keys end in ", shuffled" for another user's vectors. `values` has the column by arm and prompt, see `per_prompt`;
    arms without a vector are left out. A ValueError for not exactly one base arm, or a prompt that lacks an arm.
    """
    base = arms.loc[arms["control"] == "base", "arm_id"].item()
    wide = values.pivot(index="prompt_id", columns="arm_id", values=column)
    found = {}
    for (family, user), rows in arms[arms["family"] != ""].groupby(["family", "vector_user"], sort=False):
        named = {base: 0.0} | dict(zip(rows["arm_id"], rows["alpha"], strict=True))
        responses = wide[list(named)].rename(columns=named).sort_index(axis=1).astype(float)
        if responses.isna().any(axis=None):
            prompt = responses.index[responses.isna().any(axis=1)][0]
            raise ValueError(f"prompt {prompt!r} lacks an answer of vector {family!r}")
        found[f"{family}, shuffled" if user == "shuffled" else str(family)] = responses
    return found


def response_slopes(responses: pd.DataFrame) -> pd.Series:
    """Least-squares slope of each prompt's responses on alpha, in units of the response per unit of alpha.

        b_i = sum_a (a - mean a) y_ia / sum_a (a - mean a)^2     of `(prompts, alphas)`, alphas as column labels

    A ValueError for fewer than 2 alphas, or a value that is not finite.
    """
    alphas, y = responses.columns.to_numpy(dtype=np.float64), responses.to_numpy(dtype=np.float64)
    if len(set(alphas)) != len(alphas) or len(alphas) < 2:
        raise ValueError(f"a trend needs 2 different alphas or more, not {alphas.tolist()}")
    for row, column in np.argwhere(~np.isfinite(y))[:1]:
        raise ValueError(f"prompt {responses.index[row]!r} at alpha {alphas[column]:g} is {y[row, column]}")
    centred = alphas - alphas.mean()
    return pd.Series(y @ centred / np.square(centred).sum(), index=responses.index, name="slope")


CHOICE = ["temperature", "top_p", "min_p", "js_sigma", "min_temperature"]
"""Settings in which greedy and sampled twins may differ; a repetition penalty is not one of them."""


def quality_by_sampling(values: pd.DataFrame, arms: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """What steering adds to repetition and perplexity when sampled, against what it adds when greedy.

        repetition   growth = (sampled - sampled base) - (greedy - greedy base)
        perplexity   growth = (sampled / sampled base) / (greedy / greedy base)

    Sampling makes text less likely, and greedy text repeats itself, without any steering. That errors of steering
    add up under sampling would show as a growth above 0 (or 1). `values` are those of `per_prompt`; greedy and sampled
    arms may have been run with other seeds. Twins differ in their sampling settings alone.

    Columns are arm_id (sampled), greedy_arm, measure, greedy, sampled (the two values), value, low, high, n,
    n_clusters, how. A ValueError where no sampled arm has a greedy twin, or twins were not run on the same prompts.

    Source: the CAA-on-PRISM study says that sampling spoils quality and greedy decoding does not, and shows the
    greedy half.
    """
    arms = arms[arms["arm_id"].isin(values["arm_id"])]
    settings = [column for column in arms if column not in ("arm_id", "variant", *CHOICE)]
    greedy = arms["temperature"] == 0
    twins = arms[~greedy].merge(arms[greedy], on=settings, suffixes=("", "_greedy"))
    bases = twins[twins["control"] == "base"]
    if bases.empty:
        raise ValueError("no base has a greedy twin (temperature 0, all other settings equal)")
    users = prompts.loc[prompts["split"] == "test"].set_index("prompt_id")["user_id"]
    wide = values.pivot(index="prompt_id", columns="arm_id").reindex(users.index)
    rows = []
    for _, twin in twins[twins["control"] != "base"].iterrows():
        same = bases[(bases[CHOICE] == twin[CHOICE]).all(axis=1)]
        base = (same if len(same) else bases).iloc[0]  # SDA's temperature is its own
        four = [arm[name] for name in ("arm_id", "arm_id_greedy") for arm in (twin, base)]
        repetition, nll, tokens = (wide[name][four].to_numpy(float) for name in MEASURED)
        if np.isnan(repetition).any():
            raise ValueError(f"arms {four} were not run on the same prompts: finish the sweep first")
        means, found = repetition.mean(axis=0), cluster_interval(repetition @ SIGNS, users)
        rows.append([*twin[["arm_id", "arm_id_greedy"]], "repetition", means[2], means[0], *found])
        if tokens.sum(axis=0).all():
            both = np.hstack([nll, tokens])
            log = cluster_interval(both, users, lambda m: (m[..., :4] / m[..., 4:]) @ SIGNS)
            ppl = np.exp(nll.sum(axis=0) / tokens.sum(axis=0))
            found = [*np.exp(log[:3]), *log[3:]]
            rows.append([*twin[["arm_id", "arm_id_greedy"]], "perplexity", ppl[2], ppl[0], *found])
    names = ["arm_id", "greedy_arm", "measure", "greedy", "sampled", *Interval._fields]
    return pd.DataFrame(rows, columns=names)


MEASURED = ("repetition", "nll_base", "n_tokens")
SIGNS = np.array([1.0, -1.0, -1.0, 1.0])
"""Of an arm, its base, their greedy twins in a difference of differences."""
REFERENCE = "benign_control"


def selectivity(values: pd.DataFrame, prompts: pd.DataFrame, *, base_arm: str) -> pd.DataFrame:
    """Toxicity of base and steered answers by category of prompt, its change, and that minus benign prompts' change.

        change_percent = 100 (mean steered / mean base - 1);   contrast = it minus that of benign_control

    A contrast below 0 says that steering acts more in the category than on benign prompts. It is in points, because a
    category with more to lose shows a larger difference even where all prompts fall by the same share.

    `values` are those of `per_prompt`; test prompts with a prompt_category are read.

    One row an arm and category: arm_id, prompt_category, base, steered (means), change_percent with low and high (see
    `paired_interval`), n prompts, n_clusters users, contrast with contrast_low and contrast_high (cluster-t). What a
    mean of 0 under the base or a run without benign prompts leaves undefined is missing. A ValueError for no base, or
    an arm without some of the base's prompts.

    Source: the table "selectivity by prompt category" of the CAA-on-PRISM study, of the distance and without intervals.
    """
    asked = prompts[(prompts["split"] == "test") & (prompts["prompt_category"].fillna("") != "")]
    wide = values.pivot(index="prompt_id", columns="arm_id", values="toxicity").reindex(asked["prompt_id"])
    if base_arm not in wide:
        raise ValueError(f"no values of the base arm {base_arm!r} on test prompts with a category")
    users, categories = asked["user_id"].to_numpy(), asked["prompt_category"].to_numpy()
    base, there, rows = wide[base_arm].to_numpy(), categories == REFERENCE, []
    for arm in wide.columns.drop(base_arm):
        own = wide[arm].to_numpy()
        if np.isnan(own).any():
            first = wide.index[np.isnan(own)][0]
            raise ValueError(f"arm {arm!r} lacks {np.isnan(own).sum()} prompts, first {first!r}")
        for category in sorted(set(categories)):
            here = categories == category
            found = contrast = Interval(np.nan, np.nan, np.nan, here.sum(), len(set(users[here])), "none")
            if base[here].any():
                found = paired_interval(base[here], own[here], users[here], statistic="change_percent")
            if category != REFERENCE and base[here].any() and base[there].any():
                both = here | there
                four = np.column_stack([base * here, own * here, base * there, own * there])
                contrast = cluster_interval(four[both], users[both], _contrast)
            rows.append([arm, category, base[here].mean(), own[here].mean(), *found[:5], *contrast[:3]])
    names = ["arm_id", "prompt_category", "base", "steered", "change_percent", *Interval._fields[1:5]]
    return pd.DataFrame(rows, columns=[*names, "contrast", "contrast_low", "contrast_high"])


def _contrast(m: Floats) -> Floats:
    return 100 * (m[..., 1] / m[..., 0] - m[..., 3] / m[..., 2])
