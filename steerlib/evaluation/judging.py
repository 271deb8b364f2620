"""SDA beside what it has to beat: net win margins by a judge, in both orders, with the judge's habits stated."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from steerlib.evaluation.intervals import Interval, cluster_interval, share_interval
from steerlib.judges import Judge, verdicts
from steerlib.rules import RULES
from steerlib.tables import SCHEMA

SCORES = ["score", "other_score", "score_second", "other_score_first"]


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


def judge_pairs(
    judge: Judge,
    generations: pd.DataFrame,
    prompts: pd.DataFrame,
    folder: Path,
    *,
    arm: str,
    comparators: Mapping[str, str],
    dimension: Mapping[str, str],
) -> pd.DataFrame:
    """Verdicts on each answer of an arm to a test prompt beside the comparators' with the same seed, in both orders.

    Args:
        judge: see `load_judge`.
        generations, prompts: the tables.
        folder: the run's folder; its table `verdicts` is the cache.
        arm: arm_id.
        comparators: arm_id by name, see `sda_comparators`.
        dimension: of each prompt_id, what is judged; prompts without one are left out.

    Returns:
        comparator (the name), dimension, prompt_id, seed, prompt, text, other, cluster (the user), and four scores:
        score and other_score with the text shown first, score_second and other_score_first with the other shown first.

    Raises:
        ValueError: a comparator lacks some of the arm's answers.
    """
    asked = prompts[prompts["split"] == "test"].rename(columns={"user_id": "cluster"})
    asked = asked.assign(dimension=asked["prompt_id"].map(dimension)).dropna(subset="dimension")
    answers = {name: own[["prompt_id", "seed", "text"]] for name, own in generations.groupby("arm_id")}
    own = answers[arm].merge(asked[["prompt_id", "prompt", "cluster", "dimension"]], on="prompt_id")
    parts = []
    for name, other in comparators.items():
        theirs = answers[other].rename(columns={"text": "other"})
        both = own.merge(theirs, on=["prompt_id", "seed"], how="left", validate="one_to_one")
        if both["other"].isna().any():
            raise ValueError(f"{name} ({other}) lacks {both['other'].isna().sum()} of {len(both)} answers")
        parts += [
            rows.join(verdicts(judge, rows, str(what), folder)[SCORES]).assign(comparator=name)
            for what, rows in both.groupby("dimension", sort=False)
        ]
    return pd.concat(parts, ignore_index=True)


def _averaged(shown: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Scores of both answers averaged over the two orders; NaN where either order lacks a score."""
    return (
        (shown["score"] + shown["score_second"]) / 2,
        (shown["other_score"] + shown["other_score_first"]) / 2,
    )


class PlaceBias(NamedTuple):
    """Points gained by standing first, with interval; share of pairs whose winner turns with the order."""

    bonus: Interval
    turned: float


def place_bias(shown: pd.DataFrame) -> PlaceBias:
    """How much a judge favours the answer that it reads first; pairs that lack a score are left out.

    Args:
        shown: what `judge_pairs` returned.

    Raises:
        ValueError: no pair has all four scores.
    """
    rows = shown.dropna(subset=SCORES)
    if rows.empty:
        raise ValueError(f"none of {len(shown)} pairs was scored in both orders")
    ahead, behind = rows["score"] - rows["score_second"], rows["other_score_first"] - rows["other_score"]
    bonus = cluster_interval((ahead + behind) / 2, rows["cluster"])
    first = np.sign(rows["score"] - rows["other_score"])
    second = np.sign(rows["score_second"] - rows["other_score_first"])
    return PlaceBias(bonus, float((first * second < 0).mean()))


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


def net_margin(scores: ArrayLike, other_scores: ArrayLike, clusters: ArrayLike | None = None) -> Margin:
    """By how much more often an answer is judged better than the other than worse.

        omega = (win - lose) / (win + even + lose)

    The paper calls it win rate; 0 is no difference, and a win rate of one half.

    Args:
        scores, other_scores: of both answers to each prompt, `(n,)`; a pair with a missing score is counted and left
            out.
        clusters: user of each pair, `(n,)`; None where each user has one pair.

    Returns:
        The margin with its interval by user within [-1, 1], see `share_bounds`; exact where all clusters agree.

    Raises:
        ValueError: no pair has both scores.

    Source: SDA, eq. 9. They print no interval.
    """
    difference = np.asarray(scores, dtype=float) - np.asarray(other_scores, dtype=float)
    known = ~np.isnan(difference)
    if not known.any():
        raise ValueError(f"none of {len(known)} pairs has both scores")
    outcome = np.sign(difference[known])
    labels = None if clusters is None else np.asarray(clusters)[known]
    found = share_interval(outcome, labels, within=(-1, 1))
    counts = (int((outcome == sign).sum()) for sign in (1, 0, -1))
    return Margin(*found[:3], *counts, int((~known).sum()), found.n_clusters, found.how)


def margins_by(shown: pd.DataFrame) -> pd.DataFrame:
    """Net margins of each dimension against each comparator, scores averaged over both orders.

    Args:
        shown: what `judge_pairs` returned.

    Returns:
        dimension, comparator, value, low, high, win, even, lose, missing, n_clusters, how.
    """
    by = ["dimension", "comparator"]
    rows = [
        [*part[by].iloc[0], *net_margin(*_averaged(part), part["cluster"])]
        for _, part in shown.groupby(by, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*by, *Margin._fields])


def margin_metrics(
    margins: pd.DataFrame, *, arm: str, comparators: Mapping[str, str], judge: str
) -> pd.DataFrame:
    """Net margins as rows of the metrics table: net_margin, n being the pairs with both scores.

    Args:
        margins: what `margins_by` returned.
        arm: arm_id that they are of.
        comparators: arm_id by the name in column `comparator`.
        judge: id of the judge; it stands in column `scorer`.
    """
    rows = margins.assign(
        arm_id=arm,
        comparator=margins["comparator"].map(comparators),
        split="test",
        subgroup="dimension=" + margins["dimension"],
        scorer=judge,
        metric="net_margin",
        n=margins[["win", "even", "lose"]].sum(axis=1),
    )
    return rows[list(SCHEMA["metrics"].columns)]


def read_margins(metrics: pd.DataFrame, arms: pd.DataFrame) -> pd.DataFrame:
    """Net margins back from the metrics table: judge, dimension, comparator (its name), value, low, high, n."""
    rows = metrics[metrics["metric"] == "net_margin"].rename(columns={"scorer": "judge"})
    names = {arm: name for name, arm in sda_comparators(arms).items()}
    dimension = rows["subgroup"].str.removeprefix("dimension=")
    rows = rows.assign(dimension=dimension, comparator=rows["comparator"].map(names))
    return rows[["judge", "dimension", "comparator", "value", "low", "high", "n"]].reset_index(drop=True)


def circularity(scoring_judge: str, evaluating_judge: str) -> str:
    """A warning where the judge that steered is the judge that evaluates, "" where they differ.

    SDA's score S decides how strongly an answer is steered towards what that judge likes; the same judge's verdict on
    the result is then no independent evidence.

    Args:
        scoring_judge, evaluating_judge: ids of the judges.
    """
    if scoring_judge == evaluating_judge:
        return (
            f"circular: {evaluating_judge} evaluates answers that were steered by its own scores; its margins are no "
            "independent evidence"
        )
    if _model(scoring_judge) == _model(evaluating_judge):
        return (
            f"circular: {evaluating_judge} and {scoring_judge}, whose scores steered the answers, are one model under "
            "two prompts; its margins are hardly independent evidence"
        )
    return ""


def _model(judge: str) -> str:
    """The part of an id that names a model asked by prompt (endpoint:MODEL@server:hash, local:MODEL:hash)."""
    kind, _, rest = judge.partition(":")
    return rest.rpartition(":")[0].split("@")[0] if kind in ("endpoint", "local") else judge
