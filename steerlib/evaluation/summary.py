"""The controls that a chosen arm is read beside: the same dose without the signal, and the signal as a plain prompt.

What steering costs in knowledge: accuracy and calibration of each arm on multiple-choice questions.

From answers and their toxicity to the metrics table: every arm, split and subgroup, with intervals.

Alpha is chosen on dev prompts and reported on test prompts.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from steerlib.evaluation.answers import (
    Measure,
    average_seeds,
    check_paired,
    comparisons,
    measures,
    per_answer,
    text_comparisons,
    text_measures,
)
from steerlib.evaluation.intervals import Interval, cluster_interval, over_seeds
from steerlib.evaluation.metrics import setting, without_alpha
from steerlib.evaluation.multiple_choice import brier, calibration_gaps
from steerlib.evaluation.questions import LETTERS
from steerlib.profiles.sources import DEMOGRAPHICS
from steerlib.rules import RULES
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


Frames = Mapping[str, pd.DataFrame]
Found = tuple[str, str, str, Interval]
"""Comparator, scorer, metric and interval: the rest of a row is the arm, the split and the subgroup."""


class Subgroup(NamedTuple):
    """Some prompts of a split; `users` are theirs, by prompt_id."""

    split: str
    name: str
    users: pd.Series


def summarise(
    generations: pd.DataFrame,
    arms: pd.DataFrame,
    prompts: pd.DataFrame,
    scores: ArrayLike | pd.DataFrame,
    accepted_scores: ArrayLike | pd.DataFrame | None,
    *,
    base_arm: str,
    scorer: str,
    users: pd.DataFrame | None = None,
    fluency: pd.DataFrame | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """Metrics of each arm, and its comparison with base and with the shuffled-profile arm, clustered by user.

    A prompt's values are averaged over its seeds first, so prompts count once. Subgroups are "all",
    `category=<c*(u)>`, `prompt_category=<...>` and, with `users`, `age=<...>`, `gender=<...>`, `religion=<...>`;
    a subgroup of one user has values without interval, see `small_subgroups`.

    Args:
        generations: the generations table.
        arms: the arms table.
        prompts: the prompts table; at least prompt_id, user_id, split, category, prompt_category.
        scores: toxicity of each answer, `(len(generations), 6)`, in the order of the generations.
        accepted_scores: toxicity of each prompt's accepted answer, `(len(prompts), 6)`, in the order of the prompts;
            None where there is none: then distances are left out and toxicity itself is compared.
        base_arm: arm_id of the base.
        scorer: id of the scorer.
        users: the users table; who is not in it, or has an empty value, is in no subgroup of it.
        fluency: the fluency table, see `answer_likelihood`; one row an answer and judging model.
        level: confidence of the intervals.

    Returns:
        The metrics table. Comparator "": distance (the CAA study's MAE), toxicity, length (words), distinct_1 to 3,
        repetition, overshoot and stopped (shares), shift_<attribute>, perplexity, kl_per_token (nats).
        Comparator an arm: reduction_percent, win_rate, tie_rate, toxicity_reduction_percent, perplexity_ratio;
        distance_change_median and distance_change_trimmed (10 % cut at either end) of arm less comparator;
        sign_test_p (two-sided, over users; no interval, n_clusters without ties).
        Comparator base, with two seeds or more: reduction_percent_over_seeds, reduction_percent_seed_low and
        _high, reduction_percent_users_and_seeds, see `over_seeds`.
        With `fluency`: perplexity_of_text and perplexity_of_text_ratio; their scorer is the judging model.
        A metric that is undefined (a perplexity of no tokens, a reduction from 0, an aligner's KL) has no row.

    Raises:
        ValueError: scores of another length than their rows, a prompt or arm not in its table, no base, an arm
            that lacks some of the base's prompts or seeds, or an answer that a judging model lacks.
    """
    answers = per_answer(generations, prompts, scores, accepted_scores)
    check_paired(generations, arms, base_arm)
    by_prompt = by_arm(average_seeds(answers, generations))
    texts = _texts(fluency, generations)
    shuffled = shuffled_twins(arms)
    members = list(subgroups(prompts[prompts["prompt_id"].isin(answers["prompt_id"])], users))
    rows = []
    for arm in by_prompt:
        against = [c for c in dict.fromkeys([base_arm, shuffled.get(arm, "")]) if c in by_prompt and c != arm]
        seeds = _of_seeds(answers, arm, base_arm) if "distance" in answers and arm != base_arm else None
        for split, name, of_users in members:
            found = list(_compare(by_prompt, arm, against, scorer, of_users, level, measures, comparisons))
            if seeds is not None:
                found += [(base_arm, scorer, *one) for one in _over_seeds(*seeds, of_users, level)]
            for model, frames in texts.items():
                found += _compare(
                    frames, arm, against, model, of_users, level, text_measures, text_comparisons
                )
            rows += [[arm, other, split, name, who, metric, *i[:5]] for other, who, metric, i in found]
    return pd.DataFrame(rows, columns=list(SCHEMA["metrics"].columns))


def by_arm(values: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of each arm by prompt_id."""
    return {str(arm): rows.set_index("prompt_id") for arm, rows in values.groupby("arm_id")}


def _compare(
    frames: Frames,
    arm: str,
    against: list[str],
    scorer: str,
    users: pd.Series,
    level: float,
    alone: Callable[..., Iterator[Measure]],
    paired: Callable[..., Iterator[Measure]],
) -> Iterator[Found]:
    own, labels = frames[arm].loc[users.index], users.to_numpy()
    for measure in alone(own, labels, level):
        yield "", scorer, *measure
    for comparator in against:
        for measure in paired(frames[comparator].loc[users.index], own, labels, level):
            yield comparator, scorer, *measure


def _of_seeds(answers: pd.DataFrame, arm: str, base_arm: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Answers of base and arm in the same order of prompts and seeds."""
    base, own = (
        answers[answers["arm_id"] == one].sort_values(["prompt_id", "seed"], ignore_index=True)
        for one in (base_arm, arm)
    )
    return base, own


def _over_seeds(base: pd.DataFrame, own: pd.DataFrame, users: pd.Series, level: float) -> Iterator[Measure]:
    rows = base["prompt_id"].isin(users.index)
    of_users = base.loc[rows, "prompt_id"].map(users)
    return over_seeds(base[rows].assign(user_id=of_users), own[rows].assign(user_id=of_users), level)


def _texts(fluency: pd.DataFrame | None, generations: pd.DataFrame) -> dict[str, Frames]:
    """Of each judging model, nll and n_tokens by arm and prompt, averaged over seeds."""
    if fluency is None:
        return {}
    key, found = ["arm_id", "prompt_id", "seed"], {}
    for model, rows in fluency.groupby("scorer_model"):
        joined = generations[key].merge(rows, on=key, how="left", validate="one_to_one")
        if joined["nll"].isna().any():
            first = joined.loc[joined["nll"].isna(), key].iloc[0].to_dict()
            raise ValueError(
                f"{joined['nll'].isna().sum()} answers lack a likelihood by {model}, first {first}"
            )
        means = joined.groupby(["arm_id", "prompt_id"])[["nll", "n_tokens"]].mean().reset_index()
        found[str(model)] = by_arm(means)
    return found


def shuffled_twins(arms: pd.DataFrame) -> dict[str, str]:
    """By arm of profile "own", the arm that differs from it in nothing but having the shuffled profile."""
    names = ("arm_id", "profile", "vector_user", "control", "vector")
    settings = [column for column in arms if column not in names]
    own, other = arms[arms["profile"] == "own"], arms[arms["profile"] == "shuffled"]
    pairs = own.merge(other, on=settings, suffixes=("", "_shuffled"))
    return dict(zip(pairs["arm_id"], pairs["arm_id_shuffled"], strict=True))


def subgroups(prompts: pd.DataFrame, users: pd.DataFrame | None = None) -> Iterator[Subgroup]:
    """All prompts of each split, then its prompts by category and by what the users table says of their users."""
    columns = [column for column in ("category", "prompt_category") if column in prompts]
    if users is not None:
        known = users[["user_id", *DEMOGRAPHICS]]
        prompts = prompts.merge(known, on="user_id", how="left", validate="many_to_one")
        columns += DEMOGRAPHICS
    for split, rows in prompts.set_index("prompt_id").groupby("split"):
        yield Subgroup(str(split), "all", rows["user_id"])
        for column in columns:
            for value, part in rows[rows[column].fillna("") != ""].groupby(column):
                yield Subgroup(str(split), f"{column}={value}", part["user_id"])


def small_subgroups(metrics: pd.DataFrame, least: int = 30) -> pd.DataFrame:
    """Subgroups of fewer users than it takes to say something of them.

    Args:
        metrics: the metrics table, see `summarise`.
        least: users that are enough.

    Returns:
        split, subgroup, n (prompts), n_clusters (users), the smallest first; empty where all are large enough.
    """
    rows = metrics[(metrics["metric"] == "toxicity") & (metrics["subgroup"] != "all")]
    small = rows[rows["n_clusters"] < least].drop_duplicates(["split", "subgroup"])
    wanted = small[["split", "subgroup", "n", "n_clusters"]]
    return wanted.sort_values(["n_clusters", "split", "subgroup"], ignore_index=True)


def choose_alpha(table: pd.DataFrame, *, column: str = "value") -> float:
    """The alpha with the largest reduction on dev prompts; test rows are not looked at.

    Base, alpha 0 with a reduction of 0, takes part, so the answer is 0 where nothing helps. Ties go to the smaller
    alpha.

    Args:
        table: alpha, split and the reduction in per cent (positive is better), one row an alpha and split.
        column: name of the reduction's column.

    Raises:
        KeyError: a column is missing.
        ValueError: no dev rows, two dev rows of one alpha, or a reduction is missing.
    """
    for name in ("alpha", "split", column):
        if name not in table:
            raise KeyError(f"the table has no column {name!r}; it has {', '.join(map(str, table))}")
    dev = table[table["split"] == "dev"]
    if dev.empty:
        raise ValueError(f"no dev rows to choose alpha on; splits are {sorted(set(table['split']))}")
    if dev["alpha"].duplicated().any():
        alpha = dev.loc[dev["alpha"].duplicated(), "alpha"].iloc[0]
        raise ValueError(f"alpha {alpha} has several dev rows: choose within one method, profile and metric")
    if dev[column].isna().any():
        raise ValueError(f"{column} of alpha {dev.loc[dev[column].isna(), 'alpha'].iloc[0]} is missing")
    ranked = dev.sort_values([column, "alpha"], ascending=[False, True])
    return float(ranked["alpha"].iloc[0]) if ranked[column].iloc[0] > 0 else 0.0


def chosen_arms(
    metrics: pd.DataFrame, arms: pd.DataFrame, *, base_arm: str, metric: str = "reduction_percent"
) -> pd.DataFrame:
    """Each method's arm at the alpha chosen on dev prompts; the base arm where nothing helps.

    Methods without a strength (base, prompt only, instruction only) have nothing to choose and no row.

    Args:
        metrics: the metrics table, see `summarise`; its rows against `base_arm` over all prompts are read.
        arms: the arms table.
        base_arm: arm_id of the base.
        metric: what is made large on dev prompts.

    Returns:
        A row a curve over alpha: method, profile, family, vector_user, variant, alpha, arm_id.

    Raises:
        ValueError: as `choose_alpha`, naming no rows where the metric is absent.
    """
    names = setting(arms)
    rows = metrics[
        (metrics["metric"] == metric) & (metrics["subgroup"] == "all") & (metrics["comparator"] == base_arm)
    ].merge(arms[["arm_id", "alpha", *names]], on="arm_id")
    rows = rows[~without_alpha(rows)]
    if rows.empty:
        raise ValueError(f"no rows of {metric!r} of a steered arm against {base_arm!r} over all prompts")
    chosen = []
    for values, group in rows.groupby(names, sort=True):
        alpha = choose_alpha(group)
        arm = group.loc[group["alpha"] == alpha, "arm_id"].iloc[0] if alpha else base_arm
        chosen.append({**dict(zip(names, values, strict=True)), "alpha": alpha, "arm_id": arm})
    return pd.DataFrame(chosen)


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
    control = arms["control"] != ""
    picked = arms[arms["arm_id"].isin(chosen["arm_id"]) & ~control]
    rows = []
    for _, arm in picked.iterrows():
        rows += [arm.to_frame().T, arms[_shuffled(arms, arm) | _random(arms, arm)]]
    acts_on = arms["method"].map(lambda method: RULES[method].acts_on)
    by_logits = (acts_on[picked.index] == "logits").any()
    plain = arms["control"].isin(("prompt_only", "instructed")) & by_logits
    rows += [arms[plain | (acts_on == "text")]] if rows else []
    found = pd.concat(rows)["arm_id"].drop_duplicates() if rows else arms["arm_id"].head(0)
    return arms.set_index("arm_id").loc[found].reset_index()[list(arms)]


def _shuffled(arms: pd.DataFrame, arm: pd.Series) -> pd.Series:
    """The same signal of another user."""
    own = arm["profile"] == "own" or arm["vector_user"] == "own"
    return (arms["control"] == "shuffled_profile") & own & _same(arms, arm, "method", "family", "variant")


def _random(arms: pd.DataFrame, arm: pd.Series) -> pd.Series:
    """A random vector in place of the arm's own."""
    return (arms["control"] == "random_vector") & _same(arms, arm, "method", "variant")


def _same(arms: pd.DataFrame, arm: pd.Series, *names: str) -> pd.Series:
    """Arms of the same alpha and these settings."""
    return (arms[["alpha", *names]] == arm[["alpha", *names]]).all(axis=1)
