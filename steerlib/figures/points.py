"""Which rows of the metrics table a figure shows, and what tells one curve from another."""

from collections.abc import Iterator

import pandas as pd

from steerlib.figures.style import label

SETTINGS = ["arm_id", "method", "alpha", "profile", "vector", "variant"]
SPLIT_LINE = {"dev": (0, (4, 2)), "test": "-"}


def points(
    metrics: pd.DataFrame,
    arms: pd.DataFrame,
    metric: str,
    *,
    split: str | None = None,
    subgroup: str | None = "all",
    scorer: str | None = None,
    comparator: str | None = None,
) -> pd.DataFrame:
    """One metric of every arm, with the arm's method, alpha, profile, vector and variant beside it.

    Args:
        metrics: table `metrics`.
        arms: table `arms`.
        metric: name of the metric.
        split, subgroup, scorer, comparator: keep these rows only; None keeps all.

    Returns:
        The rows of `metrics`, sorted by method, profile, vector, variant, split and alpha.

    Raises:
        KeyError: no row is left; the metrics there are get named.
        ValueError: an arm is unknown, or one arm has several values on a split, so that a choice is missing.
    """
    wanted = {
        "metric": metric,
        "split": split,
        "subgroup": subgroup,
        "scorer": scorer,
        "comparator": comparator,
    }
    chosen = metrics
    for column, value in wanted.items():
        chosen = chosen if value is None else chosen[chosen[column] == value]
    if chosen.empty:
        given = {column: value for column, value in wanted.items() if value is not None}
        raise KeyError(
            f"no row with {given}; the metrics are {', '.join(sorted(metrics['metric'].unique()))}"
        )
    unknown = sorted(set(chosen["arm_id"]) - set(arms["arm_id"]))
    if unknown:
        raise ValueError(f"{len(unknown)} arms are not in the arms table, the first is {unknown[0]!r}")
    several = [c for c in ("subgroup", "scorer", "comparator") if chosen[c].nunique() > 1]
    if chosen.duplicated(["arm_id", "split"]).any():
        raise ValueError(
            f"{metric}: an arm has several values on a split; choose one {' and one '.join(several)}"
        )
    joined = chosen.merge(arms[SETTINGS], on="arm_id", validate="many_to_one")
    return joined.sort_values(["method", "profile", "vector", "variant", "split", "alpha"], ignore_index=True)


def reduced(points: pd.DataFrame) -> str:
    """What a reduction is of: the toxicity distance, or toxicity where the prompts have no accepted answer."""
    itself = "metric" in points and (points["metric"] == "toxicity_reduction_percent").any()
    return "toxicity" if itself else "toxicity distance"


def is_control(points: pd.DataFrame) -> pd.Series:
    """Which rows are placebos: a shuffled profile, or a random vector (its name says `random`)."""
    return (points["profile"] == "shuffled") | points["vector"].str.contains("random", case=False)


def curves(points: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each curve of a method's panel: what sets it apart within the method, and its rows by alpha.

    The steered arms come first, then population profiles, then the placebos.
    """
    rank = is_control(points).astype(int) * 2 + (points["profile"] == "population")
    keys = ["_rank", "profile", "vector", "variant", "split"]
    for _, rows in points.assign(_rank=rank).sort_values([*keys, "alpha"]).groupby(keys, sort=False):
        first = rows.iloc[0]
        yield (
            ", ".join(part for part in (arm_name(first, method=False), first["split"]) if part),
            rows.drop(columns="_rank"),
        )


def arm_label(method: str, profile: str, vector: str, variant: str = "") -> str:
    """How an arm is called in a legend, from what sets it apart."""
    vector = vector.split("@")[0]  # the file's hash tells vectors apart in a table, not to a reader
    signal = f"{vector.replace('_', ' ')} vector" if vector and "vector" not in vector else vector
    signal = signal.replace("_", " ") or (label(profile) if profile not in ("none", "") else "")
    return ", ".join(part for part in (label(method) if method else "", signal, variant) if part)


def arm_name(arm: pd.Series, *, method: bool = True) -> str:
    """The label of a row of the arms table, or of `points`; without its method's name inside a method's own panel."""
    # A vector beside a logit rule is in the variant's words; the signal of the rule is the profile.
    vector = "" if "beside" in arm["variant"] else arm["vector"]
    return arm_label(arm["method"] if method else "", arm["profile"], vector, arm["variant"])


def counts(points: pd.DataFrame) -> str:
    """How much the figure rests on, for its caption: n and the number of clusters (users) of each split."""
    parts = []
    for split, rows in points.groupby("split"):
        n, clusters = (_span(rows[column]) for column in ("n", "n_clusters"))
        parts.append(f"{split}: n = {n} in {clusters} clusters")
    return "; ".join(parts)


def _span(numbers: pd.Series) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low} to {high}"


def headline(points: pd.DataFrame) -> pd.DataFrame:
    """The result table: one row an arm and split, the value with its interval, placebos marked.

    Args:
        points: what `points` returned, for instance cut to the chosen alphas on test prompts.

    Returns:
        Method, alpha, split, value, low, high (as in `points`), n, clusters, and whether it is a control.
    """
    names = [arm_name(row) for _, row in points.iterrows()]
    table = points[["alpha", "split", "value", "low", "high", "n", "n_clusters"]].rename(
        columns={"n_clusters": "clusters"}
    )
    table.insert(0, "arm", names)
    return table.assign(control=is_control(points).map({True: "placebo", False: ""})).reset_index(drop=True)
