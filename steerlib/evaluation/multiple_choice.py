"""Answers to multiple-choice questions from next-token logits, for every alpha of one pass over the branches.

Teacher forcing: what each branch says at every token of answers that are given, the prompt being read once.

Logits of the four letters behind multiple-choice questions: each reading of a question once, and what readings
have in common once for all of them.

Asking the model multiple-choice questions under every arm: one pass over the branches serves all alphas.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from steerlib.decoding import RULES, BranchModels, Contexts
from steerlib.decoding.contexts import branch_names, check_branch_models, owner
from steerlib.decoding.requests import Stream
from steerlib.decoding.streams import Streams
from steerlib.evaluation.questions import LETTERS, question_prompt, shots_for
from steerlib.models import FrozenModel
from steerlib.reading import TokenIds, check_length, left_padded, position_ids, prompt_ids
from steerlib.residual import (
    VectorFamily,
    VectorKey,
    Vectors,
    family_of,
    steering_hooks,
    strength,
    vectors_by_key,
)
from steerlib.rules import check_method
from steerlib.tables import SCHEMA, progress_bar
from steerlib.toxicity import ATTRIBUTES


@torch.inference_mode()
def forced_logits(
    frozen: FrozenModel,
    contexts: Mapping[str, TokenIds],
    answers: Sequence[TokenIds],
    *,
    batch_tokens: int = 1024,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Logits of every branch that predict the tokens of given answers.

        z_b[t] = logits after (context of b, y_1 .. y_{t-1})

    All branches read their contexts in one forward pass, whose cache the answers share.

    Args:
        frozen: the model.
        contexts: token ids that each branch reads before the answer.
        answers: token ids of each answer; none empty.
        batch_tokens: answer tokens in one forward pass, over all branches and pads counted; bounds memory.

    Yields:
        Place of an answer in `answers`, and by branch its logits `(n_tokens, vocab)`; the longest answers first.
    """
    ids, mask = left_padded(list(contexts.values()), frozen.device)
    read = frozen.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids(mask),
        logits_to_keep=1,
        use_cache=True,
    )
    for places in _batches(answers, len(contexts), batch_tokens):
        inputs = [answers[i][:-1] for i in places]
        later = _continued(frozen, read.past_key_values, mask, inputs) if any(inputs) else None
        for row, (place, given) in enumerate(zip(places, inputs, strict=True)):
            z = {}
            for branch, name in enumerate(contexts):
                first = read.logits[branch, -1:]
                rest = [] if later is None else [later[branch * len(places) + row, : len(given)]]
                z[name] = torch.cat([first, *rest])
            yield place, z


def _batches(answers: Sequence[TokenIds], branches: int, batch_tokens: int) -> Iterator[list[int]]:
    """Places of answers of like length together, the longest first."""
    waiting = sorted(range(len(answers)), key=lambda i: len(answers[i]), reverse=True)
    while waiting:
        take = max(1, batch_tokens // (branches * max(1, len(answers[waiting[0]]))))
        batch, waiting = waiting[:take], waiting[take:]
        yield batch


def _continued(frozen: FrozenModel, cache: object, mask: Tensor, inputs: Sequence[TokenIds]) -> Tensor:
    """Logits after each token of the inputs behind each cached context, `(branches * inputs, longest, vocab)`."""
    longest = max(map(len, inputs))
    ids = torch.zeros(len(inputs), longest, dtype=torch.long, device=mask.device)
    for row, given in enumerate(inputs):
        ids[row, : len(given)] = torch.tensor(given, dtype=torch.long)
    own = copy.deepcopy(cache)  # a pass writes into its cache
    own.batch_repeat_interleave(len(inputs))  # ty: ignore[missing-attribute]
    before = mask.repeat_interleave(len(inputs), 0)
    # Pads stand right of an answer, where no token of it looks.
    whole = torch.cat([before, torch.ones_like(ids).repeat(len(mask), 1)], 1)
    return frozen.model(
        input_ids=ids.repeat(len(mask), 1),
        attention_mask=whole,
        position_ids=position_ids(whole)[:, -longest:],
        past_key_values=own,
        use_cache=True,
    ).logits


FEW = 4
"""Questions of a subject that are worth a forward pass of their own: fewer gain more from a larger batch."""

TOGETHER = 10
"""Steered readings of a question at one time, the base and a grid of nine: more leave room for fewer questions."""

HELD = 4
"""Forward passes whose tokens are held at one time, for what the readings of a question have in common."""


@dataclass(frozen=True)
class Branch:
    """How a question is read.

    Attributes:
        context: text before it.
        steering: key, strength and positions of the vector that steers it; empty for none.
        model: which model reads it: empty for the frozen one, else the name of a trained branch.
    """

    context: str = ""
    steering: tuple[VectorKey, float, str] | tuple[()] = ()
    model: str = ""


class LetterLogits:
    """Reads questions.

    Args:
        models: the frozen model under "", trained branches by name.
        questions: the questions table.
        texts: each question as it is put.
        letters: ids of the four letters.
        vectors: steering vectors by key, see `Stream`.
        batch_tokens: tokens of the questions in one forward pass, pads counted.
    """

    def __init__(
        self,
        models: BranchModels,
        questions: pd.DataFrame,
        texts: Sequence[str],
        *,
        letters: Sequence[int],
        vectors: Mapping[VectorKey, Vectors],
        batch_tokens: int,
    ) -> None:
        self.models, self.texts, self.vectors, self.batch_tokens = models, texts, vectors, batch_tokens
        self.letters = list(letters)
        self.ids, self.subjects = questions["question_id"].tolist(), questions["subject"].tolist()

    def read(self, branches: Iterable[Branch], progress: Callable[[int], object]) -> dict[Branch, Tensor]:
        """Logits of the letters, `(n_questions, 4)` by branch.

        Args:
            branches: those of one model and context are read together.
            progress: called with the number of branches read since its last call.
        """
        alike = defaultdict(list)
        for branch in dict.fromkeys(branches):
            alike[branch.model, branch.context].append(branch)
        tokens = {context: self._tokens(context) for context in dict.fromkeys(c for _, c in alike)}
        found: dict[Branch, Tensor] = {}
        for (model, context), group in alike.items():
            for first in range(0, len(group), TOGETHER):
                together = group[first : first + TOGETHER]
                z = self._read(self.models[model], tokens[context], together)
                found |= dict(zip(together, z, strict=True))
                progress(len(together))
        return found

    def _tokens(self, context: str) -> list[TokenIds]:
        frozen = self.models[""]
        found = [prompt_ids(frozen, text, style="continuation", context=context) for text in self.texts]
        for question, ids in zip(self.ids, found, strict=True):
            check_length(frozen, ids, 1, what=f"question {question}")
        return found

    @torch.inference_mode()
    def _read(self, model: FrozenModel, tokens: list[TokenIds], branches: Sequence[Branch]) -> Tensor:
        """Letters' logits of some readings that differ in steering alone, `(len(branches), n_questions, 4)`."""
        used = {name: self.vectors[name] for name in {b.steering[0] for b in branches if b.steering}}
        precision = torch.promote_types(self.models[""].dtype, torch.float32)
        found = torch.empty(len(branches), len(tokens), len(self.letters), dtype=precision)
        with steering_hooks(model, [*used.values()]) as dose:
            for batch in self._batches(tokens, len(branches)):
                streams = Streams(
                    model,
                    [Stream(tokens[i], *branch.steering) for branch in branches for i in batch],
                    capacity=len(branches) * len(batch),
                    max_new_tokens=0,
                    vectors=[*used],
                    dose=dose,
                )
                # The four columns alone are kept: 1,000 questions of all logits would be half a gigabyte a branch.
                z = streams.prefill()[:, self.letters]
                found[:, batch] = z.reshape(len(branches), len(batch), -1).to("cpu", precision)
        return found

    def _batches(self, tokens: Sequence[TokenIds], readings: int) -> Iterator[list[int]]:
        """Questions of one subject, which share their opening, the longest first; few ones of several together."""
        budget = min(self.batch_tokens, HELD * self.batch_tokens // readings)
        sizes = Counter(self.subjects)
        groups = [name if sizes[name] >= FEW else "" for name in self.subjects]
        for group in dict.fromkeys(groups):
            own = [i for i, name in enumerate(groups) if name == group]
            own.sort(key=lambda i: len(tokens[i]), reverse=True)
            while own:
                take = max(1, budget // len(tokens[own[0]]))
                batch, own = own[:take], own[take:]
                yield batch


def ask_questions(
    frozen: FrozenModel,
    questions: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    contexts: Contexts,
    vectors: Sequence[VectorFamily] = (),
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
        vectors: families of steering vectors.
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

    """
    branch_models, arms = branch_models or {}, _settled(arms)
    for arm in arms[arms["family"] != ""].to_dict("records"):
        family_of(arm, vectors)
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
        vectors=vectors_by_key(vectors),
        batch_tokens=batch_tokens,
    )
    readings = list(dict.fromkeys(branch for _, _, branches in asked for branch in branches.values()))
    with progress_bar(len(readings), what="questions", unit="branch") as bar:
        logits = reader.read(readings, bar.update)
    rows = []
    for arm, category, branches in asked:
        z = {name: logits[branch] for name, branch in branches.items()}
        p = choices_under_steering(z, arm["method"], [strength(arm).logits], range(len(LETTERS)))
        rows.append(choice_rows(p[0], questions, arm_id=arm["arm_id"], category=category))
    return pd.concat(rows, ignore_index=True)


def _settled(arms: pd.DataFrame) -> pd.DataFrame:
    """The arms that say by themselves how a question is steered."""
    of_prompts = (arms["factor"] != "") & pd.to_numeric(arms["factor"], errors="coerce").isna()
    of_texts = arms["method"].map(lambda method: RULES[method].acts_on == "text").astype(bool)
    return arms[
        ~((arms["control"] == "shuffled_profile") | of_texts | of_prompts | (arms["vector_user"] != ""))
    ]


def _categories(arm: Mapping, categories: Sequence[str]) -> Sequence[str]:
    return categories if arm["contexts"] and arm["profile"] == "own" else [arm["category"]]


def _branches(
    frozen: FrozenModel, arm: Mapping, category: str, contexts: Contexts, models: BranchModels
) -> dict[str, Branch]:
    """What a method's rule reads; a vector beside a logit rule steers every branch that is a context, and the base."""
    trained = branch_names(arm["branches"])
    alpha, rule = strength(arm).vector, RULES[arm["method"]]
    steering = ((arm["vector"], ""), alpha, arm["positions"]) if arm["family"] and alpha else ()
    found = {"base": Branch(steering=() if "steered" in rule.branches else steering)}
    for name in rule.branches:
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


Floats = NDArray[np.float64]


def letter_ids(frozen: FrozenModel) -> list[int]:
    """Ids of the tokens that say A, B, C and D after "Answer:".

    Raises:
        ValueError: a letter is not a single token there, so that its logit would not be the answer's.
    """
    encode = frozen.tokenizer.encode
    before = encode("Answer:", add_special_tokens=False)
    found = []
    for letter in LETTERS:
        ids = encode(f"Answer: {letter}", add_special_tokens=False)
        if ids[:-1] != before:
            raise ValueError(
                f"{frozen.name}: ' {letter}' is not one token after 'Answer:' but {ids[len(before) :]}"
            )
        found.append(ids[-1])
    return found


def choice_probabilities(z: Tensor, letters: Sequence[int]) -> Floats:
    """Probabilities of the four options: softmax over the four letters' logits.

    Args:
        z: next-token logits after the question, branches already combined, `(..., vocab)`.
        letters: ids of the four letters, see `letter_ids`.

    Returns:
        `(..., 4)`, rows sum to 1.

    Raises:
        ValueError: not four different letters.

    Source: Hendrycks et al., MMLU, ICLR 2021 (evaluation code). Temperature and nucleus play no part.
    """
    if len(set(letters)) != len(LETTERS):
        raise ValueError(f"needs 4 different letter ids, not {list(letters)}")
    return z[..., list(letters)].double().softmax(dim=-1).cpu().numpy()


def choices_under_steering(
    branches: Mapping[str, Tensor], method: str, alphas: Sequence[float], letters: Sequence[int]
) -> Floats:
    """Probabilities of the four options under a method, at every alpha, from one pass of branch logits.

    The rules combine the logits of each token by themselves, so the four letters' columns suffice.

    Args:
        branches: raw next-token logits `(n, vocab)` by branch: "base", and "expert", "anti" or "steered" as the
            method needs, see `steerlib.decoding.RULES`.
        method: a method of `RULES`. Under "caa" alpha acts inside the branch: one pass, one alpha.
        alphas: strengths.
        letters: ids of the four letters.

    Returns:
        `(len(alphas), n, 4)`.

    Raises:
        ValueError: unknown method, or several alphas where the method's logits are those of one.
        KeyError: a branch that the method needs is missing.
    """
    rule = check_method(method)
    for name in rule.branches:
        if name not in branches:
            raise KeyError(f"method {method!r} needs branch {name!r}; given are {', '.join(branches)}")
    if rule.acts_on == "residual" and len(alphas) != 1:
        raise ValueError(f"under {method!r} each alpha has logits of its own: give one, not {len(alphas)}")
    columns = {name: z[:, list(letters)].double() for name, z in branches.items()}
    rows = len(next(iter(columns.values())))
    steered = [rule.steer(columns, torch.full((rows,), float(a), dtype=torch.float64)) for a in alphas]
    return choice_probabilities(torch.stack(steered), range(len(LETTERS)))


def choice_rows(
    probabilities: ArrayLike, questions: pd.DataFrame, *, arm_id: str, category: str
) -> pd.DataFrame:
    """Rows of the choices table for one arm under one category's contexts.

    Args:
        probabilities: `(n, 4)`, in the order of the questions.
        questions: the questions table.
        arm_id: the arm.
        category: whose contexts steered; "" for the base, which has none.

    Raises:
        ValueError: another number of rows than questions.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.shape != (len(questions), len(LETTERS)):
        raise ValueError(f"probabilities must be ({len(questions)}, 4) for as many questions, not {p.shape}")
    rows = pd.DataFrame(p, columns=[f"p_{letter}" for letter in LETTERS])
    rows["question_id"] = questions["question_id"].to_numpy()
    rows["correct"] = np.array(LETTERS)[p.argmax(axis=1)] == questions["answer"].to_numpy()
    return rows.assign(arm_id=arm_id, category=category)[list(SCHEMA["choices"].columns)]


def brier(probabilities: ArrayLike, answers: Sequence[str]) -> Floats:
    """Brier score of each question: sum over options of (p - 1[answer])^2, in [0, 2]; 0.75 for four equal options.

    Source: Brier, Monthly Weather Review 1950.
    """
    right = np.array(LETTERS) == np.asarray(answers)[:, None]
    return np.square(np.asarray(probabilities, dtype=np.float64) - right).sum(axis=1)


def calibration_gaps(probabilities: ArrayLike, answers: Sequence[str], *, bins: int = 10) -> Floats:
    """Confidence less correctness of each question, in the column of its confidence bin, `(n, bins)`.

    The expected calibration error is the sum over bins of the absolute column mean.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    confidence = p.max(axis=1)
    right = np.array(LETTERS)[p.argmax(axis=1)] == np.asarray(answers)
    gaps = np.zeros((len(p), bins))
    gaps[np.arange(len(p)), np.minimum((confidence * bins).astype(int), bins - 1)] = confidence - right
    return gaps


def calibration_error(probabilities: ArrayLike, answers: Sequence[str], *, bins: int = 10) -> float:
    """Expected calibration error: mean distance of confidence from accuracy over equal bins of confidence.

        ECE = sum_b n_b / n |mean confidence_b - accuracy_b|

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017. It is never below 0, so it is biased
    upwards where bins hold few questions.
    """
    return float(np.abs(calibration_gaps(probabilities, answers, bins=bins).mean(axis=0)).sum())
