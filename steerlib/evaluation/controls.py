"""Which arms are compared: alpha is chosen on dev prompts, controls are matched at equal alpha and at equal KL."""

import numpy as np
import pandas as pd

CURVE = ("method", "profile", "family", "vector_user", "control", "variant")
"""Columns of the arms table that identify a dose-response curve; its points differ in alpha."""


def first_temperature(arms: pd.DataFrame) -> pd.DataFrame:
    """Arms sampled as the first base; others go to `quality_by_sampling`. A ValueError without a base."""
    base = arms[arms["control"] == "base"]
    if base.empty:
        raise ValueError("the arms have no base")
    return arms[arms["temperature"] == base["temperature"].iloc[0]].reset_index(drop=True)


def one_alpha_each(curve: pd.DataFrame) -> dict[str, float]:
    """Alpha by arm_id of one curve's arms; a ValueError where two of them have one alpha."""
    if curve["alpha"].duplicated().any():
        raise ValueError(f"{curve['arm_id'].iloc[0]!r} has several arms at one alpha: give one curve's")
    return dict(zip(curve["arm_id"], curve["alpha"], strict=True))


def chosen_arms(
    metrics: pd.DataFrame, arms: pd.DataFrame, *, base_arm: str, max_perplexity_ratio: float
) -> pd.DataFrame:
    """The arm of each curve that lowers toxicity most on dev prompts; the base, alpha 0, where nothing helps.

    Arms whose perplexity ratio on dev exceeds the limit anywhere in its interval take no part: the value alone within
    the limit would often fail it on test. Ties go to the smaller alpha. A row a curve with an alpha: the columns of
    `CURVE`, alpha, arm_id, and `dev`, the reduction (0 at the base). A ValueError for no dev rows of the reduction, or
    two arms of one curve and alpha.
    """
    metric, names = "toxicity_reduction_percent", list(CURVE)
    over_all = (metrics["subgroup"] == "all") & (metrics["split"] == "dev")
    rows = metrics[over_all & (metrics["comparator"] == base_arm)]
    ratio = rows[rows["metric"] == "perplexity_ratio"]
    costly = ratio.loc[ratio[["value", "high"]].max(axis=1) > max_perplexity_ratio, "arm_id"]
    rows = rows[rows["metric"] == metric].merge(arms.loc[arms["alpha"] != 0, ["arm_id", "alpha", *names]])
    if rows.empty:
        raise ValueError(f"no rows of {metric!r} of a steered arm against {base_arm!r} over all dev prompts")
    rows["size"], rows["dev"] = rows["alpha"].abs(), rows["value"].mask(rows["arm_id"].isin(costly), -np.inf)
    chosen = []
    for values, group in rows.groupby(names, sort=True):
        one_alpha_each(group)
        best = group.sort_values(["dev", "size"], ascending=[False, True]).iloc[0]
        found = best[["alpha", "arm_id", "dev"]] if best["dev"] > 0 else (0.0, base_arm, 0.0)
        chosen.append([*values, *found])
    return pd.DataFrame(chosen, columns=[*names, "alpha", "arm_id", "dev"])


VARIES = ["arm_id", "alpha", "family", "vector", "vector_user", "control", "profile", "variant"]
"""Columns of the arms table in which a control may differ from the arm that it controls."""
KINDS = ("shuffled_profile", "random_vector")
NEAR = 1.5
"""Beyond the ends of a control's alphas its outermost arm serves where its KL is within this factor."""


def kl_on_dev(values: pd.DataFrame, prompts: pd.DataFrame) -> pd.Series:
    """KL per token of each arm over the dev prompts, over all prompts where there are none."""
    dev = prompts.loc[prompts["split"] == "dev", "prompt_id"]
    rows = values[values["prompt_id"].isin(dev)] if len(dev) else values
    sums = rows.groupby("arm_id")[["kl_to_base", "n_tokens"]].sum()
    return sums["kl_to_base"] / sums["n_tokens"].where(sums["n_tokens"] > 0)


def equal_kl_multiple(kl: pd.Series, target: float) -> float:
    """Multiple of a vector at which its KL per token is the target: log-log interpolation between those tried.

    `kl` is by multiple, in nats per token as the target. A ValueError shows both ends where the target lies outside.
    """
    tried = kl.sort_values()
    if not 0 < tried.iloc[0] <= target <= tried.iloc[-1]:
        ends = f"{tried.iloc[0]:.3g} (at {tried.index[0]:g}) to {tried.iloc[-1]:.3g} (at {tried.index[-1]:g})"
        raise ValueError(f"KL {target:.3g} is outside of {ends} nats per token: try other multiples")
    return float(np.exp(np.interp(np.log(target), np.log(tried), np.log(tried.index.to_numpy(float)))))


def match_controls(arms: pd.DataFrame, kl: pd.Series | None = None) -> pd.DataFrame:
    """The controls of each arm under study: the same settings with a shuffled profile or a random vector.

    At equal KL the control lies between the two alphas of its curve, on the arm's side of 0, whose KL per token are
    next below and above the arm's; beyond the curve's ends its outermost arm is taken alone, within a factor of 1.5:

        control = weight * control_arm + (1 - weight) * other_arm,   weights linear in KL per token, see `mix_controls`

    `kl` is KL per token by arm_id, see `kl_on_dev`; without it there are controls at equal alpha alone.

    Returns:
        arm_id, control_arm, kind ("shuffled_profile", "random_vector"), matched ("alpha", for vectors that is equal
        norm, or "kl"), other_arm ("" where control_arm stands alone), weight (of control_arm, the nearer of the two).
    """
    settings = [column for column in arms if column not in VARIES]
    controls = arms[arms["control"].isin(KINDS)]
    both = arms[arms["control"] == ""].merge(controls, on=settings, suffixes=("", "_control"))
    both = both.rename(columns={"arm_id_control": "control_arm", "control_control": "kind"})
    both = both[(both["kind"] != "shuffled_profile") | (both["family"] == both["family_control"])]
    both = both.assign(other_arm="", weight=1.0)
    found = [both[both["alpha"] == both["alpha_control"]].assign(matched="alpha")]
    if kl is not None:
        both["own"], both["other"] = (both[one].map(kl).astype(float) for one in ("arm_id", "control_arm"))
        same_side = np.sign(both["alpha"]) == np.sign(both["alpha_control"])
        both = both[same_side & (both["own"] > 0) & (both["other"] > 0)]
        curve = [f"{name}_control" for name in VARIES if f"{name}_control" in both and name != "alpha"]
        for _, rows in both.groupby(["arm_id", "kind", *curve], sort=False, dropna=False):
            found.append(_between(rows.sort_values("other", kind="stable")).assign(matched="kl"))
    table = pd.concat(found).drop_duplicates(["arm_id", "kind", "matched"])
    return table[["arm_id", "control_arm", "kind", "matched", "other_arm", "weight"]].reset_index(drop=True)


def _between(rows: pd.DataFrame) -> pd.DataFrame:
    """The row of the nearer neighbour in KL, with the other neighbour and the weight; no row where there is none."""
    own, kls = rows["own"].iloc[0], rows["other"].to_numpy()
    above = int(np.searchsorted(kls, own))
    if 0 < above < len(rows):
        share = (own - kls[above - 1]) / (kls[above] - kls[above - 1])
        near, far = (above, above - 1) if share >= 0.5 else (above - 1, above)
        return rows.iloc[[near]].assign(other_arm=rows["control_arm"].iloc[far], weight=max(share, 1 - share))
    end = rows.iloc[[min(above, len(rows) - 1)]]
    return end[(end["own"] <= NEAR * end["other"]) & (end["other"] <= NEAR * end["own"])]


def mix_controls(values: pd.DataFrame, matched: pd.DataFrame) -> pd.DataFrame:
    """Each arm's control at equal KL, prompt by prompt: its two neighbours' values, weighted; see `match_controls`.

    It measures a control that answers with one of two alphas, drawn with these probabilities. Returns the columns of
    `values` (see `per_prompt`), arm_id being the arm under study, and kind.
    """
    by_arm, parts = dict(list(values.set_index("prompt_id").groupby("arm_id"))), []
    for row in matched[matched["matched"] == "kl"].itertuples():
        mixed = by_arm[row.control_arm].drop(columns="arm_id")
        if row.other_arm:
            mixed = row.weight * mixed + (1 - row.weight) * by_arm[row.other_arm].drop(columns="arm_id")
        parts.append(mixed.reset_index().assign(arm_id=row.arm_id, kind=row.kind))
    return pd.concat(parts, ignore_index=True) if parts else values.head(0).assign(kind="")


def with_controls(chosen: pd.DataFrame, arms: pd.DataFrame) -> pd.DataFrame:
    """Chosen arms under study, each followed by its controls at the same alpha, then the contexts as a plain prompt.

    Rows of `arms`, each once; none where `chosen_arms` chose the base throughout.
    """
    picked = arms.loc[arms["arm_id"].isin(chosen["arm_id"]) & (arms["control"] == ""), "arm_id"]
    matched = match_controls(arms)
    ids = [one for arm in picked for one in (arm, *matched.loc[matched["arm_id"] == arm, "control_arm"])]
    if ids:
        plain = (arms["alpha"] == 0) & (arms["control"] != "base") & (arms["profile"] != "shuffled")
        ids += arms.loc[plain, "arm_id"].tolist()
    return arms.set_index("arm_id").loc[list(dict.fromkeys(ids))].reset_index()[list(arms)]
