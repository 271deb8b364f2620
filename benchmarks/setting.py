"""What is timed and on what: the model, the prompts, the grid, and the machine as a table states it."""

import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig

from steerlib.embedded import embedded_model
from steerlib.models import FrozenModel, load_model
from steerlib.profiles import read_ratings
from steerlib.toxicity import ATTRIBUTES

ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.2)
SHAPES = {
    "llama-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
    },
    "llama-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
    },
}
"""Sizes of models as their configurations give them, but for the vocabulary, which is the embedded tokenizer's."""
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Size:
    """How much is timed; what a table is printed with.

    Attributes:
        prompts, alphas, tokens: the grid of the logit rules and of the vectors.
        path_prompts: prompts of the alpha path.
        questions: multiple-choice questions.
        loop_answers: answers that a decoder of one answer at a time is timed on, spread evenly over the grid.
        full_prefix_answers: the same for the loop without a cache.
        batched_alphas: alphas that a decoder of all prompts at a time is timed on.
        peer_questions: questions that the plain question loop is timed on, at one alpha and under one context.
        repeats: times that everything is timed; the shortest counts.
    """

    prompts: int = 24
    alphas: tuple[float, ...] = ALPHAS
    tokens: int = 64
    path_prompts: int = 4
    questions: int = 200
    loop_answers: int = 6
    full_prefix_answers: int = 2
    batched_alphas: int = 2
    peer_questions: int = 48
    repeats: int = 1


SMALL = Size(
    prompts=2,
    alphas=(0.5, 1.0, 2.0),
    tokens=8,
    path_prompts=2,
    questions=12,
    loop_answers=2,
    full_prefix_answers=1,
    batched_alphas=1,
    peer_questions=6,
)
"""A run of seconds that shows that everything works; its ratios mean nothing."""


@dataclass(frozen=True)
class Setting:
    """One run of the benchmark.

    Attributes:
        frozen: the model as this library loads it.
        size: how much is timed.
        questions: "demo" or a folder with MMLU.
        folder: where tables and figures are written.
        plain: the same model as its own library loads it, for the peers; None for the one above.
        small: seconds instead of minutes, in parts that have sizes of their own.
    """

    frozen: FrozenModel
    size: Size = field(default_factory=Size)
    questions: str = "demo"
    folder: Path = RESULTS
    plain: FrozenModel | None = None
    small: bool = False

    @property
    def peer(self) -> FrozenModel:
        """The model that peers decode."""
        return self.plain or self.frozen

    @property
    def models(self) -> list[FrozenModel]:
        """Every model of the run, each once."""
        return [self.frozen] if self.plain is None else [self.frozen, self.plain]

    def prompts(self, n: int | None = None) -> pd.DataFrame:
        """Distinct prompts of the demo ratings (synthetic), their users' categories taken in turn."""
        ratings, _ = read_ratings("demo")
        texts = ratings["prompt"].drop_duplicates().head(n or self.size.prompts)
        categories = [ATTRIBUTES[i % len(ATTRIBUTES)] for i in range(len(texts))]
        ids = [f"p{i}" for i in range(len(texts))]
        return pd.DataFrame({"prompt_id": ids, "prompt": texts.to_numpy(), "category": categories})


def plainly_loaded(frozen: FrozenModel) -> FrozenModel:
    """The embedded model with nothing of this library's: what `AutoModelForCausalLM` gives, in the same precision."""
    model = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=frozen.dtype)
    model = model.to(frozen.device).eval().requires_grad_(False)
    return FrozenModel(model, frozen.tokenizer, frozen.name)


def random_model(shape: str, device: str, dtype: str) -> FrozenModel:
    """A Llama with random weights of a size in `SHAPES` and the embedded tokenizer: its time is a trained model's."""
    tokenizer = load_model(device="cpu").tokenizer
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=None, **SHAPES[shape])
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return FrozenModel(model.eval().requires_grad_(False), tokenizer, f"random weights, {shape}")


def stated(setting: Setting) -> dict:
    """Hardware, threads, versions and sizes of a run."""
    frozen = setting.frozen
    return {
        "version": version("steerlib"),
        "model": frozen.name,
        "hardware": frozen.hardware if frozen.device.type == "cuda" else f"{processor()}, {frozen.hardware}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_at_start": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **asdict(setting.size),
    }


def processor() -> str:
    """Name of the processor as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
