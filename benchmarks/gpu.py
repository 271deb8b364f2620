"""Steered decoding of an 8B model on a GPU: beside its own `generate`, its memory's bandwidth, and cached loops.

The weights are random, for what is timed does not depend on them; shapes are those of Llama 3.1 8B, so nothing is
downloaded. Texts mean nothing and are not compared: in bfloat16 another batch shape may choose another token.
Ours is timed as it runs by itself (a graph of the step), compiled, sampled, and with merged rows and no graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from benchmarks.batches import decode_as
from benchmarks.plain import cached_batch, cached_loop, generated
from benchmarks.rules import by_arm, spread
from benchmarks.setting import ALPHAS, RESULTS, Setting, Size, stated
from benchmarks.timing import Answers, Decoder, Timed, clock, race, write
from steerlib.dequantised import embedded_model
from steerlib.generation import Sampling, decode, make_arms
from steerlib.generation.batch import Batch
from steerlib.generation.decoding import default_capacity
from steerlib.generation.requests import Request, make_requests
from steerlib.models import FrozenModel

METHOD = "expert_anti_expert"
ALPHA = 1.25


@dataclass(frozen=True)
class Load:
    """How much is decoded.

    Attributes:
        tokens: shorter and longer answers; their difference is steps without prefill.
        batches: prompts at one time, one alpha each.
        prompts, alphas: of the large grid.
        loop_answers: answers of the large grid that the loop of one answer is timed on.
        gigabytes: copied to measure the memory's bandwidth.
        repeats: times that everything is timed after a warm-up; the shortest counts.
    """

    tokens: tuple[int, int] = (16, 128)
    batches: tuple[int, ...] = (1, 8)
    prompts: int = 24
    alphas: tuple[float, ...] = ALPHAS
    loop_answers: int = 2
    gigabytes: float = 2.0
    repeats: int = 3


SMALL = Load((2, 6), (1, 2), 2, (0.5, 2.0), 1, 0.05, 1)


def run(*, small: bool = False, folder: Path = RESULTS) -> pd.DataFrame | None:
    """Time an 8B model where there is a CUDA device, else say that there is none.

    Args:
        small: a tiny model instead, on whatever device is there: shows that everything works.
        folder: where the tables are written.
    """
    if not (small or torch.cuda.is_available()):
        print("\n== gpu\n   no CUDA device here: skipped")
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frozen = random_llama(tiny_config() if small else llama_8b_config(), device)
    setting = Setting(frozen, Size(repeats=(SMALL if small else Load()).repeats), folder=folder)
    load = SMALL if small else Load()
    speed = bandwidth(torch.device(device), load.gigabytes)
    about = {k: v for k, v in stated(setting).items() if k in STATED} | {
        "bandwidth, GB/s": round(speed / 1e9)
    }
    rows = [row for batch in load.batches for row in _beside_generate(setting, load, batch, speed)]
    write("gpu_steps", rows, about=about, folder=folder)
    return write("gpu_grid", _large_grid(setting, load), about=about, folder=folder)


STATED = ("model", "hardware", "cores", "threads", "load_at_start", "torch", "transformers")


def llama_8b_config() -> LlamaConfig:
    """The shapes of Llama 3.1 8B."""
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )


def tiny_config() -> LlamaConfig:
    """The same architecture at a size that any machine decodes in no time."""
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )


def random_llama(config: LlamaConfig, device: str) -> FrozenModel:
    """A model of random weights, bfloat16 on CUDA and float32 elsewhere, with the embedded model's tokenizer."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    billions = sum(weight.numel() for weight in model.parameters()) / 1e9
    return FrozenModel(model, tokenizer, f"random weights, Llama of {billions:.3g} billion")


def bandwidth(device: torch.device, gigabytes: float) -> float:
    """Bytes a second that the device's memory reads and writes, measured by copying."""
    source = torch.ones(int(gigabytes * 1e9 / 4), device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        started = clock(device)
        target.copy_(source)
        best = min(best, clock(device) - started)
    return 2 * source.nbytes / best


def bytes_a_step(frozen: FrozenModel, rows: int, columns: float) -> float:
    """What one step of decoding has to read: every weight once, and keys and values of every row.

    Of an embedding that is not the output layer too, a step reads a row a token, which is not counted.

    Args:
        frozen: the model.
        rows: of the forward pass.
        columns: tokens that a row has behind it.
    """
    config = frozen.model.config
    weights = sum(weight.nbytes for weight in frozen.model.parameters())
    if not config.tie_word_embeddings:
        weights -= sum(weight.nbytes for weight in frozen.model.get_input_embeddings().parameters())
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * width * frozen.dtype.itemsize
    return weights + cache * rows * columns


GREEDY = Sampling(temperature=0, repetition_penalty=1.0)
SAMPLED = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.15)


def _grid(setting: Setting, prompts: int, alphas: Sequence[float], sampling: Sampling) -> tuple:
    texts, arms = setting.prompts(prompts), make_arms(METHOD, alphas, profile="own", sampling=sampling)
    return texts, arms, make_requests(setting.frozen, texts, arms, seeds=[0])


def _beside_generate(setting: Setting, load: Load, batch: int, speed: float) -> list[dict]:
    """Tokens a second and time of a step, ours steered beside the base's `generate`."""
    frozen, compiled = setting.frozen, replace(setting.frozen, compiled=True)
    timed: dict[int, list[Timed]] = {}
    for tokens in load.tokens:
        texts, arms, requests = _grid(setting, batch, (ALPHA,), replace(GREEDY, max_new_tokens=tokens))
        sampled = _grid(setting, batch, (ALPHA,), replace(SAMPLED, max_new_tokens=tokens))[:2]
        decoders = [
            Decoder("base, generate", f"{batch}", partial(_base, frozen, requests)),
            Decoder("ours, EAE", f"{batch}", partial(_ours, frozen, texts, arms)),
            Decoder("ours, EAE, compiled", f"{batch}", partial(_ours, compiled, texts, arms)),
            Decoder("ours, EAE, sampled", f"{batch}", partial(_ours, frozen, *sampled)),
            Decoder("ours, EAE, merged rows", f"{batch}", partial(_merged, frozen, requests)),
        ]
        race([frozen], decoders, repeats=1, counted=False)  # warm-up: compilation, the allocator
        timed[tokens] = race([frozen], decoders, repeats=load.repeats, counted=False)
    context = sum(len(s.ids) for r in requests for s in r.branches.values()) / (3 * batch)
    plain, *_ = timed[load.tokens[1]]
    rows = []
    for short, long in zip(*timed.values(), strict=True):
        width = batch if long is plain else 3 * batch
        step = (long.seconds - short.seconds) / (load.tokens[1] - load.tokens[0])
        bound = bytes_a_step(frozen, width, context + sum(load.tokens) / 2) / speed
        rows.append(
            {
                "decoder": long.decoder.name,
                "prompts": batch,
                "rows a step": width,
                "tokens": long.tokens,
                "tokens a second": round(long.tokens / long.seconds, 1),
                "base's generate = 1": round(_rate(long) / _rate(plain), 2),
                "ms a step": round(1000 * step, 2),
                "weights and cache / bandwidth = 1": round(step / bound, 2),
            }
        )
    return rows


def _ours(frozen: FrozenModel, texts: pd.DataFrame, arms: pd.DataFrame) -> Answers:
    return by_arm(decode(frozen, texts, arms))


def _merged(frozen: FrozenModel, requests: Sequence[Request]) -> Answers:
    capacity = default_capacity([frozen], requests)
    rows = decode_as(Batch, frozen, requests, capacity=capacity)
    return {(row["arm_id"], row["prompt_id"]): row["token_ids"] for row in rows}


def _rate(timed: Timed) -> float:
    return timed.tokens / timed.seconds


def _base(frozen: FrozenModel, requests: Sequence[Request]) -> Answers:
    settings = {"max_new_tokens": requests[0].sampling.max_new_tokens, "do_sample": False}
    answers = generated(frozen, [r.branches["base"].ids for r in requests], **settings)
    return {(r.arm_id, r.prompt_id): answer for r, answer in zip(requests, answers, strict=True)}


def _large_grid(setting: Setting, load: Load) -> list[dict]:
    """Tokens a second and peak memory of a whole grid beside loops over one alpha at a time."""
    frozen = setting.frozen
    greedy = replace(GREEDY, max_new_tokens=load.tokens[1])
    texts, arms, requests = _grid(setting, load.prompts, load.alphas, greedy)
    some, block = spread(requests, load.loop_answers), [r for r in requests if r.alpha == load.alphas[0]]
    keys = [(r.arm_id, r.prompt_id) for r in block]
    decoders = [
        Decoder("ours, the whole grid", "all", partial(_ours, frozen, texts, arms)),
        Decoder("ours, merged rows", "all", partial(_merged, frozen, requests)),
        Decoder(
            "(b) three forwards, caches",
            "1 answer",
            lambda: {(r.arm_id, r.prompt_id): cached_loop(frozen, r) for r in some},
        ),
        Decoder(
            "(b) the same, prompts batched",
            f"{len(block)} prompts, 1 alpha",
            lambda: dict(zip(keys, cached_batch(frozen, block), strict=True)),
        ),
    ]
    rows = []
    for decoder in decoders:
        if frozen.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(frozen.device)
        (timed,) = race([frozen], [decoder], repeats=load.repeats, counted=False)
        peak = torch.cuda.max_memory_allocated(frozen.device) if frozen.device.type == "cuda" else None
        rows.append(
            {
                "decoder": decoder.name,
                "batch": decoder.batch,
                "answers timed": len(timed.answers),
                "of": len(requests),
                "tokens a second": round(_rate(timed), 1),
                "ours is faster by": round(rows[0]["tokens a second"] / _rate(timed), 1) if rows else 1.0,
                "peak memory, GB": round(peak / 1e9, 1) if peak else None,
            }
        )
    return rows
