"""Multiple-choice questions and option probabilities. The demo set is our own, never to be called MMLU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd
import torch

from steerlib.decoding.requests import Inputs, Request, branch_names, make_requests
from steerlib.evaluation.intervals import Floats
from steerlib.evaluation.likelihood import forced_logits, read_streams
from steerlib.models import FrozenModel
from steerlib.profiles.sources import hub_file, read_rows
from steerlib.rules import RULES
from steerlib.tables import SCHEMA, progress_bar
from steerlib.toxicity import ATTRIBUTES

LETTERS = ("A", "B", "C", "D")
DEMO = Path(__file__).with_name("demo") / "questions.jsonl"
MMLU, MMLU_REVISION = "cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe"
CELLS = ["question", *LETTERS, "answer"]


def read_questions(source: str = "demo", *, split: str = "test") -> pd.DataFrame:
    """Questions with four options: question_id (subject/split/row), subject, question, A, B, C, D, answer (a letter).

    The source is "demo", our own 60 questions in six subjects (and one dev question each); the hub id "cais/mmlu", at a
    pinned revision; or a folder with `<split>/<subject>_<split>.csv`, either without header (question, A, B, C, D,
    letter) or with the header question, choice0..choice3, answer 0..3. The split is "test", or "dev" for the shots.

    Raises:
        FileNotFoundError: no such folder or split, or the hub cannot be reached; the message says what to do.
        ValueError: unknown split, or a row without four options and an answer, naming subject and row.
    """
    if split not in ("test", "dev"):
        raise ValueError(f"split {split!r} is neither 'test' nor 'dev'")
    columns = list(SCHEMA["questions"].columns)
    if source == "demo":
        demo = read_rows(DEMO)
        return demo.loc[demo["split"] == split, columns].astype(str).reset_index(drop=True)
    if source == MMLU:
        table = pd.read_parquet(hub_file(MMLU, f"all/{split}-00000-of-00001.parquet", revision=MMLU_REVISION))
        table[[*LETTERS]] = table["choices"].tolist()
    else:
        files = sorted((Path(source) / split).glob(f"*_{split}.csv"))
        if not files:
            wanted = Path(source) / split / f"*_{split}.csv"
            raise FileNotFoundError(f"no {wanted}; give 'demo', {MMLU!r} or MMLU's folder")
        table = pd.concat([_read_csv(file, split) for file in files], ignore_index=True)
    table["row"] = table.groupby("subject").cumcount()
    table["question_id"] = table["subject"] + f"/{split}/" + table["row"].astype(str)
    letters = dict(zip("0123", LETTERS, strict=True))
    table["answer"] = table["answer"].astype(str).str.strip().replace(letters)
    bad = table[table[columns].isna().any(axis=1) | ~table["answer"].isin(LETTERS)]
    for _, one in bad.head(1).iterrows():
        raise ValueError(
            f"{source}, {one['subject']}, row {one['row'] + 1}: answer {one['answer']!r} to four options "
            "is neither A to D nor 0 to 3"
        )
    return table[columns]


def _read_csv(file: Path, split: str) -> pd.DataFrame:
    """Questions of one subject; options such as "None" and "NA" are text."""
    table = pd.read_csv(file, header=None, names=CELLS, dtype=str, keep_default_na=False)
    has_header = len(table) > 0 and table["question"].iloc[0] == "question"
    return table[int(has_header) :].assign(subject=file.stem.removesuffix(f"_{split}"))


def sample_questions(questions: pd.DataFrame, n: int, *, seed: int = 0) -> pd.DataFrame:
    """n questions spread over the subjects as evenly as they allow, in the order of their ids; all if there are fewer.

    The order of the table does not matter. A ValueError for n below 1 or no questions.
    """
    if n < 1 or questions.empty:
        raise ValueError(f"cannot draw {n} of {len(questions)} questions")
    rng = np.random.default_rng(seed)
    ordered = questions.sort_values("question_id").reset_index(drop=True)
    shuffled = ordered.iloc[rng.permutation(len(ordered))]
    subjects = rng.permutation(np.sort(ordered["subject"].unique()))
    turn = shuffled.groupby("subject").cumcount()
    place = shuffled["subject"].map({subject: i for i, subject in enumerate(subjects)})
    return shuffled.iloc[np.lexsort([place, turn])[:n]].sort_index().reset_index(drop=True)


def question_prompt(question: Mapping, shots: Sequence[Mapping] = ()) -> str:
    """A question as the model reads it behind solved ones, ending in "Answer:"; the next token is " A" to " D".

    Source: Hendrycks et al., MMLU, ICLR 2021 (evaluation code), with one space before the subject where that code has
    two, as lm-evaluation-harness.
    """
    subject = str(question["subject"]).replace("_", " ")
    opening = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return opening + "".join(f"{_asked(shot)} {shot['answer']}\n\n" for shot in shots) + _asked(question)


def _asked(question: Mapping) -> str:
    options = "".join(f"\n{letter}. {question[letter]}" for letter in LETTERS)
    return f"{str(question['question']).strip()}{options}\nAnswer:"


def letter_ids(frozen: FrozenModel) -> list[int]:
    """Ids of the tokens " A" to " D" after "Answer:"; a ValueError where a letter is not one token there."""
    before = frozen.tokenizer.encode("Answer:", add_special_tokens=False)
    found = [frozen.tokenizer.encode(f"Answer: {letter}", add_special_tokens=False) for letter in LETTERS]
    for letter, ids in zip(LETTERS, found, strict=True):
        if ids[:-1] != before:
            raise ValueError(f"{frozen.name}: ' {letter}' is not one token, but {ids[len(before) :]}")
    return [ids[-1] for ids in found]


def ask_questions(
    frozen: FrozenModel,
    questions: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    dev: pd.DataFrame | None = None,
    shots: int = 0,
    categories: Sequence[str] = ATTRIBUTES,
    **inputs: Unpack[Inputs],
) -> pd.DataFrame:
    """The choices table: option probabilities of every question under every arm; a branch reads it once for all alphas.

        p = softmax(intercept + alpha slope)     over the letters; intercept and slope are the rule's line

    A question stands as plain text behind the context, as in the reference, whatever the style of the generations. Left
    out are arms of a shuffled profile, whose contexts are those of "own", those that a question alone does not settle
    (a vector of each user, a factor of each prompt), and an aligner. Column category is that of the contexts, or "".

    Args:
        dev, shots: solved questions, the first so many of the subject before each; STEER-Away has 1, the CAA study 0.
        categories: under whose contexts an arm of profile "own" is asked; by default the six of STEER-Away, in an SDA
            run the dimensions of its prompts.

    Raises:
        ValueError: fewer dev questions than shots, a question longer than the model's context, letters that are not
            single tokens, or what `make_requests` refuses.
    """
    if not inputs.get("contexts"):
        raise ValueError("name the contexts of the generations: a question has no style to choose them by")
    prompts = pd.DataFrame({"prompt_id": questions["question_id"], "prompt": _prompts(questions, dev, shots)})
    left_out = (arms["profile"] == "shuffled") | (arms["vector_user"] != "") | (arms["factor"] != "")
    left_out |= arms["method"].map(lambda method: RULES[method].acts_on == "text")
    shortest = {"style": "continuation", "max_new_tokens": 1, "temperature": 0.0, "min_temperature": 0.0}
    arms = arms[~left_out].assign(**shortest)
    reads = [
        bool({*RULES[method].context_branches} - {*branch_names(trained)})
        for method, trained in zip(arms["method"], arms["branches"], strict=True)
    ]
    personal = (arms["profile"] == "own") & np.array(reads, dtype=bool)
    asked: list[tuple[str, str, list[Request]]] = []
    for category in ("", *categories):  # one call for many arms tokenises each text once
        part = arms[personal == bool(category)]
        requests = make_requests(frozen, prompts.assign(category=category), part, seeds=[0], **inputs)
        for i, (arm_id, own) in enumerate(zip(part["arm_id"], part["category"], strict=True)):
            asked.append((arm_id, category or own, requests[i :: len(part)]))
    letters, read, models = letter_ids(frozen), {}, {"": frozen, **(inputs.get("branch_models") or {})}
    texts = {(s, (letters[0],)) for _, _, own in asked for one in own for s in read_streams(one).values()}
    with progress_bar(len(texts), what="questions", unit="text") as bar:
        for (stream, _), z in forced_logits(models, texts, inputs.get("vectors", ())):
            read[stream] = z[0, letters]
            bar.update()
    rows, order = [], list(arms["arm_id"])
    for arm_id, category, own in sorted(asked, key=lambda one: order.index(one[0])):
        by_question = [{name: read[stream] for name, stream in read_streams(one).items()} for one in own]
        z = {name: torch.stack([one[name] for one in by_question]) for name in by_question[0]}
        intercept, slope = RULES[own[0].method].line(z)
        p = (intercept + own[0].alpha * slope).softmax(-1).cpu().double().numpy()
        part = pd.DataFrame(p, columns=[f"p_{letter}" for letter in LETTERS])
        right = np.array(LETTERS)[p.argmax(axis=1)] == questions["answer"].to_numpy()
        part = part.assign(question_id=questions["question_id"].to_numpy(), correct=right)
        rows.append(part.assign(arm_id=arm_id, category=category))
    return pd.concat(rows, ignore_index=True)[list(SCHEMA["choices"].columns)]


def _prompts(questions: pd.DataFrame, dev: pd.DataFrame | None, shots: int) -> list[str]:
    """Each question behind the first dev questions of its subject, as the reference takes them."""
    solved: dict[str, list[dict]] = {}
    for subject in questions["subject"].unique():
        own = [] if dev is None else dev[dev["subject"] == subject].to_dict("records")
        if not 0 <= shots <= len(own):
            raise ValueError(f"{shots} shots wanted, {subject!r} has {len(own)} dev questions")
        solved[subject] = own[:shots]
    return [question_prompt(one, solved[one["subject"]]) for one in questions.to_dict("records")]


def calibration_gaps(p: Floats, answers: Sequence[str]) -> Floats:
    """Confidence minus correctness of each question, in the column of its confidence bin, `(n, 10)`; p is `(n, 4)`.

        ECE = sum_b n_b / n |mean confidence_b - accuracy_b| = sum_b |column mean b|

    It is never below 0, so it is biased upwards where bins hold few questions.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    confidence, gaps = p.max(axis=1), np.zeros((len(p), 10))
    right = np.array(LETTERS)[p.argmax(axis=1)] == np.asarray(answers)
    gaps[np.arange(len(p)), np.minimum((confidence * 10).astype(int), 9)] = confidence - right
    return gaps
