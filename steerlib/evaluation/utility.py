"""What steering costs in knowledge: accuracy and calibration of each arm on multiple-choice questions."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steerlib.evaluation.choices import brier, calibration_gaps
from steerlib.evaluation.intervals import Interval, cluster_interval
from steerlib.evaluation.questions import LETTERS
from steerlib.tables import SCHEMA

Floats = NDArray[np.float64]


def summarise_choices(
    choices: pd.DataFrame, questions: pd.DataFrame, *, base_arm: str, source: str, split: str = "test"
) -> pd.DataFrame:
    """Accuracy, calibration and their change against base, rows of the metrics table.

    A question asked under several contexts is one cluster. `accuracy` is the micro average over questions and the
    papers' macro average over contexts at once, since every question is asked in each (anything else is refused);
    `accuracy_subjects` is the macro average over subjects. `accuracy_change` is in points against base on the same
    questions.

    Args:
        choices: the choices table.
        questions: the questions table that it refers to.
        base_arm: arm_id of the base.
        source: of the questions, "demo" or "cais/mmlu"; it stands in column `scorer`.
        split: the split named in the rows.

    Returns:
        Metrics accuracy (comparator ""), accuracy_subjects, calibration_error, brier, and
        accuracy_change and brier_change (comparator `base_arm`), each with its interval; subgroups "all",
        `subject=...` and `category=...`. Accuracies and changes in per cent and points.

    Raises:
        ValueError: no base, a choice without question, or arms that answered other questions than the base.
    """
    known = choices.merge(questions[["question_id", "subject", "answer"]], on="question_id", how="left")
    if known["answer"].isna().any():
        raise ValueError(
            f"question {known.loc[known['answer'].isna(), 'question_id'].iloc[0]!r} is not in the table"
        )
    if base_arm not in set(known["arm_id"]):
        raise ValueError(f"no choices of the base arm {base_arm!r}")
    base = known[known["arm_id"] == base_arm].sort_values("question_id")
    rows = []
    for arm, own in known.groupby("arm_id", sort=True):
        for subgroup, part, reference in _subgroups(own.sort_values(["category", "question_id"]), base):
            for metric, comparator, found in _measures(part, reference, base_arm):
                rows.append([arm, comparator, split, subgroup, source, metric, *found[:5]])
    return pd.DataFrame(rows, columns=list(SCHEMA["metrics"].columns))


def _subgroups(own: pd.DataFrame, base: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    yield "all", own, base
    for subject, part in own.groupby("subject"):
        yield f"subject={subject}", part, base[base["subject"] == subject]
    for category, part in own.groupby("category"):
        if category:
            yield f"category={category}", part, base


def _measures(part: pd.DataFrame, base: pd.DataFrame, base_arm: str) -> Iterator[tuple[str, str, Interval]]:
    if set(part["question_id"]) != set(base["question_id"]):
        raise ValueError(
            f"arm {part['arm_id'].iloc[0]!r} answered {part['question_id'].nunique()} questions, the base "
            f"{base['question_id'].nunique()}, and they are not the same"
        )
    ids, answers = part["question_id"].to_numpy(), part["answer"].tolist()
    p, right = _p(part), part["correct"].to_numpy(dtype=np.float64)
    yield "accuracy", "", cluster_interval(100 * right, ids).within(0, 100)
    by_subject = cluster_interval(100 * right * _subject_weights(part), ids)
    yield "accuracy_subjects", "", by_subject.within(0, 100)
    scores = brier(p, answers)
    yield "brier", "", cluster_interval(scores, ids)
    yield (
        "calibration_error",
        "",
        cluster_interval(calibration_gaps(p, answers), ids, lambda m: np.abs(m).sum(axis=-1)),
    )
    if part["arm_id"].iloc[0] != base_arm:
        reference = base.assign(brier=brier(_p(base), base["answer"].tolist()))
        reference = reference.groupby("question_id")[["correct", "brier"]].mean().loc[ids]
        yield (
            "accuracy_change",
            base_arm,
            cluster_interval(100 * (right - reference["correct"].to_numpy(float)), ids),
        )
        yield "brier_change", base_arm, cluster_interval(scores - reference["brier"].to_numpy(float), ids)


def _p(rows: pd.DataFrame) -> Floats:
    return rows[[f"p_{letter}" for letter in LETTERS]].to_numpy(dtype=np.float64)


def _subject_weights(rows: pd.DataFrame) -> Floats:
    """Weights under which the mean over rows is the mean over subjects of their means."""
    size = rows.groupby("subject")["subject"].transform("size").to_numpy(dtype=np.float64)
    return len(rows) / (rows["subject"].nunique() * size)
