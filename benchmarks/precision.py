"""bfloat16 on a processor: what it gains, and what it changes in answers, distributions and toxicity.

Expert-Anti-Expert, greedy. Behind the first token that differs two answers have nothing to do with each other, so
beside the share of equal answers stands how far apart the distributions are behind one and the same text.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from benchmarks.rules import by_arm
from benchmarks.setting import Setting, Size, stated
from benchmarks.timing import Answers, Decoder, measured, write
from steerlib.decoding import RULES, Sampling, decode, make_arms
from steerlib.decoding.requests import Request, make_requests
from steerlib.evaluation import paired_interval
from steerlib.models import FrozenModel, load_model
from steerlib.toxicity import load_scorer

METHOD = "expert_anti_expert"
FULL = Size(prompts=8, alphas=(0.0, 0.5, 1.0, 1.5, 2.0), tokens=24)
SMALL = Size(prompts=2, alphas=(0.0, 2.0), tokens=4)


def run(setting: Setting) -> pd.DataFrame:
    """Decode a grid in float32 and bfloat16, compare, keep the table."""
    exact, rounded = setting.frozen, load_model(device="cpu", dtype="bfloat16")
    setting = replace(setting, size=replace(SMALL if setting.small else FULL, repeats=setting.size.repeats))
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=setting.size.tokens)
    arms, prompts = (
        make_arms(METHOD, setting.size.alphas, profile="own", sampling=sampling),
        setting.prompts(),
    )
    about = stated(setting)
    decoders = [
        Decoder(name, "all", lambda model=model: by_arm(decode(model, prompts, arms)))
        for name, model in (("float32", exact), ("bfloat16", rounded))
    ]
    both = measured("precision", {"EAE, greedy": decoders}, setting=setting, about=about)["EAE, greedy"]
    speeds = [found.tokens / found.processor_seconds for found in both]
    about |= {f"{one.name}, tokens per second": round(s, 1) for one, s in zip(decoders, speeds, strict=True)}
    about |= {"bfloat16 is faster by": round(speeds[1] / speeds[0], 2)}
    requests = make_requests(exact, prompts, arms, seeds=[0])
    answers = _paired([found.answers for found in both], exact, rounded, requests)
    rows = [_row(alpha, group) for alpha, group in answers.groupby("alpha")]
    return write("precision", rows, about=about, folder=setting.folder)


def _paired(
    written: Sequence[Answers], exact: FrozenModel, rounded: FrozenModel, requests: Sequence[Request]
) -> pd.DataFrame:
    """Both answers to each request side by side, with what is compared of them."""
    rows, scorer = [], load_scorer()
    for request in requests:
        one, other = (answers[request.arm_id, request.prompt_id] for answers in written)
        texts = [exact.tokenizer.decode(ids, skip_special_tokens=True) for ids in (one, other)]
        toxicity, in_bfloat16 = scorer(texts)["toxicity"]
        rows.append(
            {
                "alpha": request.alpha,
                "same": one == other,
                "agree": common(one, other),
                "kl": divergence(exact, rounded, request, one),
                "toxicity": toxicity,
                "rounded": in_bfloat16,
            }
        )
    return pd.DataFrame(rows)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


@torch.inference_mode()
def divergence(exact: FrozenModel, rounded: FrozenModel, request: Request, answer: Sequence[int]) -> float:
    """KL(exact || rounded) of the next token under the rule, mean over the steps of one answer, in nats."""
    p, q = (_steered(frozen, request, answer).log_softmax(-1) for frozen in (exact, rounded))
    return float((p.exp() * (p - q)).sum(-1).mean())


def _steered(frozen: FrozenModel, request: Request, answer: Sequence[int]) -> Tensor:
    """Steered logits that predict each token of an answer and the one behind it, in float64."""
    z = {
        name: frozen.model(torch.tensor([[*stream.ids, *answer]])).logits[0, len(stream.ids) - 1 :].double()
        for name, stream in request.branches.items()
    }
    alpha = torch.full((len(answer) + 1,), request.alpha, dtype=torch.float64)
    return RULES[request.method].steer(z, alpha)


def _row(alpha: Hashable, answers: pd.DataFrame) -> dict:
    change = paired_interval(answers["toxicity"], answers["rounded"])
    return {
        "alpha": alpha,
        "answers": len(answers),
        "same answers": f"{answers['same'].sum()}/{len(answers)}",
        "tokens before they part": round(answers["agree"].mean(), 1),
        "KL, nats per token": float(f"{answers['kl'].mean():.2g}"),
        "toxicity in float32": round(answers["toxicity"].mean(), 3),
        "change in bfloat16": f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]",
    }
