"""Asking the model multiple-choice questions under every arm: one pass over the branches serves all alphas."""

from collections.abc import Mapping

import pandas as pd
import torch
from tqdm import tqdm

from steerlib.evaluation.choices import choice_rows, choices_under_steering, letter_ids
from steerlib.evaluation.questions import question_prompt, shots_for
from steerlib.generation import RULES, Contexts
from steerlib.models import FrozenModel, last_logits, prompt_ids
from steerlib.toxicity import ATTRIBUTES
from steerlib.vectors import add_to_residual
from steerlib.vectors.residual import Vectors


def ask_questions(
    frozen: FrozenModel,
    questions: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    contexts: Contexts,
    vectors: Mapping[str, Vectors] | None = None,
    dev: pd.DataFrame | None = None,
    shots: int = 0,
    batch_tokens: int = 4096,
) -> pd.DataFrame:
    """Option probabilities of every question under every arm.

    Logit rules are linear in alpha, so the branches are read once a category and combined for each alpha; a
    steering vector needs a pass an alpha. A question is put as plain text behind the context, as the reference
    does, whatever the style of the generations.

    Args:
        frozen: the model.
        questions: the questions table.
        arms: the arms table; those of a shuffled profile are left out, their contexts being those of "own".
        contexts: expert and anti-expert context by category.
        vectors: steering vectors by name.
        dev: questions that the shots are taken from.
        shots: solved questions before each; STEER-Away has 1, the CAA study 0.
        batch_tokens: tokens in one forward pass.

    Returns:
        The choices table; category is that of the contexts, "" where there are none.
    """
    empty = pd.DataFrame(columns=questions.columns)
    texts = [
        question_prompt(q, shots_for(q["subject"], dev if dev is not None else empty, shots))
        for _, q in questions.iterrows()
    ]
    letters = letter_ids(frozen)
    asked = arms[arms.profile != "shuffled"]
    read = _Reader(frozen, texts, contexts, batch_tokens)
    rows = []
    for (method, profile, vector), group in tqdm(
        asked.groupby(["method", "profile", "vector"]), desc="questions"
    ):
        for category in ATTRIBUTES if profile == "own" else group.category.unique():
            for arm_group in [group] if not vector else [group.iloc[[i]] for i in range(len(group))]:
                alphas = arm_group.alpha.tolist()
                branches = {"base": read.branch("base", "")}
                if vector:
                    arm = arm_group.iloc[0]
                    branches["steered"] = read.steered((vectors or {})[vector], arm.alpha, arm.positions)
                else:
                    branches |= {name: read.branch(name, category) for name in RULES[method].branches}
                found = choices_under_steering(branches, method, alphas, letters)
                for arm_id, p in zip(arm_group.arm_id, found, strict=True):
                    rows.append(choice_rows(p, questions, arm_id=arm_id, category=category))
    return pd.concat(rows, ignore_index=True)


class _Reader:
    """Next-token logits of all questions in each context, each read once."""

    def __init__(self, frozen: FrozenModel, texts: list[str], contexts: Contexts, batch_tokens: int) -> None:
        self.frozen, self.texts, self.contexts, self.batch_tokens = frozen, texts, contexts, batch_tokens
        self.known: dict[tuple[str, str], torch.Tensor] = {}

    def branch(self, name: str, category: str) -> torch.Tensor:
        if (name, category) not in self.known:
            context = "" if name == "base" else self.contexts[category][name]
            self.known[name, category] = self._read(context)
        return self.known[name, category]

    def steered(self, vector: Vectors, alpha: float, positions: str) -> torch.Tensor:
        with add_to_residual(self.frozen.model, vector, alpha=alpha, positions=positions):
            return self._read("", one_pass=True)

    def _read(self, context: str, *, one_pass: bool = False) -> torch.Tensor:
        ids = [prompt_ids(self.frozen, text, style="continuation", context=context) for text in self.texts]
        # The hooks take the first pass for the prompt, so a steered reading gives each question a pass of its own.
        if one_pass:
            return torch.cat([last_logits(self.frozen, [one]) for one in ids])
        return last_logits(self.frozen, ids, batch_tokens=self.batch_tokens)
