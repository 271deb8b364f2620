"""Whether steering acts where it should: its effect by category of prompt, and against the benign ones."""

import numpy as np
import pandas as pd

from steerlib.evaluation.intervals import Interval, cluster_interval, paired_interval
from steerlib.evaluation.metrics import Floats

COLUMNS = [
    *("arm_id", "prompt_category", "base", "steered", "change_percent", "low", "high", "n", "n_clusters"),
    *("contrast", "contrast_low", "contrast_high"),
]


def selectivity(
    values: pd.DataFrame,
    prompts: pd.DataFrame,
    *,
    base_arm: str,
    reference: str = "benign_control",
    measure: str = "distance",
) -> pd.DataFrame:
    """The measure of base and steered answers by category of prompt, its change, and that minus the reference's change.

        change_percent = 100 (mean steered / mean base - 1) in the category;   contrast = it minus that of the reference

    A contrast below 0 says that steering acts more in the category than on the reference. It is in points, because a
    category with more to lose shows a larger difference even where all prompts fall by the same share.

    Args:
        values: arm_id, prompt_id and the measure, one row an arm and prompt, from `per_prompt`.
        prompts: the prompts table; test prompts with a prompt_category are read.
        base_arm: arm_id of the base.
        reference: the category that the others are compared with; where it has no prompt there are no contrasts.
        measure: column of `values`; "distance" is the CAA study's MAE.

    Returns:
        One row an arm and category: arm_id, prompt_category, base, steered (means), change_percent with low and high
        (see `paired_interval`), n prompts, n_clusters users, contrast with contrast_low and contrast_high (cluster-t).
        What a mean of 0 under the base leaves undefined is missing.

    Raises:
        ValueError: no base, an arm without some of the base's prompts, or no prompt with a category.

    Source: the table "selectivity by prompt category" of the CAA-on-PRISM study, which has no intervals.
    """
    asked = prompts[(prompts["split"] == "test") & (prompts["prompt_category"].fillna("") != "")]
    wide = values.pivot(index="prompt_id", columns="arm_id", values=measure).reindex(asked["prompt_id"])
    if base_arm not in wide or asked.empty:
        raise ValueError(f"no values of the base arm {base_arm!r} on test prompts with a category")
    users, categories = asked["user_id"].to_numpy(), asked["prompt_category"].to_numpy()
    base, rows = wide[base_arm].to_numpy(), []
    there = categories == reference
    for arm in values["arm_id"].unique():
        own = wide[arm].to_numpy()
        if np.isnan(own).any():
            first = wide.index[np.isnan(own)][0]
            raise ValueError(
                f"arm {arm!r} has no {measure} for {np.isnan(own).sum()} prompts, the first is {first!r}"
            )
        for category in sorted(set(categories)) if arm != base_arm else []:
            here = categories == category
            found = contrast = Interval(np.nan, np.nan, np.nan, here.sum(), len(set(users[here])), "none")
            if base[here].any():
                found = paired_interval(base[here], own[here], users[here], statistic="change_percent")
            if category != reference and base[here].any() and base[there].any():
                both = here | there
                four = np.column_stack([base * here, own * here, base * there, own * there])
                contrast = cluster_interval(four[both], users[both], _contrast)
            rows.append([arm, category, base[here].mean(), own[here].mean(), *found[:5], *contrast[:3]])
    return pd.DataFrame(rows, columns=COLUMNS)


def _contrast(m: Floats) -> Floats:
    return 100 * (m[..., 1] / m[..., 0] - m[..., 3] / m[..., 2])
