"""Answers side by side. All text comes from a model or a person and is escaped: it is shown, never obeyed.

Pictures of notebook 03: how much the answers moved, before anybody asks whether they improved.
"""

from html import escape

import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from steerlib.evaluation import Interval, first_temperature, ratio_interval, share_interval
from steerlib.evaluation.metrics import without_alpha
from steerlib.figures.responses import plot_against_alpha
from steerlib.figures.style import SETTINGS_POINTS, arm_name, strength


def answers_moved(generations: pd.DataFrame, arms: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """How often an answer differs from the base's of the same prompt and seed, and the dose, for each arm.

        changed = 100 (answers whose text differs) / answers
        dose    = sum KL(steered || base) / sum tokens

    Args:
        generations: table `generations`.
        arms: table `arms`; those at a second temperature, whose base is another, are left out.
        prompts: table `prompts`; its users are the clusters of the 95 % intervals.

    Returns:
        One row an arm, split and metric, for the plots below: the arm's settings, `metric` ("changed_percent" or
        "kl_per_token", nats), `split`, `value`, `low`, `high`, `n` (answers), `n_clusters` (users).

    Raises:
        ValueError: there is not exactly one base arm.
    """
    rows = generations.merge(first_temperature(arms)[SETTINGS_POINTS], on="arm_id", validate="many_to_one")
    rows = rows.merge(prompts[["prompt_id", "user_id", "split"]], on="prompt_id", validate="many_to_one")
    base = rows[rows["control"] == "base"]
    if base["arm_id"].nunique() != 1:
        raise ValueError(f"need exactly one base arm, not {base['arm_id'].nunique()}")
    reference = base[["prompt_id", "seed", "text"]]
    paired = rows.drop(base.index).merge(reference, on=["prompt_id", "seed"], suffixes=("", "_base"))
    paired["changed"] = 100.0 * (paired["text"] != paired["text_base"])
    moved = []
    for _, answers in paired.groupby([*SETTINGS_POINTS, "split"]):
        settings = answers.iloc[0][[*SETTINGS_POINTS, "split"]].to_dict()
        moved += [{**settings, "metric": name, **value._asdict()} for name, value in _measures(answers)]
    return pd.DataFrame(moved)


def _measures(answers: pd.DataFrame) -> list[tuple[str, Interval]]:
    users = answers["user_id"].to_numpy()
    measures = [("changed_percent", share_interval(answers["changed"].to_numpy(), users, within=(0, 100)))]
    # No dose where all answers are empty, nor of an aligner, which steers no step of the base.
    if answers["n_tokens"].sum() and answers["kl_to_base"].notna().all():
        measures.append(("kl_per_token", ratio_interval(answers["kl_to_base"], answers["n_tokens"], users)))
    return measures


def plot_changed_answers(moved: pd.DataFrame) -> Figure:
    """Share of answers that differ from the base's, against alpha.

    Args:
        moved: what `answers_moved` returned.
    """
    return _plot(moved, "changed_percent", "answers that differ from the base's (%),\n95 % interval")


def plot_dose(moved: pd.DataFrame) -> Figure:
    """How far the next-token distribution is pushed, against alpha: the dose that makes methods comparable.

    Args:
        moved: what `answers_moved` returned.
    """
    return _plot(moved, "kl_per_token", "KL(steered || base), nats a token,\n95 % interval")


def _plot(moved: pd.DataFrame, metric: str, ylabel: str) -> Figure:
    shown = moved[(moved["metric"] == metric) & ~without_alpha(moved)]
    return plot_against_alpha(shown, ylabel=ylabel)


CELL = (
    'style="text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere;'
    'min-width:10em;padding:4px 8px"'
)


def examples_html(
    generations: pd.DataFrame,
    arms: pd.DataFrame,
    prompts: pd.DataFrame,
    *,
    n: int = 3,
    seed: int | None = None,
    longest: int = 600,
) -> HTML:
    """Answers of several arms to the same prompts, one column an arm, as an HTML table with everything escaped.

    Args:
        generations: table `generations`; arms that are not in `arms` are left out.
        arms: rows of table `arms`: the columns, from left to right.
        prompts: rows of table `prompts`; the first `n` that every arm answered are shown.
        n: prompts to show.
        seed: of the answers; None for the smallest there is.
        longest: characters shown of a text; a cut is marked.

    Raises:
        ValueError: no prompt was answered by all the arms.
    """
    answers = generations[generations["arm_id"].isin(arms["arm_id"])]
    answers = answers[answers["seed"] == (answers["seed"].min() if seed is None else seed)]
    wide = answers.pivot(index="prompt_id", columns="arm_id", values="text").reindex(
        columns=list(arms["arm_id"])
    )
    asked = prompts.set_index("prompt_id")["prompt"]
    shown = [prompt for prompt in asked.index if prompt in wide.dropna().index][:n]
    if not shown:
        raise ValueError(f"no prompt was answered by all {len(arms)} arms with the same seed")
    heads = ["Prompt", *(_heading(arm) for _, arm in arms.iterrows())]
    body = [[asked[prompt], *wide.loc[prompt]] for prompt in shown]
    rows = ["".join(f"<th {CELL}>{escape(head)}</th>" for head in heads)]
    rows += ["".join(f"<td {CELL}>{escape(_cut(text, longest))}</td>" for text in row) for row in body]
    return HTML("<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>")


def _heading(arm: pd.Series) -> str:
    name = arm_name(arm)
    return f"{name}, {strength(arm['method'])} {arm['alpha']:g}" if arm["alpha"] else name


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest] + " [cut]"
