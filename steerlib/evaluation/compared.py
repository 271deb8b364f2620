"""SDA's answers beside those that it has to beat: as a judge is shown them, and its verdicts in the metrics table."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from steerlib.judges import ComparingJudge, verdicts
from steerlib.tables import SCHEMA

COUNTED = ("win", "even", "lose")


def sda_comparators(arms: pd.DataFrame) -> dict[str, str]:
    """What SDA is compared with, in the words of the paper: arm_id by name, of those that the run has.

    base; instructed, the instruction as a plain prompt, which the paper does not show; steering_only, SDA at one
    temperature, where the first SDA arm changes it; aligner, the base's answers corrected by an external model.

    Args:
        arms: the arms table at one temperature, see `first_temperature`.
    """
    sda = arms[(arms["method"] == "sda") & (arms["profile"] == "own")]
    found = {"base": arms[arms["method"] == "base"]}
    found["instructed"] = arms[(arms["method"] == "instructed") & (arms["js_sigma"] == 0)]
    if len(sda) and sda["js_sigma"].iloc[0]:
        like = ["alpha", "factor"]
        found["steering_only"] = sda[(sda["js_sigma"] == 0) & (sda[like] == sda[like].iloc[0]).all(axis=1)]
    found["aligner"] = arms[arms["method"] == "aligner"]
    return {name: rows["arm_id"].iloc[0] for name, rows in found.items() if len(rows)}


def compared_answers(
    generations: pd.DataFrame,
    prompts: pd.DataFrame,
    *,
    arm: str,
    comparators: Mapping[str, str],
    dimension: Mapping[str, str],
    split: str | None = "test",
) -> pd.DataFrame:
    """Each answer of an arm beside the comparators' answers to the same prompt with the same seed.

    Args:
        generations: the generations table.
        prompts: prompt_id, prompt, user_id and, for `split`, split.
        arm: arm_id.
        comparators: arm_id by name.
        dimension: of each prompt_id, what is judged; prompts without one are left out.
        split: prompts of this split only; None for all.

    Returns:
        comparator (the name), dimension, prompt_id, seed, prompt, text, other, cluster (the user).

    Raises:
        ValueError: a comparator lacks some of the arm's answers.
    """
    asked = prompts if split is None else prompts[prompts["split"] == split]
    asked = asked[["prompt_id", "prompt", "user_id"]].rename(columns={"user_id": "cluster"})
    asked = asked.assign(dimension=asked["prompt_id"].map(dimension)).dropna(subset="dimension")
    answers = generations[["arm_id", "prompt_id", "seed", "text"]]
    own = answers[answers["arm_id"] == arm].drop(columns="arm_id").merge(asked, on="prompt_id")
    parts = []
    for name, other in comparators.items():
        theirs = answers[answers["arm_id"] == other].drop(columns="arm_id").rename(columns={"text": "other"})
        both = own.merge(theirs, on=["prompt_id", "seed"], how="left", validate="one_to_one")
        if both["other"].isna().any():
            raise ValueError(f"{name} ({other}) lacks {both['other'].isna().sum()} of {len(both)} answers")
        parts.append(both.assign(comparator=name))
    columns = ["comparator", "dimension", "prompt_id", "seed", "prompt", "text", "other", "cluster"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def judge_compared(judge: ComparingJudge, compared: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Verdicts on each pair, on the dimension of its prompt, in both orders.

    Args:
        judge: a judge of `load_judge` that compares.
        compared: what `compared_answers` returned.
        folder: the run's folder, where verdicts are kept.

    Returns:
        The rows of `compared` with the columns of `verdicts`, for `order_averaged` and `place_bias`.
    """
    parts = [
        rows.join(verdicts(judge, rows, str(dimension), folder).drop(columns="dimension"))
        for dimension, rows in compared.groupby("dimension", sort=False)
    ]
    return pd.concat(parts).sort_index()


def margin_metrics(
    margins: pd.DataFrame, *, arm: str, comparators: Mapping[str, str], judge: str, split: str = "test"
) -> pd.DataFrame:
    """Net margins as rows of the metrics table: net_margin, and the counts net_margin_win, _even and _lose.

    Args:
        margins: what `margins_by` returned by dimension and comparator.
        arm: arm_id that they are of.
        comparators: arm_id by the name in column `comparator`.
        judge: id of the judge; it stands in column `scorer`.
        split: of the prompts.
    """
    rows = []
    for row in margins.to_dict("records"):
        n = sum(row[kind] for kind in COUNTED)
        head = [arm, comparators[row["comparator"]], split, f"dimension={row['dimension']}", judge]
        rows.append([*head, "net_margin", row["value"], row["low"], row["high"], n, row["n_clusters"]])
        rows += [
            [*head, f"net_margin_{kind}", row[kind], None, None, n, row["n_clusters"]] for kind in COUNTED
        ]
    return pd.DataFrame(rows, columns=list(SCHEMA["metrics"].columns)).astype(
        {name: float for name in ("value", "low", "high")}
    )


def read_margins(metrics: pd.DataFrame, arms: pd.DataFrame) -> pd.DataFrame:
    """Net margins back from the metrics table, as `plot_margins` takes them.

    Args:
        metrics: the metrics table.
        arms: the arms table, for the comparators' names.

    Returns:
        judge, dimension, comparator, value, low, high, win, even, lose, n; empty where the run has none.
    """
    rows = metrics[metrics["metric"].str.startswith("net_margin")]
    key = ["arm_id", "comparator", "subgroup", "scorer"]
    counted = {f"net_margin_{kind}": kind for kind in COUNTED}
    counts = rows[rows["metric"].isin(counted)].pivot(index=key, columns="metric", values="value")
    counts = counts.reindex(columns=list(counted)).rename(columns=counted).astype(int)
    found = rows[rows["metric"] == "net_margin"].set_index(key)[["value", "low", "high", "n"]].join(counts)
    names = {arm: name for name, arm in sda_comparators(arms).items()}
    found = found.reset_index().rename(columns={"scorer": "judge"})
    return found.assign(
        dimension=found["subgroup"].str.removeprefix("dimension="), comparator=found["comparator"].map(names)
    ).drop(columns=["subgroup", "arm_id"])
