"""A steering vector over a list of coefficients: against the two packages that have one loop each for it."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.plain import generated
from benchmarks.rules import OURS, by_arm, spread
from benchmarks.setting import Setting, stated
from benchmarks.timing import Answers, Decoder, compared, measured, write
from steerlib.decoding import Sampling, VectorFamily, decode, make_arms
from steerlib.models import FrozenModel
from steerlib.reading import prompt_ids

Steered = Callable[[float], AbstractContextManager[None]]
"""A peer's way to steer the model with a coefficient, under `with`."""


def run(setting: Setting) -> pd.DataFrame:
    """Time a sweep over coefficients at the middle layers of the model; keep the table."""
    frozen, size, about = setting.frozen, setting.size, stated(setting)
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=size.tokens)
    vector = random_vector(frozen)
    family = VectorFamily("random", {"": vector}, control="random_vector")
    arms = make_arms("caa", size.alphas, family=family, sampling=sampling)
    prompts = setting.prompts()
    steer = partial(decode, frozen, prompts, arms, vectors=[family])
    contexts = {p.prompt_id: prompt_ids(frozen, p.prompt, style="continuation") for p in prompts.itertuples()}
    few = arms[arms["alpha"].isin(spread(size.alphas, size.batched_alphas))]
    whole = "all prompts and coefficients"
    decoders = [
        # The peers do not decode the base beside an answer, so neither does ours where it is held against them.
        Decoder(OURS, whole, lambda: by_arm(steer(reference=False))),
        Decoder("ours, with the base's likelihood and KL", whole, lambda: by_arm(steer())),
    ]
    for name, peer in peers().items():
        decoders.append(
            Decoder(
                f"(d) {name}",
                f"{size.prompts} prompts, 1 coefficient",
                lambda peer=peer: _sweep(
                    setting.peer, peer(setting.peer, vector), few, contexts, size.tokens
                ),
            )
        )
    grid = f"{size.prompts} prompts x {len(size.alphas)} coefficients x {size.tokens} tokens"
    name = f"vector at layers {min(vector)}-{max(vector)}, greedy, {grid}"
    timed = measured("vectors", {name: decoders}, setting=setting, about=about)
    return write("vectors", compared(timed[name], setting=name), about=about, folder=setting.folder)


def random_vector(frozen: FrozenModel) -> dict[int, Tensor]:
    """A fixed random vector at a quarter of the layers, from the middle on; long enough to change the text."""
    generator = torch.Generator().manual_seed(0)
    middle = frozen.n_layers // 2
    layers = range(middle, middle + max(1, frozen.n_layers // 4))
    return {layer: 0.5 * torch.randn(frozen.d_model, generator=generator) for layer in layers}


def peers() -> Mapping[str, Callable[[FrozenModel, Mapping[int, Tensor]], Steered]]:
    """The packages that are installed; one that is not is named."""
    found = {}
    for package, peer in (("steering_vectors", steering_vectors), ("repeng", repeng)):
        try:
            _imported(package)
        except ImportError as missing:
            print(f"{package} is not measured: {missing}. pip install --no-deps -r benchmarks/peers.txt")
        else:
            found[package.replace("_", "-")] = peer
    return found


def steering_vectors(frozen: FrozenModel, vector: Mapping[int, Tensor]) -> Steered:
    """`SteeringVector.apply`, as its README has it."""
    packed = _imported("steering_vectors").SteeringVector(dict(vector))
    return lambda coefficient: packed.apply(frozen.model, multiplier=coefficient)


def repeng(frozen: FrozenModel, vector: Mapping[int, Tensor]) -> Steered:
    """`ControlModel.set_control`, as its README has it; the model is unwrapped afterwards."""
    package = _imported("repeng")
    packed = package.ControlVector(
        frozen.model.config.model_type, {layer: v.numpy() for layer, v in vector.items()}
    )

    @contextmanager
    def steered(coefficient: float) -> Generator[None, None, None]:
        wrapped = package.ControlModel(frozen.model, list(vector))
        try:
            wrapped.set_control(packed, coefficient)
            yield
        finally:
            wrapped.unwrap()

    return steered


def _imported(package: str) -> ModuleType:
    # repeng 0.4.0 names np.float_ in an annotation, which NumPy 2 no longer has: without this it cannot be imported.
    alias = package == "repeng" and not hasattr(np, "float_")
    if alias:
        np.float_ = np.float64  # ty: ignore[unresolved-attribute]
    try:
        return import_module(package)
    finally:
        if alias:
            del np.float_  # ty: ignore[unresolved-attribute]


def _sweep(
    frozen: FrozenModel,
    steered: Steered,
    arms: pd.DataFrame,
    contexts: Mapping[str, Sequence[int]],
    tokens: int,
) -> Answers:
    found = {}
    for arm in arms.itertuples():
        with steered(float(arm.alpha)):
            answers = generated(frozen, [*contexts.values()], max_new_tokens=tokens, do_sample=False)
        found |= {(arm.arm_id, key): answer for key, answer in zip(contexts, answers, strict=True)}
    return found
