"""SDA beside what it has to beat: net win margins by a judge, in both orders, with the judge's habits stated."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from steerlib.evaluation.intervals import Interval, cluster_interval
from steerlib.judges import ComparingJudge, verdicts
from steerlib.rules import RULES
from steerlib.tables import SCHEMA

COUNTED = ("win", "even", "lose")
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


def compared_answers(
    generations: pd.DataFrame,
    prompts: pd.DataFrame,
    *,
    arm: str,
    comparators: Mapping[str, str],
    dimension: Mapping[str, str],
) -> pd.DataFrame:
    """Each answer of an arm to a test prompt beside the comparators' answers to it with the same seed.

    Args:
        generations: the generations table.
        prompts: prompt_id, prompt, user_id, split.
        arm: arm_id.
        comparators: arm_id by name.
        dimension: of each prompt_id, what is judged; prompts without one are left out.

    Returns:
        comparator (the name), dimension, prompt_id, seed, prompt, text, other, cluster (the user).

    Raises:
        ValueError: a comparator lacks some of the arm's answers.
    """
    asked = prompts.loc[prompts["split"] == "test", ["prompt_id", "prompt", "user_id"]]
    asked = asked.rename(columns={"user_id": "cluster"})
    asked = asked.assign(dimension=asked["prompt_id"].map(dimension)).dropna(subset="dimension")
    answers = generations[["arm_id", "prompt_id", "seed", "text"]]
    own = answers[answers["arm_id"] == arm].drop(columns="arm_id").merge(asked, on="prompt_id")
    columns = ["comparator", "dimension", "prompt_id", "seed", "prompt", "text", "other", "cluster"]
    parts = [pd.DataFrame(columns=columns)]
    for name, other in comparators.items():
        theirs = answers[answers["arm_id"] == other].drop(columns="arm_id").rename(columns={"text": "other"})
        both = own.merge(theirs, on=["prompt_id", "seed"], how="left", validate="one_to_one")
        if both["other"].isna().any():
            raise ValueError(f"{name} ({other}) lacks {both['other'].isna().sum()} of {len(both)} answers")
        parts.append(both.assign(comparator=name)[columns])
    return pd.concat(parts[1:] or parts, ignore_index=True)


def judge_compared(judge: ComparingJudge, compared: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Verdicts on each pair, on the dimension of its prompt, in both orders.

    Args:
        judge: a judge of `load_judge` that compares.
        compared: what `compared_answers` returned.
        folder: the run's folder; its table `verdicts` is the cache.

    Returns:
        The rows of `compared` with score and other_score (text shown first), score_second and other_score_first (the
        other shown first), for `order_averaged` and `place_bias`.
    """
    parts = [
        rows.join(verdicts(judge, rows, str(dimension), folder).drop(columns="dimension"))
        for dimension, rows in compared.groupby("dimension", sort=False)
    ]
    return pd.concat(parts).sort_index()


def order_averaged(shown: pd.DataFrame) -> pd.DataFrame:
    """Scores of both answers averaged over the two orders in which the judge saw them.

    Args:
        shown: what `judge_compared` returned.

    Returns:
        The same rows with score and other_score averaged (NaN where either order lacks a score), and `first_bonus`: by
        how many points an answer gains from standing first.
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


def place_bias(shown: pd.DataFrame) -> PlaceBias:
    """How much a judge favours the answer that it reads first; pairs that lack a score are left out.

    Args:
        shown: what `judge_compared` returned.

    Raises:
        ValueError: no pair has all four scores.
    """
    rows = shown.dropna(subset=SCORES)
    if rows.empty:
        raise ValueError(f"none of {len(shown)} pairs was scored in both orders")
    bonus = cluster_interval(order_averaged(rows)["first_bonus"], rows["cluster"])
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


def net_margin(
    scores: ArrayLike, other_scores: ArrayLike, clusters: ArrayLike | None = None, *, tolerance: float = 0.0
) -> Margin:
    """By how much more often an answer is judged better than the other than worse.

        omega = (win - lose) / (win + even + lose),   even where |score - other score| <= tolerance

    The paper calls it win rate; 0 is no difference, and a win rate of one half.

    Args:
        scores, other_scores: of both answers to each prompt, `(n,)`; both orders averaged, see `order_averaged`. A pair
            with a missing score is counted and left out.
        clusters: user of each pair, `(n,)`; None where each user has one pair.
        tolerance: difference that is no difference, in points of the judge's scale; the authors also log 3.

    Returns:
        The margin with its cluster-t interval within [-1, 1]; exact bounds where all clusters agree.

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
    outcome = np.where(np.abs(difference) <= tolerance, 0.0, np.sign(difference))[known]
    labels = None if clusters is None else np.asarray(clusters)[known]
    found = cluster_interval(outcome, labels, within=(-1, 1))
    counts = (int((outcome == sign).sum()) for sign in (1, 0, -1))
    return Margin(*found[:3], *counts, int((~known).sum()), found.n_clusters, found.how)


def margins_by(judged: pd.DataFrame, *, tolerance: float = 0.0) -> pd.DataFrame:
    """Net margins of each dimension against each comparator.

    Args:
        judged: dimension, comparator, score, other_score, cluster; see `order_averaged`.
        tolerance: see `net_margin`.

    Returns:
        dimension, comparator, value, low, high, win, even, lose, missing, n_clusters, how.
    """
    by = ["dimension", "comparator"]
    rows = [
        [*key, *net_margin(part["score"], part["other_score"], part["cluster"], tolerance=tolerance)]
        for key, part in judged.groupby(by, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*by, *Margin._fields])


def margin_metrics(
    margins: pd.DataFrame, *, arm: str, comparators: Mapping[str, str], judge: str
) -> pd.DataFrame:
    """Net margins as rows of the metrics table: net_margin, and the counts net_margin_win, _even and _lose.

    Args:
        margins: what `margins_by` returned.
        arm: arm_id that they are of.
        comparators: arm_id by the name in column `comparator`.
        judge: id of the judge; it stands in column `scorer`.
    """
    rows = []
    for row in margins.to_dict("records"):
        n = sum(row[kind] for kind in COUNTED)
        head = [arm, comparators[row["comparator"]], "test", f"dimension={row['dimension']}", judge]
        rows.append([*head, "net_margin", row["value"], row["low"], row["high"], n, row["n_clusters"]])
        rows += [
            [*head, f"net_margin_{kind}", row[kind], np.nan, np.nan, n, row["n_clusters"]] for kind in COUNTED
        ]
    numbers = dict.fromkeys(("value", "low", "high"), float)
    return pd.DataFrame(rows, columns=list(SCHEMA["metrics"].columns)).astype(numbers)


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
    found = rows[rows["metric"] == "net_margin"].set_index(key)[["value", "low", "high", "n"]]
    for kind in COUNTED:
        found[kind] = rows[rows["metric"] == f"net_margin_{kind}"].set_index(key)["value"].astype(int)
    names = {arm: name for name, arm in sda_comparators(arms).items()}
    found = found.reset_index().rename(columns={"scorer": "judge"})
    found["dimension"] = found["subgroup"].str.removeprefix("dimension=")
    found["comparator"] = found["comparator"].map(names)
    return found.drop(columns=["subgroup", "arm_id"])


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
