"""Whether steering acts where it should: its effect by category of prompt, and against the benign ones."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from steerlib.evaluation.intervals import Interval, cluster_interval, paired_interval
from steerlib.evaluation.metrics import Floats

COUNTS = ["n", "n_clusters", "how"]


def selectivity(
    values: pd.DataFrame,
    prompts: pd.DataFrame,
    *,
    base_arm: str,
    split: str = "test",
    measure: str = "distance",
    level: float = 0.95,
) -> pd.DataFrame:
    """The measure of base and steered answers by category of prompt, and its change in per cent.

    Args:
        values: arm_id, prompt_id and the measure, one row an arm and prompt, from `per_prompt`.
        prompts: the prompts table; prompts of another split or without a prompt_category are left out.
        base_arm: arm_id of the base.
        split: of the prompts.
        measure: column of `values`; "distance" is the CAA study's MAE.
        level: confidence.

    Returns:
        One row an arm and category: arm_id, prompt_category, base, steered (means), change_percent with low and high
        (see `paired_interval`; missing where the base's mean is 0), n prompts, n_clusters users, how.

    Raises:
        ValueError: no base, an arm without some of the base's prompts, or no prompt with a category.

    Source: the table "selectivity by prompt category" of the CAA-on-PRISM study, which has no intervals.
    """
    rows = []
    for arm, joined in _paired(values, prompts, base_arm, split, measure):
        for category, part in joined.groupby("prompt_category"):
            base, own, users = part["base"], part["steered"], part["user_id"]
            if base.sum() == 0:
                nothing = (np.nan,) * 3
                found = Interval(*nothing, len(part), users.nunique(), "none: the base's mean is 0")
            else:
                found = paired_interval(base, own, users, statistic="change_percent", level=level)
            rows.append([arm, category, base.mean(), own.mean(), *found])
    return pd.DataFrame(
        rows,
        columns=["arm_id", "prompt_category", "base", "steered", "change_percent", "low", "high", *COUNTS],
    )


def selectivity_contrasts(
    values: pd.DataFrame,
    prompts: pd.DataFrame,
    *,
    base_arm: str,
    reference: str = "benign_control",
    split: str = "test",
    measure: str = "distance",
    level: float = 0.95,
) -> pd.DataFrame:
    """Effect in each category minus the effect in the reference: does steering select, or act on all prompts alike?

        difference       (mean steered - mean base) of the category minus that of the reference
        change_percent   the same of 100 (mean steered / mean base - 1), in points

    Below 0 the measure falls more in the category. A category with more to lose shows a larger difference even
    where all prompts fall by the same share; "change_percent" does not, and is wide where the reference's base is
    near 0.

    Args:
        values, prompts, base_arm, split, measure, level: see `selectivity`.
        reference: the category that the others are compared with.

    Returns:
        One row an arm, category and effect: arm_id, prompt_category, reference, effect, value, low, high
        (cluster-t; a user may have prompts in both), n prompts of both, n_clusters, how.

    Raises:
        ValueError: as `selectivity`; no prompt of the reference.
    """
    rows = []
    for arm, joined in _paired(values, prompts, base_arm, split, measure):
        there = sorted(joined["prompt_category"].unique())
        if reference not in there:
            raise ValueError(f"no prompt of category {reference!r}; there are {', '.join(there)}")
        for category in there:
            if category == reference:
                continue
            part = joined[joined["prompt_category"].isin([category, reference])]
            own = (part["prompt_category"] == category).to_numpy(dtype=np.float64)[:, None]
            three = np.column_stack([part["base"], part["steered"], np.ones(len(part))])
            columns = np.hstack([three * own, three * (1 - own)])
            for effect, of_means in (("difference", _difference), ("change_percent", _relative)):
                if effect == "difference" or part.groupby("prompt_category")["base"].sum().all():
                    found = cluster_interval(columns, part["user_id"], of_means, level=level)
                    rows.append([arm, category, reference, effect, *found])
    return pd.DataFrame(
        rows, columns=["arm_id", "prompt_category", "reference", "effect", "value", "low", "high", *COUNTS]
    )


def _difference(m: Floats) -> Floats:
    return (m[..., 1] - m[..., 0]) / m[..., 2] - (m[..., 4] - m[..., 3]) / m[..., 5]


def _relative(m: Floats) -> Floats:
    return 100 * (m[..., 1] / m[..., 0] - m[..., 4] / m[..., 3])


def _paired(
    values: pd.DataFrame, prompts: pd.DataFrame, base_arm: str, split: str, measure: str
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each steered arm with prompt_category, user_id, base and steered, one row a prompt of the split."""
    asked = prompts[(prompts["split"] == split) & (prompts["prompt_category"].fillna("") != "")]
    wide = values.pivot(index="prompt_id", columns="arm_id", values=measure).reindex(asked["prompt_id"])
    if base_arm not in wide or asked.empty:
        raise ValueError(f"no values of the base arm {base_arm!r} on categorised prompts of split {split!r}")
    labels = asked.set_index("prompt_id")[["user_id", "prompt_category"]]
    for arm in values["arm_id"].unique():
        missing = wide.index[wide[arm].isna()]
        if len(missing):
            raise ValueError(
                f"arm {arm!r} has no {measure} for {len(missing)} prompts, the first is {missing[0]!r}"
            )
        if arm != base_arm:
            yield str(arm), labels.assign(base=wide[base_arm], steered=wide[arm])
