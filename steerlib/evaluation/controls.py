"""The controls that a chosen arm is read beside: the same dose without the signal, and the signal as a plain prompt."""

import pandas as pd

from steerlib.evaluation.settings import family, setting
from steerlib.generation.grid import CONTROL_VECTOR

AS_PROMPT = {"anti_expert": "prompt_only", "expert_anti_expert": "prompt_only", "sda": "instructed"}
"""What a method's context does when it is merely put before the prompt."""


def with_controls(chosen: pd.DataFrame, arms: pd.DataFrame) -> pd.DataFrame:
    """Chosen arms, each with its controls at the same alpha.

    The control of a logit rule or of a personal vector is the shuffled profile, that of every steering vector the
    random vector. A control has no alpha of its own to choose: it answers what the same dose does without the
    signal. Last come the contexts as a plain prompt, and the external aligner.

    Args:
        chosen: what `chosen_arms` returned.
        arms: the arms table.

    Returns:
        Rows of `arms`, each once: methods whose chosen alpha is not 0, each followed by its controls where the run
        has them.
    """
    random = arms["vector"].str.startswith(CONTROL_VECTOR)
    control = (arms["profile"] == "shuffled") | random
    picked = arms[arms["arm_id"].isin(chosen["arm_id"]) & ~control & (arms["method"] != "base")]
    rows = []
    for _, arm in picked.iterrows():
        rows += [arm.to_frame().T, arms[_shuffled(arms, arm) | (random & _same(arms, arm, but="profile"))]]
    as_prompt = {*picked["method"].map(AS_PROMPT), "aligner"}
    plain = arms["method"].isin(as_prompt) & (arms["profile"] != "shuffled")
    rows += [arms[plain]] if rows else []
    found = pd.concat(rows)["arm_id"].drop_duplicates() if rows else arms["arm_id"].head(0)
    return arms.set_index("arm_id").loc[found].reset_index()[list(arms)]


def _shuffled(arms: pd.DataFrame, arm: pd.Series) -> pd.Series:
    """The same signal of another user."""
    same = family(arms["vector"]) == arm["vector"].split("@")[0]
    return (
        (arms["profile"] == "shuffled") & (arm["profile"] == "own") & same & _same(arms, arm, but="profile")
    )


def _same(arms: pd.DataFrame, arm: pd.Series, *, but: str) -> pd.Series:
    """Arms of the same alpha and settings, whatever their vector."""
    names = ["alpha", *(name for name in setting(arms) if name not in ("vector", but))]
    return (arms[names] == arm[names]).all(axis=1)
