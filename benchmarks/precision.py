"""bfloat16 on a processor: what it gains, and what it changes in answers, distributions and toxicity.

Expert-Anti-Expert, greedy. Behind the first token that differs two answers have nothing to do with each other, so
beside the share of equal answers stands how far apart the distributions are behind one and the same text.
"""

import time
from collections.abc import Hashable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from benchmarks.setting import RESULTS, Setting, Size, stated
from benchmarks.timing import write
from steerlib.decoding import RULES, Sampling, decode, make_arms
from steerlib.decoding.requests import Request, make_requests
from steerlib.evaluation import paired_interval
from steerlib.models import FrozenModel, load_model
from steerlib.toxicity import load_scorer

METHOD = "expert_anti_expert"
FULL = Size(prompts=8, alphas=(0.0, 0.5, 1.0, 1.5, 2.0), tokens=24)
SMALL = Size(prompts=2, alphas=(0.0, 2.0), tokens=4)
STATED = ("model", "hardware", "cores", "threads", "load_at_start", "torch", "prompts", "tokens")


def run(*, small: bool = False, folder: Path = RESULTS) -> pd.DataFrame:
    """Decode a grid of the embedded model in float32 and bfloat16, compare, keep the table.

    Args:
        small: seconds instead of minutes; the numbers mean nothing.
        folder: where the table is written.
    """
    exact, rounded = (load_model(device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    setting = Setting(exact, SMALL if small else FULL, folder=folder)
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=setting.size.tokens)
    arms = make_arms(METHOD, setting.size.alphas, profile="own", sampling=sampling)
    tables, speeds = _race((exact, rounded), setting, arms)
    about = {key: value for key, value in stated(setting).items() if key in STATED}
    about |= {
        "float32, tokens a second": round(speeds[0], 1),
        "bfloat16, tokens a second": round(speeds[1], 1),
        "bfloat16 is faster by": round(speeds[1] / speeds[0], 2),
    }
    answers = _paired(tables, exact, rounded, make_requests(exact, setting.prompts(), arms, seeds=[0]))
    return write(
        "precision",
        [_row(alpha, group) for alpha, group in answers.groupby("alpha")],
        about=about,
        folder=folder,
    )


def _race(
    models: Sequence[FrozenModel], setting: Setting, arms: pd.DataFrame
) -> tuple[list[pd.DataFrame], list[float]]:
    """Answers of each model, and its tokens a second of processor time at best; in turn, after a warm-up."""
    tables, seconds = [pd.DataFrame()] * len(models), [float("inf")] * len(models)
    for model in models:
        decode(model, setting.prompts(1), arms.head(1))
    for _ in range(setting.size.repeats):
        for i, model in enumerate(models):
            started = time.process_time()
            tables[i] = decode(model, setting.prompts(), arms)
            seconds[i] = min(seconds[i], time.process_time() - started)
    speeds = [table["n_tokens"].sum() / spent for table, spent in zip(tables, seconds, strict=True)]
    return tables, speeds


def _paired(
    tables: Sequence[pd.DataFrame], exact: FrozenModel, rounded: FrozenModel, requests: Sequence[Request]
) -> pd.DataFrame:
    """Both answers to each request side by side, with what is compared of them."""
    scored = [table.assign(toxicity=load_scorer()(table["text"])["toxicity"].to_numpy()) for table in tables]
    both = [table.set_index(["arm_id", "prompt_id"]) for table in scored]
    rows = []
    for request in requests:
        one, other = (table.loc[(request.arm_id, request.prompt_id)] for table in both)
        rows.append(
            {
                "alpha": request.alpha,
                "same": one["token_ids"] == other["token_ids"],
                "agree": common(one["token_ids"], other["token_ids"]),
                "kl": divergence(exact, rounded, request, one["token_ids"]),
                "toxicity": one["toxicity"],
                "rounded": other["toxicity"],
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
        "KL, nats a token": float(f"{answers['kl'].mean():.2g}"),
        "toxicity in float32": round(answers["toxicity"].mean(), 3),
        "change in bfloat16": f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]",
    }


def main() -> None:
    """`python -m benchmarks.precision`."""
    run()


if __name__ == "__main__":
    main()
