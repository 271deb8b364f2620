"""Pairwise preferences: net margins by a judge, and pairwise preference accuracy (PPA) on held-out pairs."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from steerlib.evaluation.answers import length
from steerlib.evaluation.intervals import Floats, Interval, cluster_interval, share_interval
from steerlib.judges import Judge, verdicts
from steerlib.rules import RULES
from steerlib.tables import ATTRIBUTE_COLUMNS, SCHEMA

SCORES = ["score", "other_score", "score_second", "other_score_first"]


def sda_comparators(arms: pd.DataFrame) -> dict[str, str]:
    """What SDA is compared with, in the words of the paper: arm_id by name, of those among arms of one temperature.

    base; instructed, the instruction as a plain prompt, which the paper does not show; steering_only, SDA at one
    temperature, where the first SDA arm changes it; aligner, the base's answers corrected by an external model.
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

    The table `verdicts` of the run's folder is the cache. Comparators are those of `sda_comparators`; `dimension` is by
    prompt_id, and prompts without one are left out. A ValueError where a comparator lacks some of the arm's answers.

    Returns:
        comparator (the name), dimension, prompt_id, seed, prompt, text, other, cluster (the user), and four scores:
        score and other_score with the text shown first, score_second and other_score_first with the other shown first.
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


def place_bias(shown: pd.DataFrame) -> tuple[Interval, float]:
    """How much a judge favours the answer that it reads first, over the pairs of `judge_pairs` that have all scores.

    Points gained by standing first, with interval, and the share of pairs whose winner turns with the order. A
    ValueError where no pair has all scores.
    """
    rows = shown.dropna(subset=SCORES)
    if rows.empty:
        raise ValueError(f"none of {len(shown)} pairs was scored in both orders")
    ahead, behind = rows["score"] - rows["score_second"], rows["other_score_first"] - rows["other_score"]
    bonus = cluster_interval((ahead + behind) / 2, rows["cluster"])
    first = np.sign(rows["score"] - rows["other_score"])
    second = np.sign(rows["score_second"] - rows["other_score_first"])
    return bonus, float((first * second < 0).mean())


COUNTS = {"win": 1, "even": 0, "lose": -1}


def margins_by(shown: pd.DataFrame) -> pd.DataFrame:
    """Net margins of each dimension against each comparator, scores of `judge_pairs` averaged over both orders.

        omega = (win - lose) / (win + even + lose)

    The paper calls it win rate; 0 is no difference, and a win rate of one half. Columns are dimension, comparator,
    value, low, high (by user within [-1, 1], see `share_bounds`), win, even, lose, missing (pairs that lack a score),
    n_clusters. A ValueError where of some dimension and comparator no pair has all scores.

    Source: SDA, eq. 9. They print no interval.
    """
    rows, by = [], ["dimension", "comparator"]
    for _, part in shown.groupby(by, sort=False):
        known = part.dropna(subset=SCORES)
        if known.empty:
            raise ValueError(f"none of {len(part)} pairs has both scores: {', '.join(part[by].iloc[0])}")
        own = known["score"] + known["score_second"]
        outcome = np.sign(own - known["other_score"] - known["other_score_first"])
        found = share_interval(outcome, known["cluster"], within=(-1, 1))
        counts = [int((outcome == sign).sum()) for sign in COUNTS.values()]
        rows.append([*part[by].iloc[0], *found[:3], *counts, len(part) - len(known), found.n_clusters])
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", *COUNTS, "missing", "n_clusters"])


def margin_metrics(
    margins: pd.DataFrame, *, arm: str, comparators: Mapping[str, str], judge: str
) -> pd.DataFrame:
    """Net margins of `margins_by` as rows of the metrics table; n is the number of pairs, `scorer` the judge."""
    rows = margins.assign(arm_id=arm, split="test", scorer=judge, metric="net_margin")
    rows["comparator"], rows["n"] = margins["comparator"].map(comparators), margins[[*COUNTS]].sum(axis=1)
    rows["subgroup"] = "dimension=" + margins["dimension"]
    return rows[list(SCHEMA["metrics"].columns)]


def read_margins(metrics: pd.DataFrame, arms: pd.DataFrame) -> pd.DataFrame:
    """Net margins back from the metrics table: judge, dimension, comparator (its name), value, low, high, n."""
    rows = metrics[metrics["metric"] == "net_margin"].rename(columns={"scorer": "judge"})
    names = {arm: name for name, arm in sda_comparators(arms).items()}
    dimension = rows["subgroup"].str.removeprefix("dimension=")
    rows = rows.assign(dimension=dimension, comparator=rows["comparator"].map(names))
    return rows[["judge", "dimension", "comparator", "value", "low", "high", "n"]].reset_index(drop=True)


def circularity(scoring_judge: str, evaluating_judge: str) -> str:
    """A warning where the judge that steered, by SDA's score, is the judge that evaluates; "" where they differ."""
    if _model(scoring_judge) != _model(evaluating_judge):
        return ""
    same = scoring_judge == evaluating_judge
    whose = "its own scores" if same else f"scores of {scoring_judge}, one model under two prompts"
    return f"circular: {evaluating_judge} evaluates answers steered by {whose}; its margins are no independent evidence"


def _model(judge: str) -> str:
    """The part of an id that names a model asked by prompt (endpoint:MODEL@server:hash, local:MODEL:hash)."""
    kind, _, rest = judge.partition(":")
    return rest.rpartition(":")[0].split("@")[0] if kind in ("endpoint", "local") else judge


def compare_preferences(preference: pd.DataFrame, *, reference: str) -> pd.DataFrame:
    """Pairwise preference accuracy of every model on the same held-out pairs, and its difference from one of them.

        PPA = mean_k ( 1[m_k > 0] + 1/2 1[m_k = 0] ),    m_k = utility_u(y+_k) - utility_u(y-_k)

    A model that does not tell answers apart has 0.5. Models are fitted on other conversations than these pairs, of the
    table `preference`. A ValueError for no such reference, a model without some pair, or a margin that is not finite.

    Returns:
        By model, a row with comparator "" (accuracy in [0, 1]) and, but for the reference, one with comparator
        `reference` (accuracy minus the reference's): value, low, high (clustered by user), ties (share of pairs), n,
        n_clusters, how. In the order of the table.

    Source: PPA of the CAA-on-PRISM study, which does not say how it treats ties; 96.6 % of its choices tie on toxicity.
    """
    wide = preference.pivot(index="pair_id", columns="model", values="margin")
    if reference not in wide:
        raise ValueError(f"no margins of model {reference!r}; there are {', '.join(wide)}")
    missing = ~(wide.abs() < np.inf)
    if missing.any(axis=None):
        pair, model = missing.stack().idxmax()
        raise ValueError(f"model {model!r}, pair {pair}: there is no margin, or it is not finite")
    users = preference.drop_duplicates("pair_id").set_index("pair_id")["user_id"].loc[wide.index]
    hits, rows = np.heaviside(wide, 0.5), []
    for name in preference["model"].unique():
        found: dict[str, Interval] = {"": share_interval(hits[name], users)}
        if name != reference:
            found[reference] = cluster_interval(hits[name] - hits[reference], users, within=(-1, 1))
        rows += [
            [name, other, *one[:3], (hits[name] == 0.5).mean(), *one[3:]] for other, one in found.items()
        ]
    names = ["model", "comparator", "value", "low", "high", "ties", "n", "n_clusters", "how"]
    return pd.DataFrame(rows, columns=names)


def safety_margins(
    sensitivities: pd.DataFrame, users: ArrayLike, preferred: pd.DataFrame, dispreferred: pd.DataFrame
) -> Floats:
    """Margins by safety alone, `(n,)`: the user prefers what has less of the toxicity that they are sensitive to.

        m_k = -s_u . (P(y+_k) - P(y-_k))

    `sensitivities` are s_u `(users, 6)`, fitted on other conversations; `users` says whose pair each is; toxicity of
    both sides is `(n, 6)`, row for row. A KeyError for a user without sensitivities.

    Source: "safety coordinates alone" of the CAA-on-PRISM study; that they are the toxicity scores is inferred from
    its share of ties.
    """
    six = list(ATTRIBUTE_COLUMNS)
    change = preferred[six].to_numpy(np.float64) - dispreferred[six].to_numpy(np.float64)
    return -(sensitivities.loc[np.asarray(users), six].to_numpy(np.float64) * change).sum(axis=1)


def length_margins(pairs: pd.DataFrame, train: pd.DataFrame) -> Floats:
    """Margins by length alone, `(n,)`: words of the preferred minus words of the other answer of `pairs`.

    The sign is turned where training pairs, of other conversations, more often prefer the shorter; a ValueError without
    training pairs.
    """
    if train.empty:
        raise ValueError("no training pairs: the direction must not be read off held-out ones")
    learnt, asked = (length(rows["preferred"]) - length(rows["dispreferred"]) for rows in (train, pairs))
    return asked if np.sign(learnt).sum() >= 0 else -asked
