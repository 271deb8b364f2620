"""An alpha for each category or user, chosen on dev prompts, and what it is worth on test; nothing is decoded."""

import pandas as pd

from steerlib.evaluation.controls import CURVE, one_alpha_each
from steerlib.evaluation.summary import compare, subgroups

BY = {"category": "category", "user": "user_id"}
"""What an alpha is chosen for, and the column of the prompts table that says whose it is."""
SHRINKAGE = 8
"""How many prompts the curve over all dev prompts counts for beside a group's own."""
CHOSEN = [*CURVE, "by", "group", "alpha", "arm_id", "global_alpha", "global_arm_id"]


def personal_alphas(
    values: pd.DataFrame,
    prompts: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    by: str,
    base_arm: str,
    min_prompts: int,
    column: str,
) -> pd.DataFrame:
    """The alpha of each category or user with the largest fall of a measure D on its dev prompts.

        fall_g(alpha) = (n_g mean_g + 8 mean_all) / (n_g + 8),   mean_g: of D(base) - D(alpha) over dev prompts of g

    Base takes part with alpha 0 and a fall of 0; ties go to the smaller alpha. A group with fewer than
    `min_prompts` dev prompts takes the global alpha, the best over all dev prompts. D is a column of `per_prompt`.
    `by` is "category" (of the prompt's user, c*(u); needs splits by users) or "user" (needs splits by conversations).

    A row a curve and group, columns `CHOSEN`. A ValueError for splits that do not serve `by`, no dev prompts, a dev
    prompt without a value under some arm, or two arms of one curve and alpha.
    """
    _check_splits(prompts, by)
    dev = prompts[prompts["split"] == "dev"].set_index("prompt_id")
    steered = arms[arms["arm_id"].isin(values["arm_id"]) & (arms["alpha"] != 0)]
    table = values.pivot(index="prompt_id", columns="arm_id", values=column).reindex(dev.index)
    rows = []
    for curve, group in steered.groupby(list(CURVE), sort=True):
        alpha = one_alpha_each(group) | {base_arm: 0.0}
        own = table.reindex(columns=sorted(alpha, key=lambda arm: abs(alpha[arm])))
        if own.isna().any(axis=None):
            prompt, arm = own.isna().stack().idxmax()
            raise ValueError(f"dev prompt {prompt!r} has no value under arm {arm!r}: finish the sweep first")
        falls = -own.sub(own[base_arm], axis=0)
        everywhere = str(falls.mean().idxmax())  # the first of equals; columns run from the base upwards
        for name in sorted(prompts[BY[by]].unique()):
            part = falls[dev[BY[by]] == name]
            enough = len(part) >= min_prompts
            best = str((part.sum() + SHRINKAGE * falls.mean()).idxmax()) if enough else everywhere
            rows.append([*curve, by, name, alpha[best], best, alpha[everywhere], everywhere])
    return pd.DataFrame(rows, columns=CHOSEN)


def _check_splits(prompts: pd.DataFrame, by: str) -> None:
    """Refuse splits under which an alpha by category or user would leak, or could not be chosen."""
    dev, test = (prompts[prompts["split"] == split] for split in ("dev", "test"))
    both = set(dev["user_id"]) & set(test["user_id"])
    if dev.empty:
        raise ValueError(f"no dev prompts to choose alpha on; splits are {sorted(set(prompts['split']))}")
    if by == "category" and both:
        raise ValueError(f"user {min(both)!r} has dev and test prompts: a category needs splits by users")
    if by == "user" and not both and len(test):
        raise ValueError("no user has dev and test prompts: a user's alpha needs splits by conversations")


def tuned_arm(
    values: pd.DataFrame,
    alphas: pd.DataFrame,
    prompts: pd.DataFrame,
    *,
    base_arm: str,
    scorer: str,
) -> pd.DataFrame:
    """Metrics on test prompts of each curve with the alphas of `personal_alphas`, against base and its global alpha.

    Rows of the metrics table: arm_id is the curve's columns and `alpha-by-category` or `-user`, joined by "-"; it is in
    no arms table, so every metric of `summarise` has `tuned_` before its name.
    """
    members = [one for one in subgroups(prompts) if one.split == "test"]
    test = prompts[prompts["split"] == "test"]
    parts, against = [values], {}
    for _, chosen in alphas.groupby([*CURVE, "by"], sort=True):
        first = chosen.iloc[0]
        words = [first[name] for name in CURVE if first[name] not in ("", "none")]
        name = "-".join([*words, f"alpha-by-{first['by']}"])
        arm = test[BY[first["by"]]].map(chosen.set_index("group")["arm_id"])
        parts.append(test[["prompt_id"]].assign(arm_id=arm).merge(values).assign(arm_id=name))
        same = (chosen["arm_id"] == chosen["global_arm_id"]).all()
        against[name] = [base_arm] if same else [base_arm, first["global_arm_id"]]
    found = compare(pd.concat(parts), members, against, scorer=scorer)
    found = found[found["arm_id"].isin(against)].reset_index(drop=True)
    return found.assign(metric="tuned_" + found["metric"])
