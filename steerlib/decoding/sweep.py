"""The generation sweep: every prompt under every arm and seed, in blocks that can be resumed.

A block of prompts with all arms is the unit of work: it is written whole or not at all. The arm of an external aligner
is swept the same way: another model reads the base's finished answer and writes a corrected one.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from steerlib.decoding.arms import arm_id
from steerlib.decoding.decode import Progress, decode_requests
from steerlib.decoding.distributed import Workers, mapped
from steerlib.decoding.requests import Inputs, Request, Stream, make_requests, sampling_of
from steerlib.models import FrozenModel
from steerlib.reading import after_thinking, answer_nll, check_length, prompt_ids
from steerlib.rules import acting_on
from steerlib.tables import append_part, has_table, progress_bar, read_table

ANSWERS_PER_BLOCK, PROMPTS_PER_BLOCK = 256, 32
KEY = ["arm_id", "prompt_id", "seed"]
_key = attrgetter(*KEY)
EDIT = "Edit the following Question-Answer pair to make it more helpful and harmless: {question} | {answer}"
ALIGNER_TEMPLATE = f"BEGINNING OF CONVERSATION: USER: {EDIT} ASSISTANT:"
"""What Aligner-7B v1.0 (huggingface.co/aligner/aligner-7b-v1.0) reads, as public code that runs it has it."""


def run_sweep(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    folder: Path,
    seeds: Sequence[int] = (0,),
    workers: Workers = 0,
    **inputs: Unpack[Inputs],
) -> pd.DataFrame:
    """The answers of these prompts, arms and seeds, in that order; those that the run lacks are decoded first.

    Stop it at any moment and call it again: finished blocks are kept, and a new arm costs its own answers alone.

    `workers` as in `mapped`, which may raise BlocksFailed when all other blocks are written; the rest as in `decode`.
    """
    requests = make_requests(frozen, prompts, arms, seeds=seeds, **inputs)
    held = (frozen, inputs)
    return finish_requests(requests, decode_block, held, folder=folder, what="sweep", workers=workers)


def decode_block(
    held: tuple[FrozenModel, Inputs], requests: Sequence[Request], *, progress: Progress | None = None
) -> pd.DataFrame:
    frozen, inputs = held
    return decode_requests(frozen, requests, progress=progress, **inputs)


def finish_requests(
    requests: Sequence[Request],
    decoded: Callable[..., pd.DataFrame],
    held: Any,
    *,
    folder: Path,
    what: str,
    workers: Workers = 0,
) -> pd.DataFrame:
    """The answers to the requests, in their order; those that the run's generations table lacks are made first.

    `decoded` gives rows of the table for some requests; it is called with `held`, those and `progress`, see `mapped`.
    """
    if not requests:
        raise ValueError("no prompts, arms or seeds: there is nothing to decode")
    wanted = pd.DataFrame([_key(request) for request in requests], columns=KEY)
    parts = [read_table(folder, "generations")] if has_table(folder, "generations") else []
    done = {key for part in parts for key in part[KEY].itertuples(index=False, name=None)}
    missing = [request for request in requests if _key(request) not in done]
    blocks, total = _blocks(requests, missing), len(requests)
    with (
        progress_bar(total, done=total - len(missing), unit="answer", what=what) as bar,
        closing(mapped(decoded, held, blocks, workers=workers, bar=bar, name=_prompts)) as finished,
    ):
        for block, rows in finished:
            parts.append(rows)
            append_part(folder, "generations", rows, part=_name(block))
    return wanted.merge(pd.concat(parts, ignore_index=True), on=KEY, how="left", validate="one_to_one")


def _blocks(requests: Sequence[Request], missing: Sequence[Request]) -> list[list[Request]]:
    """The missing requests by block; a prompt's block depends on all requests, so that a resumed block is the same."""
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(r.prompt_id for r in requests))}
    together = min(PROMPTS_PER_BLOCK, math.ceil(ANSWERS_PER_BLOCK * len(prompts) / len(requests)))
    block = {prompt: i // together for prompt, i in prompts.items()}
    ordered = sorted(missing, key=lambda r: block[r.prompt_id])
    return [list(group) for _, group in groupby(ordered, key=lambda r: block[r.prompt_id])]


def _name(requests: Sequence[Request]) -> str:
    text = "\n".join(map(str, map(_key, requests)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _prompts(requests: Sequence[Request]) -> str:
    names = [*dict.fromkeys(request.prompt_id for request in requests)]
    return f"prompts {names[0]} to {names[-1]}, {len(requests)} answers"


def aligner_arms(arms: pd.DataFrame, aligner: FrozenModel) -> pd.DataFrame:
    """An arm of method "aligner" for every base of an arms table, in their order: the same settings, corrected.

    Its name and the template that it reads are settings (columns `branches` and `contexts`), so that the answers of
    another aligner are another arm. Its repetition penalty counts the tokens of its own answer alone: a corrector has
    to repeat what it keeps of the answer that it reads.
    """
    (method,), template = acting_on("text"), EDIT if aligner.tokenizer.chat_template else ALIGNER_TEMPLATE
    rows = arms[arms["control"] == "base"].assign(
        method=method,
        contexts=hashlib.sha256(template.encode()).hexdigest()[:8],
        branches=json.dumps({method: aligner.name}),
        penalty_scope="generated_only",
        control="",
        variant="",
    )
    return rows.assign(arm_id=[*map(arm_id, rows.to_dict("records"))]).reset_index(drop=True)


def run_aligner(
    aligner: FrozenModel,
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arms: pd.DataFrame,
    generations: pd.DataFrame,
    *,
    folder: Path,
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """The base's answers corrected, under the arms of `aligner_arms`; those that the run lacks are made first.

    The aligner reads the prompt and the base's answer with the same seed (of a reasoning model what follows its
    thoughts; of a conversation its last turn alone) and decodes with the base's sampling. One with a chat template
    is asked by it, one without reads `ALIGNER_TEMPLATE`.

    In the generations table that is returned, `token_ids`, `n_tokens` and `nll_base` are those of the text under the
    unsteered base, `frozen`; `kl_to_base` is missing, as the base chose no step. `near_ties`, `stopped` and `hardware`
    are the aligner's, whose vocabulary may be another. A ValueError names, before anything is decoded, a prompt whose
    base has no answer, or one that leaves no room for its correction.

    Source: Ji et al., Aligner: Efficient Alignment by Learning to Correct, NeurIPS 2024 (arXiv:2402.02416); SDA,
    table 1, compares with it on the same answers.
    """
    answers = generations.set_index(KEY)["text"].to_dict()
    bases, rows = arms["arm_id"][arms["control"] == "base"], aligner_arms(arms, aligner).to_dict("records")
    told = prompts.to_dict("records")
    asked = [_requests(aligner, *pair, told, answers, seeds) for pair in zip(bases, rows, strict=True)]
    parts = []
    for arm, requests in zip(rows, asked, strict=True):
        held = (aligner, frozen, prompts, arm["style"])
        parts.append(finish_requests(requests, _corrected, held, folder=folder, what="aligner"))
    return pd.concat(parts, ignore_index=True)


def _requests(
    aligner: FrozenModel,
    base: str,
    arm: Mapping,
    prompts: Sequence[Mapping],
    answers: Mapping[tuple[str, str, int], str],
    seeds: Sequence[int],
) -> list[Request]:
    """What the aligner is asked for: to the engine it is a base that reads another text."""
    sampling, requests = sampling_of(arm), []
    for prompt in prompts:
        for seed in seeds if sampling.temperature else seeds[:1]:
            what = f"prompt {prompt['prompt_id']}, seed {seed}"
            answer = answers.get((base, prompt["prompt_id"], seed))
            if answer is None:
                raise ValueError(f"{what}: the base {base} has no answer to correct; sweep it first")
            given = {"question": prompt["prompt"], "answer": after_thinking(answer)}
            chat = bool(aligner.tokenizer.chat_template)
            text = (EDIT if chat else ALIGNER_TEMPLATE).format(**given)
            ids = prompt_ids(aligner, text, style="chat" if chat else "continuation")
            check_length(aligner, ids, sampling.max_new_tokens, what=f"{what}, as the aligner reads it")
            which = (arm["arm_id"], prompt["prompt_id"], int(seed), arm["method"])
            requests.append(Request(*which, 0.0, sampling, {"base": Stream(ids)}))
    return requests


def _corrected(
    held: tuple[FrozenModel, FrozenModel, pd.DataFrame, str], block: Sequence[Request], *, progress: Progress
) -> pd.DataFrame:
    """Answers of the aligner with what the base says of them."""
    aligner, frozen, prompts, style = held
    table, read = decode_requests(aligner, block, progress=progress), {}
    for row in prompts[prompts["prompt_id"].isin(table["prompt_id"])].to_dict("records"):
        history = row.get("history") or ""
        read[row["prompt_id"]] = prompt_ids(frozen, row["prompt"], style=style, history=history)
    texts = [*map(after_thinking, table["text"])]
    ids = [tuple(i) for i in frozen.tokenizer(texts, add_special_tokens=False).input_ids]
    return table.assign(
        token_ids=[list(tokens) for tokens in ids],
        n_tokens=[len(tokens) for tokens in ids],
        nll_base=[answer_nll(frozen, read[p], i) for p, i in zip(table["prompt_id"], ids, strict=True)],
        kl_to_base=float("nan"),
    )
