"""Asking the model multiple-choice questions under every arm: one pass over the branches serves all alphas."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import torch

from steerlib.evaluation.choices import choice_rows, choices_under_steering, letter_ids
from steerlib.evaluation.questions import LETTERS, question_prompt, shots_for
from steerlib.generation import RULES, BranchModels, Contexts
from steerlib.generation.branches import branch_names, check_branch_models
from steerlib.generation.streams import Stream, Streams
from steerlib.models import FrozenModel, TokenIds, check_length, prompt_ids
from steerlib.progress import progress_bar
from steerlib.toxicity import ATTRIBUTES
from steerlib.vectors.residual import ResidualDose, Vectors, residual_hooks

FEW = 4
"""Questions of a subject that are worth a forward pass of their own: fewer gain more from a larger batch."""


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
    batch_tokens: int = 4096,
) -> pd.DataFrame:
    """Option probabilities of every question under every arm.

    Logit rules are linear in alpha, so the branches are read once a category and combined for each alpha; a
    steering vector needs a pass an alpha. A question is put as plain text behind the context, as the reference
    does, whatever the style of the generations. What the questions of a subject open with (context, header,
    shots) is read once for all of them. Sampling plays no part, nor does a limit to the base's nucleus.

    Args:
        frozen: the model.
        questions: the questions table.
        arms: the arms table; those of a shuffled profile are left out, their contexts being those of "own".
        contexts: expert and anti-expert context by category.
        vectors: steering vectors by name.
        branch_models: trained branches that the arms name, see `decode`; they read a question without context.
        dev: questions that the shots are taken from.
        shots: solved questions before each; STEER-Away has 1, the CAA study 0.
        batch_tokens: tokens of the questions in one forward pass, pads counted; bounds memory.

    Returns:
        The choices table; category is that of the contexts, "" where there are none.

    Raises:
        ValueError: fewer dev questions than shots, a question longer than the model's context, letters that are
            not single tokens, or a trained branch that is missing or cannot stand beside the model.
        KeyError: an arm's vector is not among those given.
    """
    asked = arms[arms["profile"] != "shuffled"]
    missing = sorted(set(asked["vector"]) - {""} - set(vectors or {}))
    if missing:
        raise KeyError(f"no steering vector {missing[0]!r}; given are {', '.join(vectors or {}) or 'none'}")
    models = {"": frozen, **(branch_models or {})}
    check_branch_models(frozen, asked, branch_models or {})
    read = _Reader(models, questions, _texts(questions, dev, shots), contexts, batch_tokens)
    rows = []
    settings = ["method", "profile", "vector", "category", "branches"]
    groups = [
        (*setting, group, category)
        for setting, group in asked.groupby(settings)
        for category in (ATTRIBUTES if setting[1] == "own" else [setting[3]])
    ]
    with progress_bar(len(groups), what="questions", unit="grid") as bar:
        for method, _, vector, _, trained, group, category in groups:
            for arms_at_once in [group] if not vector else [group.iloc[[i]] for i in range(len(group))]:
                branches = {"base": read.branch("base", "")}
                if vector:
                    arm = arms_at_once.iloc[0]
                    branches["steered"] = read.steered((vectors or {})[vector], arm.alpha, arm.positions)
                else:
                    own_models = branch_names(trained)
                    for name in RULES[method].branches:
                        branches[name] = read.branch(name, category, trained=name in own_models)
                alphas = arms_at_once["alpha"].tolist()
                found = choices_under_steering(branches, method, alphas, range(len(LETTERS)))
                for arm_id, p in zip(arms_at_once["arm_id"], found, strict=True):
                    rows.append(choice_rows(p, questions, arm_id=arm_id, category=category))
            bar.update()
    return pd.concat(rows, ignore_index=True)


def _texts(questions: pd.DataFrame, dev: pd.DataFrame | None, shots: int) -> list[str]:
    source = dev if dev is not None else questions.head(0)
    solved = {subject: shots_for(subject, source, shots) for subject in questions["subject"].unique()}
    return [question_prompt(question, solved[question["subject"]]) for _, question in questions.iterrows()]


class _Reader:
    """Logits of the four letters after all questions in each context, `(n, 4)`; each context is read once."""

    def __init__(
        self,
        models: BranchModels,
        questions: pd.DataFrame,
        texts: list[str],
        contexts: Contexts,
        batch_tokens: int,
    ) -> None:
        self.models, self.texts, self.contexts, self.batch_tokens = models, texts, contexts, batch_tokens
        self.frozen = models[""]
        self.ids, self.subjects = questions["question_id"].tolist(), questions["subject"].tolist()
        self.letters = letter_ids(self.frozen)
        self.known: dict[tuple[str, str], torch.Tensor] = {}

    def branch(self, name: str, category: str, *, trained: bool = False) -> torch.Tensor:
        key = (name, "") if trained else (name, category)
        if key not in self.known:
            context = "" if trained or name == "base" else self.contexts[category][name]
            model = self.models[name if trained else ""]
            self.known[key] = self._read(self._tokens(context), ResidualDose(), model=model)
        return self.known[key]

    def steered(self, vector: Vectors, alpha: float, positions: str) -> torch.Tensor:
        directions = {layer: v[None].to(self.frozen.device) for layer, v in vector.items()}
        with residual_hooks(self.frozen.model, directions) as dose:
            return self._read(self._tokens(""), dose, ("vector", alpha, positions))

    def _tokens(self, context: str) -> list[TokenIds]:
        found = [prompt_ids(self.frozen, text, style="continuation", context=context) for text in self.texts]
        for question, ids in zip(self.ids, found, strict=True):
            check_length(self.frozen, ids, 1, what=f"question {question}")
        return found

    @torch.inference_mode()
    def _read(
        self,
        tokens: list[TokenIds],
        dose: ResidualDose,
        steering: tuple[str, float, str] | tuple[()] = (),
        model: FrozenModel | None = None,
    ) -> torch.Tensor:
        precision = torch.promote_types(self.frozen.dtype, torch.float32)
        found = torch.empty(len(tokens), len(self.letters), dtype=precision)
        for batch in self._batches(tokens):
            streams = Streams(
                model or self.frozen,
                [Stream(tokens[i], *steering) for i in batch],
                capacity=len(batch),
                max_new_tokens=0,
                vectors=steering[:1],
                dose=dose,
            )
            # The four columns alone are kept: 1,000 questions of all logits would be half a gigabyte a branch.
            found[batch] = streams.prefill()[:, self.letters].cpu()
        return found

    def _batches(self, tokens: Sequence[TokenIds]) -> Iterator[list[int]]:
        """Questions of one subject, which share their opening, the longest first; few ones of several together."""
        sizes = Counter(self.subjects)
        groups = [name if sizes[name] >= FEW else "" for name in self.subjects]
        for group in dict.fromkeys(groups):
            own = [i for i, name in enumerate(groups) if name == group]
            own.sort(key=lambda i: len(tokens[i]), reverse=True)
            while own:
                take = max(1, self.batch_tokens // len(tokens[own[0]]))
                batch, own = own[:take], own[take:]
                yield batch
