"""The alpha explorer without its widgets: all answers over alpha to one prompt, decoded at once and kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from steerlib.generation import RULES, Sampling, check_method, decode, default_contexts, make_arms
from steerlib.generation.contexts import Contexts
from steerlib.models import FrozenModel
from steerlib.toxicity import ATTRIBUTES, Scorer, check_attribute
from steerlib.vectors.residual import Vectors

LOGIT_ALPHAS = tuple(round(0.2 * i, 6) for i in range(12))
RESIDUAL_ALPHAS = tuple(round(0.1 * i, 6) for i in range(11))
OFF_ON = (0.0, 1.0)
TYPED = "typed"


class Explorer:
    """All answers over alpha to a prompt, decoded as one batch, with their numbers.

    Args:
        frozen: the model.
        scorer: six toxicity scores of a text.
        style: "chat" or "continuation".
        sampling: settings of the choice of tokens.
        contexts: expert and anti-expert contexts by category; those of the style where None or empty.
        vectors: steering vectors by name, for method "caa".
        positions: where vectors are added, see `steered_positions`.
        logit_alphas: alphas of the logit rules, increasing from 0.
        residual_alphas: alphas of "caa", increasing from 0.

    Raises:
        ValueError: a vector does not fit the model, or a grid does not begin with 0 and increase.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        scorer: Scorer,
        *,
        style: str = "continuation",
        sampling: Sampling | None = None,
        contexts: Contexts | None = None,
        vectors: Mapping[str, Vectors] | None = None,
        positions: str = "all",
        logit_alphas: Sequence[float] = LOGIT_ALPHAS,
        residual_alphas: Sequence[float] = RESIDUAL_ALPHAS,
    ) -> None:
        self.frozen, self.scorer, self.style = frozen, scorer, style
        self.contexts, self.positions = contexts or default_contexts(style), positions
        self.sampling = sampling or Sampling()
        self.vectors = dict(vectors or {})
        for name, vector in self.vectors.items():
            _check_fit(frozen, name, vector)
        self._alphas = {"caa": tuple(residual_alphas), "prompt_only": OFF_ON}
        self._logit_alphas = tuple(logit_alphas)
        for grid in (self._logit_alphas, *self._alphas.values()):
            if len(grid) < 2 or grid[0] != 0 or list(grid) != sorted(set(grid)):
                raise ValueError(f"alphas must increase from 0, not {list(grid)}")
        self._kept: dict[tuple, pd.DataFrame] = {}

    @property
    def methods(self) -> tuple[tuple[str, str], ...]:
        """Method and vector of everything that can be chosen; "caa" once for each vector."""
        plain = [name for name in RULES if name not in ("base", "caa")]
        return (*((name, "") for name in plain), *(("caa", vector) for vector in self.vectors))

    def alphas(self, method: str) -> tuple[float, ...]:
        """Grid of a method; "prompt_only" is off at 0 and on at 1, as `z_B + alpha (z_E - z_B)`."""
        check_method(method)
        return self._alphas.get(method, self._logit_alphas)

    def answers(
        self,
        prompt: str,
        *,
        category: str,
        method: str,
        vector: str = "",
        seed: int = 0,
        greedy: bool = False,
        max_new_tokens: int | None = None,
        prompt_id: str = TYPED,
        progress: Callable[[int, int], None] | None = None,
    ) -> pd.DataFrame:
        """Answers of one prompt at every alpha of the method's grid; the second call with the same settings is free.

        Args:
            prompt: what the model reads.
            category: the attribute whose contexts steer; "caa" ignores it.
            method: one of `methods`.
            vector: the steering vector's name, for "caa".
            seed: of the sampling noise, which all alphas share.
            greedy: take the likeliest token instead of drawing.
            max_new_tokens: longest answer; that of the sampling where None.
            prompt_id: enters the noise, so that a run's prompt gives the run's answers.
            progress: called with the steps decoded so far and the most there can be.

        Returns:
            One row an alpha, the base (alpha 0) first: alpha, method, text, n_tokens, stopped, nll_per_token (nats,
            under the unsteered base; NaN for an empty answer), kl_per_step (nats), and six scores in [0, 1].

        Raises:
            ValueError: an empty or too long prompt, an unknown category, method or vector.
        """
        check_attribute(category)
        # Contexts play no part in "caa", so its answers are kept once for all categories.
        signal = "" if method == "caa" else category
        limit = max_new_tokens or self.sampling.max_new_tokens
        key = (prompt, signal, method, vector, seed, greedy, limit, prompt_id)
        if key not in self._kept:
            sampling = replace(self.sampling, max_new_tokens=limit)
            sampling = replace(sampling, temperature=0.0) if greedy else sampling
            arms = self._arms(method, vector, category, sampling)
            asked = pd.DataFrame([{"prompt_id": prompt_id, "prompt": prompt}])
            steps = _Steps(limit, progress)
            used = {vector: self.vectors[vector]} if vector else {}
            found = decode(
                self.frozen, asked, arms, seeds=[seed], contexts=self.contexts, vectors=used, progress=steps
            )
            self._kept[key] = self._measured(arms, found)
        return self._kept[key]

    def _arms(self, method: str, vector: str, category: str, sampling: Sampling) -> pd.DataFrame:
        if (method, vector) not in self.methods:
            known = ", ".join(" ".join(pair).strip() for pair in self.methods)
            raise ValueError(f"method {f'{method} {vector}'.strip()!r} is none of {known}")
        build, grid = (
            partial(make_arms, contexts=self.contexts, style=self.style, sampling=sampling),
            self.alphas(method)[1:],
        )
        if vector:
            arms = build(method, grid, vector=vector, positions=self.positions)
        else:
            arms = build(method, grid, profile="population", category=category)
        return pd.concat([build("base"), arms], ignore_index=True)

    def _measured(self, arms: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
        rows = arms[["arm_id", "alpha", "method"]].merge(found, on="arm_id", validate="one_to_one")
        numbers = rows[["alpha", "method", "text", "n_tokens", "stopped"]].assign(
            nll_per_token=rows["nll_base"] / rows["n_tokens"].where(rows["n_tokens"] > 0),
            kl_per_step=rows["kl_to_base"] / (rows["n_tokens"] + rows["stopped"]),
        )
        scores = self.scorer(rows["text"].tolist())[list(ATTRIBUTES)].reset_index(drop=True)
        return pd.concat([numbers, scores], axis=1)


class _Steps:
    """Counts decoding steps: the engine reports once a step, however many answers that finished."""

    def __init__(self, most: int, report: Callable[[int, int], None] | None) -> None:
        self.most, self.report, self.done = most, report, 0

    def __call__(self, finished: int) -> None:  # noqa: ARG002
        self.done += 1
        if self.report:
            self.report(min(self.done, self.most), self.most)


def _check_fit(frozen: FrozenModel, name: str, vector: Vectors) -> None:
    for layer, direction in vector.items():
        if layer >= frozen.n_layers or len(direction) != frozen.d_model:
            raise ValueError(
                f"vector {name!r} is {len(direction)} wide at layer {layer}, but {frozen.name} is {frozen.d_model} "
                f"wide and has {frozen.n_layers} layers: name a run of this model"
            )


def nearest(answers: pd.DataFrame, alpha: float) -> pd.Series:
    """The answer whose alpha is nearest to the one asked for."""
    return answers.loc[(answers["alpha"] - alpha).abs().idxmin()]
