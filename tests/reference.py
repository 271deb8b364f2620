"""The plain decoder that the engine is held against: one answer at a time, no cache, transformers' own warpers."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from steerlib.decoding.requests import Request, Stream
from steerlib.decoding.sampling import gumbel_noise, text_hash
from steerlib.models import FrozenModel
from steerlib.reading import prompt_ids
from steerlib.residual import VectorFamily, add_to_residual

FORMULAS = {
    "base": lambda z, a: z["base"],  # noqa: ARG005
    "prompt_only": lambda z, a: z["expert"],  # noqa: ARG005
    "instructed": lambda z, a: z["instructed"],  # noqa: ARG005
    "anti_expert": lambda z, a: z["base"] + a * (z["base"] - z["anti"]),
    "expert_anti_expert": lambda z, a: z["base"] + a * (z["expert"] - z["anti"]),
    "sda": lambda z, a: z["instructed"] + a * (z["instructed"] - z["base"]),
    "caa": lambda z, a: z["steered"],  # noqa: ARG005
}
"""The rules as the papers have them, written out: nothing here is the library's."""


def reference_answer(
    frozen: FrozenModel,
    request: Request,
    vectors: Sequence[VectorFamily] = (),
    models: Mapping[str, FrozenModel] | None = None,
) -> list[int]:
    """Token ids of one answer, every branch read anew for every token."""
    settings, answer = request.sampling, []
    for step in range(settings.max_new_tokens):
        z = {
            name: branch_logits((models or {}).get(stream.model, frozen), stream, answer, vectors)[-1:]
            for name, stream in request.branches.items()
        }
        # A vector beside a logit rule steers the rule's base too; the base itself stays the reference.
        z_rule = z | {"base": z.get("steered", z["base"])}
        z_new = FORMULAS[request.method](z_rule, request.alpha)
        temperature = settings.temperature
        if settings.js_sigma:
            js = reference_divergence(z_rule["base"], z["instructed"])
            temperature = max(temperature * 0.5 ** (js / settings.js_sigma), settings.min_temperature)
        token = reference_choice(z_new.clone(), request, answer, step, temperature)
        if token in frozen.stop_ids:
            break
        answer.append(token)
    return answer


def segment_at(path: pd.DataFrame, alpha: float, **where) -> pd.Series:
    """The segment of an alpha path that holds alpha, of the prompt (and seed) named; the last one has its end too."""
    for column, value in where.items():
        path = path[path[column] == value]
    return path[path.alpha_low <= alpha].sort_values("alpha_low").iloc[-1]


def branch_logits(
    frozen: FrozenModel, stream: Stream, answer: Sequence[int] = (), vectors: Sequence[VectorFamily] = ()
) -> Tensor:
    """Logits that predict each token of an answer and the one behind it, `(n + 1, vocab)`, of one plain pass."""
    digest, user = stream.vector or ("", "")
    vector = next((f.vectors[user] for f in vectors if f.digest == digest), {})
    steering = {"positions": stream.positions, "prompt_lengths": torch.tensor([len(stream.ids)])}
    with add_to_residual(frozen.model, vector, alpha=stream.alpha, **steering):
        return frozen.model(torch.tensor([[*stream.ids, *answer]])).logits[0, len(stream.ids) - 1 :]


def branch_of_arm(
    frozen: FrozenModel, arm: Any, branch: str, prompt: str, context: str = "", user: str = ""
) -> Stream:
    """What a branch of an arm reads, by the columns of its row in the arms table alone."""
    ids = prompt_ids(frozen, prompt, style=arm.style, context=context)
    if not arm.vector or (arm.method, branch) == ("caa", "base"):
        return Stream(ids)
    alpha = arm.alpha if arm.method == "caa" else arm.vector_alpha
    return Stream(ids, (arm.vector, user if arm.vector_user else ""), alpha, arm.positions)


def reference_divergence(z_1: Tensor, z_2: Tensor) -> float:
    """Jensen-Shannon divergence by its definition, in nats."""
    p_1, p_2 = z_1.double().softmax(-1), z_2.double().softmax(-1)
    middle = (p_1 + p_2) / 2
    return float(sum((p * (p / middle).log()).nansum() for p in (p_1, p_2)) / 2)


def reference_choice(z: Tensor, request: Request, answer: list[int], step: int, temperature: float) -> int:
    settings = request.sampling
    seen = list(answer)
    if settings.penalty_scope == "prompt_and_generated":
        seen = [*request.branches["base"].ids, *answer]
    if settings.repetition_penalty != 1 and seen:
        z = RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)(torch.tensor([seen]), z)
    if temperature == 0:
        return int(z.argmax())
    z = TemperatureLogitsWarper(temperature)(torch.tensor([seen]), z)
    if settings.top_p < 1:
        z = TopPLogitsWarper(settings.top_p)(torch.tensor([seen]), z)
    if settings.min_p:
        z = MinPLogitsWarper(settings.min_p)(torch.tensor([seen]), z)
    prompt, seed = torch.tensor([text_hash(request.prompt_id)]), torch.tensor([request.seed])
    return int((z + gumbel_noise(prompt, seed, step, z.shape[1], dtype=z.dtype)).argmax())
