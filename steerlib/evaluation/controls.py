"""Which arms are compared: alpha is chosen on dev prompts, controls are matched at equal alpha and at equal KL."""

import numpy as np
import pandas as pd

from steerlib.evaluation.metrics import CURVE


def chosen_arms(
    metrics: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    base_arm: str,
    metric: str = "reduction_percent",
    max_perplexity_ratio: float = np.inf,
) -> pd.DataFrame:
    """The arm of each curve at the alpha chosen on dev prompts; the base, alpha 0, where nothing helps.

    Test rows are not looked at. Ties go to the smaller alpha.

    Args:
        metrics, arms: the tables; rows against `base_arm` over all prompts are read.
        metric: what is made large on dev prompts.
        max_perplexity_ratio: alphas whose dev perplexity is above so many times the base's take no part.

    Returns:
        A row a curve: the columns of `CURVE`, alpha, arm_id, and `dev`, the metric on dev at that alpha (0 at the
        base). Methods without an alpha (base, contexts as a prompt) have none.

    Raises:
        ValueError: no dev rows of the metric, or two arms of one curve and alpha.
    """
    names = [column for column in CURVE if column in arms]
    rows = metrics[
        (metrics["subgroup"] == "all") & (metrics["comparator"] == base_arm) & (metrics["split"] == "dev")
    ]
    costly = rows.loc[
        (rows["metric"] == "perplexity_ratio") & (rows["value"] > max_perplexity_ratio), "arm_id"
    ]
    rows = rows[rows["metric"] == metric].merge(arms.loc[arms["alpha"] != 0, ["arm_id", "alpha", *names]])
    if rows.empty:
        raise ValueError(f"no rows of {metric!r} of a steered arm against {base_arm!r} over all dev prompts")
    rows = rows.assign(
        size=rows["alpha"].abs(), dev=rows["value"].where(~rows["arm_id"].isin(costly), -np.inf)
    )
    chosen = []
    for values, group in rows.groupby(names, sort=True):
        if group["alpha"].duplicated().any():
            raise ValueError(
                f"{group['arm_id'].iloc[0]!r} has several arms at one alpha: give one curve's at a time"
            )
        best = group.sort_values(["dev", "size"], ascending=[False, True]).iloc[0]
        found = best[["alpha", "arm_id", "dev"]] if best["dev"] > 0 else (0.0, base_arm, 0.0)
        chosen.append([*values, *found])
    return pd.DataFrame(chosen, columns=[*names, "alpha", "arm_id", "dev"])


VARIES = ["arm_id", "alpha", "family", "vector", "vector_user", "control", "profile", "variant"]
"""Columns of the arms table in which a control may differ from the arm that it controls."""
EQUAL_KL = 1.5
"""KL per token of arm and control count as equal up to this factor."""


def kl_on_dev(values: pd.DataFrame, prompts: pd.DataFrame) -> pd.Series:
    """KL per token of each arm over the dev prompts, over all prompts where there are none; see `match_controls`."""
    dev = prompts.loc[prompts["split"] == "dev", "prompt_id"]
    rows = values[values["prompt_id"].isin(dev)] if len(dev) else values
    sums = rows.groupby("arm_id")[["kl_to_base", "n_tokens"]].sum()
    return sums["kl_to_base"] / sums["n_tokens"].where(sums["n_tokens"] > 0)


def equal_kl_multiple(kl: pd.Series, target: float) -> float:
    """Multiple of a vector at which its KL per token is the target: log-log interpolation between those tried.

    Args:
        kl: nats per token, by multiple.
        target: nats per token.

    Raises:
        ValueError: the target lies outside what was tried; both ends are shown.
    """
    tried = kl.sort_values()
    if not 0 < tried.iloc[0] <= target <= tried.iloc[-1]:
        ends = f"{tried.iloc[0]:.3g} (at {tried.index[0]:g}) to {tried.iloc[-1]:.3g} (at {tried.index[-1]:g})"
        raise ValueError(f"KL {target:.3g} is outside of {ends} nats per token: try other multiples")
    return float(np.exp(np.interp(np.log(target), np.log(tried), np.log(tried.index.to_numpy(float)))))


def match_controls(arms: pd.DataFrame, kl: pd.Series | None = None) -> pd.DataFrame:
    """The controls of each arm under study: the same settings with a shuffled profile or a random vector.

    Args:
        arms: the arms table.
        kl: KL per token by arm_id, from dev prompts; None for controls at equal alpha alone.

    Returns:
        arm_id, control_arm, kind ("shuffled_profile", "random_vector"), matched: "alpha" (for vectors that is equal
        norm) or "kl", the control of nearest KL where it is within a factor of 1.5. One control may stand in two
        rows.
    """
    settings = [column for column in arms if column not in VARIES]
    both = arms[arms["control"] == ""].merge(
        arms[arms["control"].isin(["shuffled_profile", "random_vector"])],
        on=settings,
        suffixes=("", "_control"),
    )
    shuffled = both["control_control"] == "shuffled_profile"
    if "family" in arms:
        both = both[~shuffled | (both["family"] == both["family_control"])]
    both = both.rename(columns={"arm_id_control": "control_arm", "control_control": "kind"})
    found = [both[both["alpha"] == both["alpha_control"]].assign(matched="alpha")]
    if kl is not None:
        with np.errstate(all="ignore"):
            kls = [both[name].map(kl).astype(float) for name in ("control_arm", "arm_id")]
            apart = np.abs(np.log(kls[0] / kls[1]))
        near = both.assign(apart=apart, matched="kl")[apart <= np.log(EQUAL_KL)].sort_values(
            "apart", kind="stable"
        )
        found.append(near)
    table = pd.concat(found).drop_duplicates(["arm_id", "kind", "matched"])
    return table[["arm_id", "control_arm", "kind", "matched"]].reset_index(drop=True)


def with_controls(chosen: pd.DataFrame, arms: pd.DataFrame) -> pd.DataFrame:
    """Chosen arms under study, each followed by its controls at the same alpha, then the contexts as a plain prompt.

    Args:
        chosen: what `chosen_arms` returned; arms: the arms table.

    Returns:
        Rows of `arms`, each once; none where the base was chosen throughout. A control has no alpha of its own to
        choose: it answers what the same strength does without the signal.
    """
    picked = arms.loc[arms["arm_id"].isin(chosen["arm_id"]) & (arms["control"] == ""), "arm_id"]
    matched = match_controls(arms)
    ids = [one for arm in picked for one in (arm, *matched.loc[matched["arm_id"] == arm, "control_arm"])]
    if ids:
        plain = (arms["alpha"] == 0) & (arms["control"] != "base") & (arms["profile"] != "shuffled")
        ids += arms.loc[plain, "arm_id"].tolist()
    return arms.set_index("arm_id").loc[list(dict.fromkeys(ids))].reset_index()[list(arms)]
