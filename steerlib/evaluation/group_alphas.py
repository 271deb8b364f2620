"""Arms that were never decoded: each prompt's answer taken from the arm of its category's or user's alpha.

An alpha for each category or each user, chosen on dev prompts; and what it is worth on test prompts.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from steerlib.evaluation.answers import comparisons, measures
from steerlib.evaluation.metrics import setting, without_alpha
from steerlib.evaluation.summary import by_arm, subgroups
from steerlib.tables import SCHEMA

BY = {"category": "category", "user": "user_id"}
"""What an alpha is chosen for, and the column of the prompts table that says whose it is."""

Curves = pd.DataFrame
"""Paired fall of the distance, base less arm: a row a dev prompt, a column an alpha, 0 being the base."""


def personal_alphas(
    values: pd.DataFrame,
    prompts: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    by: str,
    base_arm: str,
    min_prompts: int = 8,
    shrinkage: float = 8.0,
    column: str = "distance",
) -> pd.DataFrame:
    """The alpha of each category or user with the largest fall of the distance on its dev prompts.

        fall_g(alpha) = (n_g mean_g + shrinkage mean_all) / (n_g + shrinkage)
        mean_g        = mean over dev prompts of g of D(base) - D(alpha)

    Base takes part with alpha 0 and a fall of 0; ties go to the smaller alpha. With fewer than `min_prompts` dev
    prompts a group takes the global alpha, the best over all dev prompts: a user's few prompts say little, and an
    alpha chosen on them would be chosen by chance.

    Args:
        values: what `per_prompt` returned; rows of test prompts are not looked at.
        prompts: prompt_id, user_id, category, split, and conversation_id where it is known.
        arms: the arms table.
        by: "category" (of the prompt's user, c*(u); needs splits by users) or "user" (needs splits by
            conversations, so that a user has dev and test prompts).
        base_arm: arm_id of the base.
        min_prompts: dev prompts that a category or user needs for an alpha of its own.
        shrinkage: how many prompts the curve over all dev prompts counts for beside the group's own; 0 for none.
        column: of `values`; what is made small.

    Returns:
        A row a curve over alpha and group with prompts (one that has only test prompts too): method, profile,
        family, vector_user, variant, by, group, alpha, arm_id, global_alpha, global_arm_id, n_prompts (dev), own (False
        where the global alpha was taken), chosen_on (ids of the prompts that the choice used).

    Raises:
        ValueError: unknown `by`, splits that do not serve it, no dev prompts, a dev prompt without a value under
            some arm, or two arms of one setting and alpha.
    """
    if by not in BY:
        raise ValueError(f"by must be {' or '.join(map(repr, BY))}, not {by!r}")
    if min_prompts < 1 or shrinkage < 0:
        raise ValueError(f"min_prompts {min_prompts} must be 1 or more, shrinkage {shrinkage} 0 or more")
    check_splits_serve(prompts, by)
    dev = prompts[prompts["split"] == "dev"].set_index("prompt_id")
    steered = arms[arms["arm_id"].isin(values["arm_id"]) & ~without_alpha(arms)]
    table = values[values["prompt_id"].isin(dev.index)].pivot(
        index="prompt_id", columns="arm_id", values=column
    )
    rows = []
    names = setting(steered)
    for values_of, group in steered.groupby(names, sort=True):
        curves = _falls(table.reindex(dev.index), group, base_arm)
        for row in _choices(curves, dev[BY[by]], sorted(prompts[BY[by]].unique()), min_prompts, shrinkage):
            ids = {0.0: base_arm} | dict(zip(group["alpha"], group["arm_id"], strict=True))
            named = {"arm_id": ids[row["alpha"]], "global_arm_id": ids[row["global_alpha"]]}
            rows.append({**dict(zip(names, values_of, strict=True)), "by": by, **row, **named})
    return pd.DataFrame(rows)


def _falls(table: pd.DataFrame, arms: pd.DataFrame, base_arm: str) -> Curves:
    if arms["alpha"].duplicated().any():
        alpha = arms.loc[arms["alpha"].duplicated(), "alpha"].iloc[0]
        raise ValueError(f"{arms['method'].iloc[0]} has several arms of alpha {alpha}: give one setting")
    ordered = arms[arms["alpha"] != 0].sort_values("alpha", key=np.abs)
    needed = [base_arm, *ordered["arm_id"]]
    missing = table.reindex(columns=needed).isna()
    if missing.any(axis=None):
        prompt, arm = missing.stack().idxmax()
        raise ValueError(f"dev prompt {prompt!r} has no value under arm {arm!r}: finish the sweep first")
    falls = -table[needed].sub(table[base_arm], axis=0)
    return falls.set_axis([0.0, *ordered["alpha"]], axis=1)


def _choices(
    curves: Curves, owner: pd.Series, groups: list[str], min_prompts: int, shrinkage: float
) -> list[dict]:
    together = curves.mean()
    everywhere = _best(together)
    rows = []
    for group in groups:
        own = curves[owner == group]
        enough = len(own) >= min_prompts
        shrunk = (own.sum() + shrinkage * together) / (len(own) + shrinkage) if enough else together
        used = own.index if enough and not shrinkage else curves.index
        rows.append(
            {
                "group": group,
                "alpha": _best(shrunk),
                "global_alpha": everywhere,
                "n_prompts": len(own),
                "own": enough,
                "chosen_on": tuple(used),
            }
        )
    return rows


def _best(falls: pd.Series) -> float:
    # The first of equals, and columns run from 0 upwards.
    return float(falls.index[int(falls.to_numpy().argmax())])


def check_splits_serve(prompts: pd.DataFrame, by: str) -> None:
    """Refuse splits under which an alpha by category or user would leak, or could not be chosen.

    Raises:
        ValueError: no dev prompts; a conversation in both dev and test; by category, a user in both; by user, no
            user in both.
    """
    dev, test = (prompts[prompts["split"] == split] for split in ("dev", "test"))
    if dev.empty:
        raise ValueError(f"no dev prompts to choose alpha on; splits are {sorted(set(prompts['split']))}")
    both = sorted(set(dev["user_id"]) & set(test["user_id"]))
    if by == "category" and both:
        raise ValueError(
            f"user {both[0]!r} has dev and test prompts: an alpha by category needs splits by users"
        )
    if by == "user" and not both and len(test):
        raise ValueError(
            "no user has both dev and test prompts: an alpha by user needs splits by conversations"
        )
    if "conversation_id" in prompts:
        shared = sorted(set(dev["conversation_id"]) & set(test["conversation_id"]))
        if shared:
            raise ValueError(f"conversation {shared[0]!r} is in both dev and test")


PREFIX = "tuned_"


def tuned_arm(
    values: pd.DataFrame,
    alphas: pd.DataFrame,
    prompts: pd.DataFrame,
    *,
    base_arm: str,
    scorer: str,
    users: pd.DataFrame | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """Metrics on test prompts of each method with an alpha by category or by user, beside its global alpha.

    The answer to a prompt is that of the existing arm with the alpha of the prompt's category or user; nothing is
    decoded. It is compared, on the same prompts and clustered by user, with the base and with the arm of the global
    alpha: whether an alpha of one's own is worth anything is the second comparison.

    Args:
        values: what `per_prompt` returned.
        alphas: what `personal_alphas` returned.
        prompts: the prompts table that they were chosen on.
        base_arm: arm_id of the base.
        scorer: id of the scorer of the values.
        users: the users table, for subgroups.
        level: confidence of the intervals.

    Returns:
        Rows of the metrics table, split "test". arm_id is `<method>-<profile>[-<family>][-<variant>]-alpha-by-` and
        "category" or "user", which is in no arms table, so every metric has `tuned_` before its name in `summarise`:
        tuned_distance and so on with comparator "", tuned_reduction_percent and so on with comparators `base_arm` and
        the arm of the global alpha (once where that is the base).

    Raises:
        ValueError: an alpha was chosen on a test prompt or on a conversation of one, see `check_no_leak`; a test
            prompt without alpha or without a value under its arm.
    """
    check_no_leak(alphas, prompts)
    frames = by_arm(values)
    members = [one for one in subgroups(prompts, users) if one.split == "test"]
    rows = []
    test = prompts[prompts["split"] == "test"].set_index("prompt_id")
    for _, chosen in alphas.groupby([*setting(alphas), "by"], sort=True):
        by, name = str(chosen["by"].iloc[0]), tuned_name(chosen.iloc[0])
        own = _taken(frames, chosen, test[BY[by]])
        against = dict.fromkeys([base_arm, chosen["global_arm_id"].iloc[0]])
        for split, subgroup, of_users in members:
            part, labels = own.loc[of_users.index], of_users.to_numpy()
            found = [("", *one) for one in measures(part, labels, level)]
            for comparator in against:
                other = frames[comparator].loc[of_users.index]
                found += [(comparator, *one) for one in comparisons(other, part, labels, level)]
            rows += [
                [name, other, split, subgroup, scorer, PREFIX + metric, *i[:5]] for other, metric, i in found
            ]
    return pd.DataFrame(rows, columns=list(SCHEMA["metrics"].columns))


def tuned_name(row: pd.Series) -> str:
    """Name of the arm that a row of `personal_alphas` belongs to."""
    parts = [part for part in row[setting(row)] if part and part != "none"]
    return "-".join([*parts, f"alpha-by-{row['by']}"])


def _taken(frames: dict[str, pd.DataFrame], chosen: pd.DataFrame, owner: pd.Series) -> pd.DataFrame:
    """Values of each test prompt under the arm that its group chose; `owner` is the group by prompt_id."""
    arm = owner.map(chosen.set_index("group")["arm_id"])
    if arm.isna().any():
        raise ValueError(f"no alpha was chosen for {owner[arm.isna()].iloc[0]!r}, which has test prompts")
    return pd.concat(list(_parts(frames, arm)))


def _parts(frames: dict[str, pd.DataFrame], arm_of: pd.Series) -> Iterator[pd.DataFrame]:
    for arm, rows in arm_of.groupby(arm_of):
        missing = rows.index.difference(frames[str(arm)].index) if str(arm) in frames else rows.index
        if len(missing):
            raise ValueError(f"test prompt {missing[0]!r} has no value under arm {arm!r}")
        yield frames[str(arm)].loc[rows.index]


def check_no_leak(alphas: pd.DataFrame, prompts: pd.DataFrame) -> None:
    """Refuse alphas that were chosen with the help of what they are reported on.

    Raises:
        ValueError: a prompt that an alpha was chosen on is a test prompt, or is not in the prompts; or the splits do
            not serve the choice, see `personal_alphas`.
    """
    split = prompts.set_index("prompt_id")["split"]
    for group, alpha, chosen_on in zip(alphas["group"], alphas["alpha"], alphas["chosen_on"], strict=True):
        used = split.reindex(list(chosen_on))
        if used.isna().any():
            raise ValueError(
                f"alpha of {group!r} was chosen on {used.index[used.isna()][0]!r}: no such prompt"
            )
        if (used == "test").any():
            prompt = used.index[used == "test"][0]
            raise ValueError(f"alpha {alpha:g} of {group!r} was chosen on test prompt {prompt!r}")
    for by in alphas["by"].unique():
        check_splits_serve(prompts, by)
