"""Net win margin of judged answers, with what a judge's habits do to it: place, and being its own scorer.

SDA's answers beside those that it has to beat: as a judge is shown them, and its verdicts in the metrics table.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from steerlib.evaluation.intervals import Interval, cluster_interval, share_interval
from steerlib.judges import Judge, verdicts
from steerlib.rules import RULES
from steerlib.tables import SCHEMA

COUNTED = ("win", "even", "lose")


def sda_comparators(arms: pd.DataFrame) -> dict[str, str]:
    """What SDA is compared with, in the words of the paper: arm_id by name, of those that the run has.

    base; instructed, the instruction as a plain prompt, which the paper does not show; steering_only, SDA at one
    temperature, where the first SDA arm changes it; aligner, the base's answers corrected by an external model.

    Args:
        arms: the arms table at one temperature, see `first_temperature`.
    """
    rule = arms["method"].map(RULES)
    sda = arms[rule.map(lambda one: one.instructed and one.has_alpha) & (arms["profile"] == "own")]
    found = {name: arms[arms["control"] == name] for name in ("base", "instructed")}
    if len(sda) and sda["js_sigma"].iloc[0]:
        like = ["alpha", "factor"]
        found["steering_only"] = sda[(sda["js_sigma"] == 0) & (sda[like] == sda[like].iloc[0]).all(axis=1)]
    found["aligner"] = arms[rule.map(lambda one: one.acts_on == "text")]
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


def judge_compared(judge: Judge, compared: pd.DataFrame, folder: Path) -> pd.DataFrame:
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


MARGIN_COLUMNS = ["value", "low", "high", "win", "even", "lose", "missing", "n_clusters", "how"]


class Margin(NamedTuple):
    """Net margin with its interval, and how many comparisons were won, even, lost, or lack a score."""

    value: float
    low: float
    high: float
    win: int
    even: int
    lose: int
    missing: int
    n_clusters: int
    how: str


def net_margin(
    scores: ArrayLike,
    other_scores: ArrayLike,
    *,
    tolerance: float = 0.0,
    clusters: ArrayLike | None = None,
) -> Margin:
    """By how much more often an answer is judged better than the other than worse.

        omega = (win - lose) / (win + even + lose),   even where |score - other score| <= tolerance

    The paper calls it win rate; 0 is no difference, and a win rate of one half.

    Args:
        scores, other_scores: of both answers to each prompt, `(n,)`; both orders averaged, see `order_averaged`.
            A pair with a missing score is counted and left out.
        tolerance: difference that is no difference, in points of the judge's scale; the authors also log 3.
        clusters: user or prompt of each pair, `(n,)`; None where each prompt has one pair.

    Returns:
        The margin, its bounds within [-1, 1], see `share_bounds`.

    Raises:
        ValueError: shapes differ, no pair has both scores, or the tolerance is negative.

    Source: SDA, eq. 9. They print no interval.
    """
    own, other = np.asarray(scores, dtype=float), np.asarray(other_scores, dtype=float)
    if own.shape != other.shape or own.ndim != 1:
        raise ValueError(f"scores must be (n,) both, not {own.shape} and {other.shape}")
    if tolerance < 0:
        raise ValueError(f"the tolerance must be 0 or more, not {tolerance}")
    difference = own - other
    known = ~np.isnan(difference)
    if not known.any():
        raise ValueError(f"none of {len(own)} pairs has both scores")
    labels = None if clusters is None else np.asarray(clusters)[known]
    outcome = np.where(np.abs(difference) <= tolerance, 0.0, np.sign(difference))[known]
    found = share_interval(outcome, labels, within=(-1, 1))
    win, even, lose = (int((outcome == sign).sum()) for sign in (1, 0, -1))
    missing = int((~known).sum())
    return Margin(*found[:3], win, even, lose, missing, found.n_clusters, found.how)


def margins_by(
    judged: pd.DataFrame,
    by: Sequence[str] = ("dimension", "comparator"),
    *,
    tolerance: float = 0.0,
) -> pd.DataFrame:
    """Net margins of each dimension against each comparator.

    Args:
        judged: the columns `by`, score, other_score, and cluster where prompts come in clusters.
        by: what to tell apart.
        tolerance: as in `net_margin`.

    Returns:
        The columns `by`, then value, low, high, win, even, lose, missing, n_clusters, how.
    """
    rows = []
    for _, part in judged.groupby(list(by), sort=False):
        clusters = part.get("cluster")
        scores = part["score"], part["other_score"]
        margin = net_margin(*scores, tolerance=tolerance, clusters=clusters)
        rows.append([*part[list(by)].iloc[0], *margin])
    return pd.DataFrame(rows, columns=[*by, *MARGIN_COLUMNS])


def order_averaged(shown: pd.DataFrame) -> pd.DataFrame:
    """Scores of both answers averaged over the two orders in which the judge saw them.

    Args:
        shown: what `judges.verdicts` returned: score and other_score with the text first, score_second and
            other_score_first with the other first.

    Returns:
        The same rows with score and other_score averaged (NaN where either order lacks a score), and
        `first_bonus`: by how many points an answer gains from standing first.
    """
    ahead, behind = shown["score"] - shown["score_second"], shown["other_score_first"] - shown["other_score"]
    averaged = shown.assign(
        score=(shown["score"] + shown["score_second"]) / 2,
        other_score=(shown["other_score"] + shown["other_score_first"]) / 2,
        first_bonus=(ahead + behind) / 2,
    )
    return averaged.drop(columns=["score_second", "other_score_first"])


class PlaceBias(NamedTuple):
    """Points gained by standing first, with interval; share of pairs whose winner turns with the order."""

    bonus: Interval
    turned: float


def place_bias(shown: pd.DataFrame, clusters: ArrayLike | None = None) -> PlaceBias:
    """How much a judge favours the answer that it reads first.

    Args:
        shown: what `judges.verdicts` returned; pairs that lack a score are left out.
        clusters: user or prompt of each pair.

    Raises:
        ValueError: no pair has all four scores.
    """
    names = ["score", "other_score", "score_second", "other_score_first"]
    known = shown[names].notna().all(axis=1).to_numpy()
    if not known.any():
        raise ValueError(f"none of {len(shown)} pairs was scored in both orders")
    rows = shown[known]
    labels = None if clusters is None else np.asarray(clusters)[known]
    bonus = cluster_interval(order_averaged(rows)["first_bonus"], labels)
    first = np.sign(rows["score"] - rows["other_score"])
    second = np.sign(rows["score_second"] - rows["other_score_first"])
    return PlaceBias(bonus, float((first * second < 0).mean()))


def circularity(scoring_judge: str, evaluating_judge: str) -> str:
    """A warning where the judge that steered is the judge that evaluates, "" where they differ.

    SDA's score S decides how strongly an answer is steered towards what that judge likes; the same judge's verdict
    on the result is then no independent evidence.

    Args:
        scoring_judge, evaluating_judge: ids of the judges.
    """
    if scoring_judge == evaluating_judge:
        return (
            f"circular: {evaluating_judge} evaluates answers that were steered by its own scores;"
            " its margins are no independent evidence"
        )
    if _model(scoring_judge) == _model(evaluating_judge):
        return (
            f"circular: {evaluating_judge} and {scoring_judge}, whose scores steered the answers, are one model"
            " under two prompts; its margins are hardly independent evidence"
        )
    return ""


def _model(judge: str) -> str:
    """The part of an id that names a model asked by prompt (endpoint:MODEL@server:hash, local:MODEL:hash)."""
    kind, _, rest = judge.partition(":")
    return rest.rpartition(":")[0].split("@")[0] if kind in ("endpoint", "local") else judge
