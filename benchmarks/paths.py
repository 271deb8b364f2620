"""The exact alpha path against a plain grid of nine alphas: what all the answers cost beside nine of them."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from benchmarks.setting import Setting, stated
from benchmarks.timing import Answers, Decoder, Timed, measured, write
from steerlib.decoding import Sampling, alpha_path, decode, make_arms
from steerlib.decoding.decode import Batch
from steerlib.decoding.requests import Request, make_requests
from steerlib.decoding.streams import default_capacity
from steerlib.models import FrozenModel
from steerlib.residual import ResidualDose

METHOD = "expert_anti_expert"
MANNERS = {
    "greedy": {"temperature": 0.0},
    "greedy, penalty 1.15": {"temperature": 0.0, "repetition_penalty": 1.15},
    "sampled, min-p 0.05": {"temperature": 0.7, "min_p": 0.05},
    "sampled, min-p 0.05, penalty 1.15": {"temperature": 0.7, "min_p": 0.05, "repetition_penalty": 1.15},
}


def run(setting: Setting) -> pd.DataFrame:
    """Time the path over [0, the largest alpha] beside the grid with and without merged rows; keep the table."""
    about, size = stated(setting), setting.size
    groups = {}
    for manner, choice in MANNERS.items():
        settings = {"top_p": 1.0, "repetition_penalty": 1.0, "max_new_tokens": size.tokens} | choice
        name = f"EAE, {manner}, {size.path_prompts} prompts x {size.tokens} tokens"
        groups[name] = _decoders(setting, Sampling(**settings))
    timed = measured("path", groups, setting=setting, about=about)
    rows = [row for name, found in timed.items() for row in _rows(found, setting=name)]
    return write("path", rows, about=about, folder=setting.folder)


class UnmergedBatch(Batch):
    """Every answer has rows of its own from its first token on; contexts are still read once for all answers."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.streams.append = self._append

    def _append(self, slots: Tensor, tokens: Tensor, vocab: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        used = slots >= 0
        slot, z = self.streams.advance(slots[used], tokens[:, None].expand_as(slots)[used])
        return slots.masked_scatter(used, slot), z


def decode_as(
    kind: type[Batch], frozen: FrozenModel, requests: Sequence[Request], *, capacity: int
) -> list[dict]:
    """Rows of the generations table for logit rules, in batches of at most `capacity` rows."""
    together = max(1, capacity // max(len(r.branches) for r in requests))
    found = []
    for first in range(0, len(requests), together):
        batch = requests[first : first + together]
        with torch.inference_mode():
            found += (
                kind({"": frozen}, batch, ResidualDose(), reference=True).run(lambda n: n).to_dict("records")
            )
    return found


def _decoders(setting: Setting, sampling: Sampling) -> list[Decoder]:
    frozen, size = setting.frozen, setting.size
    prompts = setting.prompts(size.path_prompts)
    arms = make_arms(METHOD, size.alphas, profile="own", sampling=sampling)
    requests = make_requests(frozen, prompts, arms, seeds=[0])
    capacity = default_capacity([frozen], requests)
    alpha_of = dict(zip(arms["arm_id"], arms["alpha"], strict=True))

    def by_alpha(rows: Sequence[dict]) -> Answers:
        return {(row["prompt_id"], alpha_of[row["arm_id"]]): row["token_ids"] for row in rows}

    def path() -> Answers:
        arm = make_arms(METHOD, [max(size.alphas)], profile="own", sampling=sampling)
        segments = alpha_path(frozen, prompts, arm)
        return {
            (s.prompt_id, s.alpha_low, s.alpha_high, s.complete): s.token_ids for s in segments.itertuples()
        }

    grid = f"{len(size.alphas)} alphas"
    return [
        Decoder(
            f"plain grid of {grid}, rows not merged",
            "all",
            lambda: by_alpha(decode_as(UnmergedBatch, frozen, requests, capacity=capacity)),
        ),
        Decoder(
            f"grid of {grid}, rows merged",
            "all",
            lambda: by_alpha(decode(frozen, prompts, arms).to_dict("records")),
        ),
        Decoder(f"alpha path over [0, {max(size.alphas)}]", "all", path),
    ]


def _rows(timed: Sequence[Timed], *, setting: str) -> list[dict]:
    plain, _, path = timed
    rows = []
    for found in timed:
        answers = [*found.answers] if found is path else []
        rows.append(
            {
                "setting": setting,
                "decoder": found.decoder.name,
                "answers": len(found.answers),
                "not complete": sum(not key[-1] for key in answers) if answers else None,
                "seconds": round(found.seconds, 2),
                "processor s": round(found.processor_seconds, 2),
                "rows decoded": found.row_steps,
                "time, plain grid = 1": round(found.seconds / plain.seconds, 2),
                "processor time": round(found.processor_seconds / plain.processor_seconds, 2),
                "rows, plain grid = 1": round(found.row_steps / plain.row_steps, 2),
                "grid's answers in it": f"{_shared(plain, found)}/{len(plain.answers)}",
            }
        )
    return rows


def _shared(plain: Timed, other: Timed) -> int:
    """Answers of the plain grid that the other has at their alpha."""
    if len(next(iter(other.answers))) == 2:
        return sum(list(other.answers[key]) == list(ids) for key, ids in plain.answers.items())
    segments = [(*key, list(ids)) for key, ids in other.answers.items()]
    return sum(
        any(p == prompt and low <= alpha <= high and list(ids) == own for p, low, high, _, own in segments)
        for (prompt, alpha), ids in plain.answers.items()
    )
