"""From answers, their toxicity and choices to the metrics table: every arm, split and subgroup, with intervals."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steerlib.evaluation import intervals
from steerlib.evaluation.answers import check_paired, effective_number, per_prompt, top_share
from steerlib.evaluation.controls import kl_on_dev, match_controls, mix_controls
from steerlib.evaluation.intervals import Bounds, Floats
from steerlib.evaluation.multiple_choice import LETTERS, calibration_gaps
from steerlib.profiles.sources import DEMOGRAPHICS
from steerlib.tables import SCHEMA

COLUMNS = list(SCHEMA["metrics"].columns)
MEANS = {
    **dict.fromkeys(("distance", "toxicity", "repetition", "distinct_2"), (0.0, 1.0)),
    "length": (0.0, np.inf),
}
SHARES = ("overshoot", "stopped")
REDUCTIONS = {"distance": "reduction_percent", "toxicity": "toxicity_reduction_percent"}
DIFFERENCES = ("distance", "toxicity", "repetition")
FEWEST_EFFECTIVE = 8
"""A mean that rests on fewer effective prompts has too few."""


class Subgroup(NamedTuple):
    """Some prompts of a split; `users` are theirs, by prompt_id."""

    split: str
    name: str
    users: pd.Series


def summarise(
    generations: pd.DataFrame,
    arms: pd.DataFrame,
    prompts: pd.DataFrame,
    scores: pd.DataFrame,
    accepted_scores: pd.DataFrame | None,
    *,
    base_arm: str,
    scorer: str,
    users: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Metrics of each arm, and its comparison with base and with its controls (`match_controls`), clustered by user.

    `scores` are the toxicity of each answer, in the order of the generations; `accepted_scores` that of each prompt's
    accepted answer, in the order of the prompts, None where there is none: then there are no distances. Who is not in
    the `users` table, or has an empty value, is in no subgroup of it.

    Returns:
        The metrics table by arm, split and subgroup: "all", `category=<c*(u)>`, `prompt_category=<...>` and, with
        `users`, `age=<...>`, `gender=<...>`, `religion=<...>`.
        Comparator "": distance (the CAA study's MAE), toxicity, repetition, distinct_2, length (words), overshoot and
        stopped (shares), perplexity, kl_per_token (nats); distance_effective_n, toxicity_effective_n and
        distance_top_three, toxicity_top_three: see `effective_number`, `top_share`.
        Comparator an arm, base or control at equal alpha: distance_difference, toxicity_difference,
        repetition_difference (arm - comparator); reduction_percent (of the distance), toxicity_reduction_percent;
        perplexity_ratio.
        Comparator "shuffled_profile" or "random_vector", the arm's control of that kind at equal KL: the same measures,
        and control_kl_per_token.
        A metric that is undefined (a perplexity of no tokens, a reduction from 0, an aligner's KL) has no row.

    Raises:
        ValueError: as `check_paired` and `per_prompt`.
    """
    check_paired(generations, arms, base_arm)
    values = per_prompt(generations, prompts, scores, accepted_scores)
    asked = prompts[prompts["prompt_id"].isin(values["prompt_id"])]
    matched = match_controls(arms[arms["arm_id"].isin(values["arm_id"])], kl_on_dev(values, asked))
    against = {arm: [base_arm] for arm in values["arm_id"].unique() if arm != base_arm}
    for row in matched[matched["matched"] == "alpha"].itertuples():
        against[row.arm_id].append(row.control_arm)
    members = list(subgroups(asked, users))
    rows = [compare(values, members, against, scorer=scorer)]
    rows += compare_at_equal_kl(values, mix_controls(values, matched), members, scorer=scorer)
    return pd.concat(rows, ignore_index=True)


def compare(
    values: pd.DataFrame, members: Sequence[Subgroup], against: Mapping[str, Sequence[str]], *, scorer: str
) -> pd.DataFrame:
    """Rows of the metrics table for all arms of `values` (see `per_prompt`) at once, see `summarise`.

    `against` has, by arm, the arms that it is compared with; arms without an entry are measured alone.
    """
    wide = {
        column: values.pivot(index="arm_id", columns="prompt_id", values=column)
        for column in values.columns.difference(["arm_id", "prompt_id"])
    }
    arms = next(iter(wide.values())).index
    pairs = [(arm, other) for arm in arms for other in dict.fromkeys(against.get(arm, ())) if other != arm]
    own, other = (arms.get_indexer([pair[side] for pair in pairs]) for side in (0, 1))
    alone = [(arm, "") for arm in arms]
    rows = []
    for member in members:
        part = {column: table[member.users.index].to_numpy(np.float64) for column, table in wide.items()}
        codes, labels = pd.factorize(member.users, sort=True)
        membership = np.eye(len(labels))[codes]
        sizes, sums = membership.sum(axis=0), {column: rows @ membership for column, rows in part.items()}
        compared = _of_pairs(sums, sizes, own, other) if pairs else ()
        for keys, measures in ((alone, _of_arms(part, sums, sizes)), (pairs, compared)):
            for metric, bounds in measures:
                one_value = (member.split, member.name, scorer, metric, len(codes), len(labels))
                split, name, who, what, n, k = (np.broadcast_to(value, len(keys)) for value in one_value)
                rows.append([*zip(*keys, strict=True), split, name, who, what, *bounds, n, k])
    columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
    table = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
    return table[np.isfinite(table["value"])].reset_index(drop=True)


def compare_at_equal_kl(
    values: pd.DataFrame, controls: pd.DataFrame, members: Sequence[Subgroup], *, scorer: str
) -> Iterator[pd.DataFrame]:
    """Comparisons with the controls of `mix_controls`, and their KL; the comparator is the control's kind."""
    for kind, rows in controls.groupby("kind"):
        names = {f"{kind} of {arm}": arm for arm in rows["arm_id"].unique()}
        rows = rows.drop(columns="kind").assign(arm_id=f"{kind} of " + rows["arm_id"])
        both = pd.concat([values[values["arm_id"].isin(names.values())], rows], ignore_index=True)
        found = compare(both, members, {arm: [name] for name, arm in names.items()}, scorer=scorer)
        kl = found[found["arm_id"].isin(names) & (found["metric"] == "kl_per_token")]
        kl = kl.assign(arm_id=kl["arm_id"].map(names), metric="control_kl_per_token")
        yield pd.concat([found[found["comparator"] != ""], kl]).assign(comparator=kind)


Found = tuple[str, Bounds]


def _of_arms(part: Mapping[str, Floats], sums: Mapping[str, Floats], sizes: Floats) -> Iterator[Found]:
    """Measures of each arm; `part` has `(arms, prompts)` by column, `sums` `(arms, K)`."""
    for column in [name for name in MEANS if name in sums]:
        yield column, intervals.mean_bounds(sums[column], sizes, within=MEANS[column])
    for column in [name for name in SHARES if name in sums]:
        yield column, intervals.share_bounds(sums[column], sizes)
    with np.errstate(over="ignore"):
        nll = intervals.ratio_bounds(sums["nll_base"], sums["n_tokens"])
        yield "perplexity", Bounds(*(np.exp(x) for x in nll))
    if "kl_to_base" in sums:
        yield "kl_per_token", intervals.ratio_bounds(sums["kl_to_base"], sums["n_tokens"])
    for column in [name for name in REDUCTIONS if name in part]:
        yield f"{column}_effective_n", _plain(effective_number(part[column]))
        yield f"{column}_top_three", _plain(top_share(part[column]))


def _of_pairs(
    sums: Mapping[str, Floats], sizes: Floats, own: NDArray[np.intp], other: NDArray[np.intp]
) -> Iterator[Found]:
    """Comparisons of the arms `own` with the arms `other`, pair by pair."""
    for column in [name for name in DIFFERENCES if name in sums]:
        change = sums[column][own] - sums[column][other]
        yield f"{column}_difference", intervals.mean_bounds(change, sizes, within=(-1, 1))
    for column in [name for name in REDUCTIONS if name in sums]:
        ratio = intervals.ratio_bounds(sums[column][own], sums[column][other])
        yield REDUCTIONS[column], Bounds(*(100 * (1 - x) for x in (ratio.value, ratio.high, ratio.low)))
    four = np.stack([sums[column][arm] for arm in (own, other) for column in ("nll_base", "n_tokens")])
    with np.errstate(over="ignore"):
        found = intervals.jackknife_bounds(four, sizes, lambda m: m[0] / m[1] - m[2] / m[3])
        yield "perplexity_ratio", Bounds(*(np.exp(x) for x in found))


def _plain(value: Floats) -> Bounds:
    return Bounds(value, np.full(value.shape, np.nan), np.full(value.shape, np.nan))


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


def summarise_choices(
    choices: pd.DataFrame, questions: pd.DataFrame, *, base_arm: str, source: str
) -> pd.DataFrame:
    """Accuracy and calibration on multiple choice and the change against base, rows of the metrics table.

    Metrics are accuracy (per cent) and calibration_error (comparator ""), accuracy_change (points, on the same
    questions; comparator `base_arm`); subgroups "all" and `category=<of the context>`. A question asked under several
    contexts is one cluster, and each is asked in every context, so that `accuracy` is the papers' macro average over
    contexts. `source` of the questions stands in column `scorer`. A ValueError for no base, a choice without question,
    or an arm that answered other questions than the base.
    """
    known = choices.merge(questions[["question_id", "answer"]], on="question_id", how="left")
    if known["answer"].isna().any():
        unknown = known.loc[known["answer"].isna(), "question_id"].iloc[0]
        raise ValueError(f"question {unknown!r} is not in the table")
    p = known[[f"p_{letter}" for letter in LETTERS]].to_numpy(dtype=np.float64)
    gaps = calibration_gaps(p, known["answer"].tolist())
    known["right"] = 100.0 * known["correct"]
    of_base = known[known["arm_id"] == base_arm].groupby("question_id")["right"].mean()
    if of_base.empty:
        raise ValueError(f"no choices of the base arm {base_arm!r}")
    rows = []
    for arm, own in known.groupby("arm_id", sort=True):
        if set(own["question_id"]) != set(of_base.index):
            raise ValueError(f"arm {arm!r} answered other questions than the base {base_arm!r}")
        contexts = [(f"category={name}", part) for name, part in own.groupby("category") if name]
        for subgroup, part in [("all", own), *contexts]:
            ids, place = part["question_id"], part.index
            error = intervals.cluster_interval(gaps[place], ids, lambda m: abs(m).sum(-1), within=(0, 1))
            found = {
                ("accuracy", ""): intervals.share_interval(part["right"], ids, within=(0, 100)),
                ("calibration_error", ""): error,
            }
            if arm != base_arm:
                change = part["right"] - ids.map(of_base)
                difference = intervals.cluster_interval(change, ids, within=(-100, 100))
                found["accuracy_change", base_arm] = difference
            rows += [[arm, c, "test", subgroup, source, metric, *i[:5]] for (metric, c), i in found.items()]
    return pd.DataFrame(rows, columns=COLUMNS)
