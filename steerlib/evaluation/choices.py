"""Answers to multiple-choice questions from next-token logits, for every alpha of one pass over the branches."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from steerlib.evaluation.questions import LETTERS
from steerlib.generation.rules import check_method
from steerlib.models import FrozenModel
from steerlib.tables import SCHEMA

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
            method needs, see `steerlib.generation.RULES`.
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
    if method == "caa" and len(alphas) != 1:
        raise ValueError(f"under 'caa' each alpha has logits of its own: give one, not {len(alphas)}")
    columns = {name: z[:, list(letters)].double() for name, z in branches.items()}
    rows = len(next(iter(columns.values())))
    steered = [rule.combine(columns, torch.full((rows,), float(a), dtype=torch.float64)) for a in alphas]
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
