"""The controls that a chosen arm is read beside: the same method at the same alpha, without the signal."""

import pandas as pd


def with_controls(chosen: pd.DataFrame, arms: pd.DataFrame) -> pd.DataFrame:
    """Chosen arms, each with its control at the same alpha.

    The control of a logit rule is the shuffled profile, that of a steering vector the random vector. A control has no
    alpha of its own to choose: it answers what the same dose does without the signal.

    Args:
        chosen: what `chosen_arms` returned.
        arms: the arms table.

    Returns:
        Rows of `arms`: methods whose chosen alpha is not 0, each followed by its control where the run has one.
    """
    control = (arms["profile"] == "shuffled") | arms["vector"].str.startswith("random")
    picked = arms[arms["arm_id"].isin(chosen["arm_id"]) & ~control & (arms["method"] != "base")]
    rows = []
    for arm in picked.to_dict("records"):
        twins = control & (arms["method"] == arm["method"]) & (arms["alpha"] == arm["alpha"])
        rows += [pd.DataFrame([arm]), arms[twins]]
    return pd.concat(rows, ignore_index=True) if rows else arms.head(0)
