"""Asking the model multiple-choice questions under every arm: one pass over the branches serves all alphas."""

from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from steerlib.evaluation.choices import choice_rows, choices_under_steering, letter_ids
from steerlib.evaluation.letters import Branch, LetterLogits
from steerlib.evaluation.questions import LETTERS, question_prompt, shots_for
from steerlib.generation import RULES, BranchModels, Contexts
from steerlib.generation.arms import reads_contexts
from steerlib.generation.branches import branch_names, check_branch_models, owner
from steerlib.models import FrozenModel
from steerlib.progress import progress_bar
from steerlib.toxicity import ATTRIBUTES
from steerlib.vectors.residual import Vectors


def ask_questions(
    frozen: FrozenModel,
    questions: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    contexts: Contexts,
    vectors: Mapping[str, Vectors] | None = None,
    branch_models: BranchModels | None = None,
    dev: pd.DataFrame | None = None,
    shots: int = 0,
    categories: Sequence[str] = ATTRIBUTES,
    batch_tokens: int = 4096,
) -> pd.DataFrame:
    """Option probabilities of every question under every arm.

    Logit rules are linear in alpha, so the branches are read once a category and combined for each alpha; of a
    steering vector every alpha is read, in the layers from its first one on. A question is put as plain text behind
    the context, as the reference does, whatever the style of the generations. What the questions of a subject open
    with (context, header, shots) is read once for all of them. Sampling plays no part, nor does a limit to the base's
    nucleus.

    Args:
        frozen: the model.
        questions: the questions table.
        arms: the arms table. Left out are those of a shuffled profile, whose contexts are those of "own", those that
            a question alone does not settle (a vector of each user, a factor of each prompt), and an external aligner,
            which corrects texts.
        contexts: texts of the branches by category.
        vectors: steering vectors by name.
        branch_models: trained branches that the arms name, see `decode`; they read a question without context.
        dev: questions that the shots are taken from.
        shots: solved questions before each; STEER-Away has 1, the CAA study 0.
        categories: under whose contexts an arm of profile "own" is asked; by default the six of STEER-Away, in an SDA
            run the dimensions of its prompts.
        batch_tokens: tokens of the questions in one forward pass, pads counted; bounds memory.

    Returns:
        The choices table; category is that of the contexts, "" where there are none.

    Raises:
        ValueError: fewer dev questions than shots, a question longer than the model's context, letters that are
            not single tokens, a context that is missing, or a trained branch that is missing or cannot stand beside
            the model.
        KeyError: an arm's vector is not among those given.
    """
    vectors, branch_models = vectors or {}, branch_models or {}
    arms = _settled(arms, vectors)
    check_branch_models(frozen, arms, branch_models)
    asked = [
        (arm, category, _branches(frozen, arm, category, contexts, branch_models))
        for arm in arms.to_dict("records")
        for category in _categories(arm, categories)
    ]
    reader = LetterLogits(
        {"": frozen, **branch_models},
        questions,
        _texts(questions, dev, shots),
        letters=letter_ids(frozen),
        vectors=vectors,
        batch_tokens=batch_tokens,
    )
    readings = list(dict.fromkeys(branch for _, _, branches in asked for branch in branches.values()))
    with progress_bar(len(readings), what="questions", unit="branch") as bar:
        logits = reader.read(readings, bar.update)
    rows = []
    for arm, category, branches in asked:
        z = {name: logits[branch] for name, branch in branches.items()}
        p = choices_under_steering(z, arm["method"], [arm["alpha"] * _factor(arm)], range(len(LETTERS)))
        rows.append(choice_rows(p[0], questions, arm_id=arm["arm_id"], category=category))
    return pd.concat(rows, ignore_index=True)


def _settled(arms: pd.DataFrame, vectors: Collection[str]) -> pd.DataFrame:
    """The arms that say by themselves how a question is steered."""
    families = {name.partition("/")[0] for name in vectors} - {*vectors}
    missing = sorted({*arms["vector"]} - {"", *vectors} - families)
    if missing:
        raise KeyError(f"no steering vector {missing[0]!r}; given are {', '.join(vectors) or 'none'}")
    of_prompts = (arms["factor"] != "") & pd.to_numeric(arms["factor"], errors="coerce").isna()
    left_out = (arms["profile"] == "shuffled") | (arms["method"] == "aligner") | of_prompts
    return arms[~left_out & ~arms["vector"].isin(families)]


def _categories(arm: Mapping, categories: Sequence[str]) -> Sequence[str]:
    if not reads_contexts(arm["method"], branch_names(arm["branches"])):
        return [arm["category"]]
    return categories if arm["profile"] == "own" else [arm["category"]]


def _factor(arm: Mapping) -> float:
    return float(arm["factor"] or 1)


def _branches(
    frozen: FrozenModel, arm: Mapping, category: str, contexts: Contexts, models: BranchModels
) -> dict[str, Branch]:
    """What a method's rule reads; a vector beside a logit rule steers every branch that is a context, and the base."""
    trained = branch_names(arm["branches"])
    strength = (arm["alpha"] if arm["method"] == "caa" else arm["vector_alpha"]) * _factor(arm)
    steering = (arm["vector"], strength, arm["positions"]) if arm["vector"] and strength else ()
    found = {"base": Branch(steering=() if arm["method"] == "caa" else steering)}
    for name in RULES[arm["method"]].branches:
        if name in trained:
            found[name] = Branch(model=owner(frozen, models, name))
        elif name == "steered":
            found[name] = Branch(steering=steering)
        elif name in contexts.get(category, {}):
            found[name] = Branch(contexts[category][name], steering)
        else:
            raise ValueError(f"the contexts have no {name!r} for category {category!r}")
    return found


def _texts(questions: pd.DataFrame, dev: pd.DataFrame | None, shots: int) -> list[str]:
    source = dev if dev is not None else questions.head(0)
    solved = {subject: shots_for(subject, source, shots) for subject in questions["subject"].unique()}
    return [question_prompt(question, solved[question["subject"]]) for _, question in questions.iterrows()]
