"""Multiple choice under every alpha and all six contexts: one pass a branch against three passes an answer."""

import pandas as pd
import torch
from torch import Tensor

from benchmarks.rules import OURS
from benchmarks.setting import Setting, stated
from benchmarks.timing import Answers, Decoder, compared, measured, write
from steerlib.decoding import expert_anti_expert, make_arms
from steerlib.decoding.requests import default_contexts
from steerlib.evaluation import ask_questions, read_questions, sample_questions
from steerlib.evaluation.multiple_choice import letter_ids, question_prompt
from steerlib.reading import left_padded, position_ids, prompt_ids
from steerlib.toxicity import ATTRIBUTES

METHOD = "expert_anti_expert"
LETTERS = "ABCD"
BATCH = 8


def run(setting: Setting) -> pd.DataFrame:
    """Time questions x alphas x contexts of Expert-Anti-Expert, 0-shot; keep the table."""
    about, size = stated(setting), setting.size
    questions = asked(setting.questions, size.questions)
    name = "choices" if setting.questions == "demo" else "choices_mmlu"
    grid = f"{len(questions)} {_kind(setting)} questions x {len(size.alphas)} alphas x {len(ATTRIBUTES)} contexts"
    what = f"multiple choice, EAE, {grid}"
    timed = measured(name, {what: _decoders(setting, questions)}, setting=setting, about=about)
    return write(name, compared(timed[what], setting=what, unit="answer"), about=about, folder=setting.folder)


def asked(source: str, n: int) -> pd.DataFrame:
    """n different questions; those of the demo are few, so their options are rotated to make more of them."""
    questions = read_questions(source)
    if source == "demo":
        questions = pd.concat([_rotated(questions, by) for by in range(len(LETTERS))], ignore_index=True)
    return sample_questions(questions, n)


def _rotated(questions: pd.DataFrame, by: int) -> pd.DataFrame:
    turned = questions.assign(question_id=questions["question_id"] + f"/{by}")
    order = LETTERS[by:] + LETTERS[:by]
    for old, new in zip(LETTERS, order, strict=True):
        turned[new] = questions[old]
    turned["answer"] = questions["answer"].map(dict(zip(LETTERS, order, strict=True)))
    return turned


def _kind(setting: Setting) -> str:
    return "demo" if setting.questions == "demo" else "MMLU"


def _decoders(setting: Setting, questions: pd.DataFrame) -> list[Decoder]:
    size, frozen = setting.size, setting.frozen
    contexts = default_contexts("continuation")
    arms = make_arms(METHOD, size.alphas, profile="own")
    alpha_of = dict(zip(arms["arm_id"], arms["alpha"], strict=True))

    def ours() -> Answers:
        found = ask_questions(frozen, questions, arms, contexts=contexts)
        best = found[[f"p_{letter}" for letter in LETTERS]].to_numpy().argmax(1)
        keys = zip(found["question_id"], found["arm_id"].map(alpha_of), found["category"], strict=True)
        return {key: [int(letter)] for key, letter in zip(keys, best, strict=True)}

    few = questions.iloc[:: max(1, len(questions) // size.peer_questions)].head(size.peer_questions)
    fewest = few.head(max(1, len(few) // 4))
    return [
        Decoder(OURS, "trees of 256 tokens", ours),
        Decoder("(b) three forwards an answer", "1 question", lambda: _plain(setting, fewest, 1)),
        Decoder("(b) the same, questions batched", f"{BATCH} questions", lambda: _plain(setting, few, BATCH)),
    ]


@torch.inference_mode()
def _plain(setting: Setting, questions: pd.DataFrame, batch: int) -> Answers:
    """Answers at the middle alpha under one context, batch by batch."""
    letters = letter_ids(setting.frozen)
    alpha, category = setting.size.alphas[len(setting.size.alphas) // 2], ATTRIBUTES[0]
    contexts = {"base": "", **default_contexts("continuation")[category]}
    found = {}
    for first in range(0, len(questions), batch):
        block = questions.iloc[first : first + batch]
        z = {name: _logits(setting, block, contexts[name]) for name in ("base", "expert", "anti")}
        best = expert_anti_expert(z["base"], z["expert"], z["anti"], alpha)[:, letters].argmax(-1)
        keys = [(question, alpha, category) for question in block["question_id"]]
        found |= {key: [letter] for key, letter in zip(keys, best.tolist(), strict=True)}
    return found


def _logits(setting: Setting, questions: pd.DataFrame, context: str) -> Tensor:
    texts = [question_prompt(question) for _, question in questions.iterrows()]
    ids = [prompt_ids(setting.frozen, text, style="continuation", context=context) for text in texts]
    padded, mask = left_padded(ids, setting.frozen.device)
    out = setting.peer.model(
        input_ids=padded, attention_mask=mask, position_ids=position_ids(mask), logits_to_keep=1
    )
    return out.logits[:, -1]
