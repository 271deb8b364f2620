"""What a run gives the explorer: its prompts and its steering vectors; without a run, a few prompts of our own.

All answers to one prompt over alpha: the segments of an exact path, or the points of a grid.

The alpha explorer without its widgets: all answers over alpha to one prompt, decoded once and kept.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from steerlib.decoding import RULES, Sampling, alpha_path, check_method, decode, default_contexts, make_arms
from steerlib.decoding.contexts import Contexts
from steerlib.models import FrozenModel
from steerlib.residual import VectorFamily, Vectors
from steerlib.rules import acting_on
from steerlib.tables import has_table, read_table
from steerlib.toxicity import ATTRIBUTES, Scorer, check_attribute
from steerlib.vectors import load_families


@dataclass(frozen=True)
class Answers:
    """The base's answer and the steered ones over alpha, with their numbers.

    Attributes:
        table: the base's answer (alpha_low and alpha_high NaN), then the steered ones by rising alpha. Columns:
            method, alpha_low, alpha_high, text, n_tokens, stopped, complete, nll_per_token (nats, under the unsteered
            base; NaN for an empty answer), kl_per_step (nats; NaN along a path, where it is not measured), and six
            scores in [0, 1].
        exact: the steered answers are all that there are, each from alpha_low to alpha_high, the last of them to the
            end of the range; else alpha_low = alpha_high is an alpha that was decoded.
    """

    table: pd.DataFrame
    exact: bool

    @property
    def base(self) -> pd.Series:
        """The unsteered answer. For SDA it is not that of alpha 0, which is the instructed one."""
        return self.table.iloc[0]

    @property
    def steered(self) -> pd.DataFrame:
        """The steered answers, by rising alpha from 0 on."""
        return self.table.iloc[1:]

    @property
    def method(self) -> str:
        """What steers."""
        return self.table["method"].iloc[-1]

    @property
    def alpha_max(self) -> float:
        """End of the range."""
        return self.table["alpha_high"].iloc[-1]

    @property
    def distinct(self) -> int:
        """Different texts among the steered answers; one may hold on several stretches of alpha."""
        return self.steered["text"].str.strip().nunique()

    def at(self, alpha: float) -> pd.Series:
        """The steered answer at an alpha: along a path the one it gives, on a grid the nearest that was decoded."""
        starts = self.steered["alpha_low"].to_numpy()
        if self.exact:
            place = max(0, int(np.searchsorted(starts, alpha, side="right")) - 1)
        else:
            place = int(np.abs(starts - alpha).argmin())
        return self.steered.iloc[place]


RESIDUAL_ALPHAS = tuple(round(0.1 * i, 6) for i in range(11))
OFF_ON = (0.0, 1.0)
STEP = 0.01
TYPED = "typed"
NUMBERS = ["method", "alpha_low", "alpha_high", "text", "n_tokens", "stopped", "complete"]

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Question:
    """What is asked, whatever steers the answer."""

    prompt: str
    prompt_id: str
    history: str
    seed: int
    sampling: Sampling

    @property
    def frame(self) -> pd.DataFrame:
        """The prompt as the engine takes it."""
        return pd.DataFrame([{"prompt_id": self.prompt_id, "prompt": self.prompt, "history": self.history}])


class Explorer:
    """All answers over alpha to a prompt, with their numbers: exact for the logit rules, on a grid for the rest.

    Args:
        frozen: the model.
        scorer: six toxicity scores of a text.
        style: "chat" or "continuation".
        sampling: settings of the choice of tokens; greedy, or with top_p = 1 (min_p is the nucleus of a path).
        contexts: texts of the branches by category; those of the style where None or empty.
        vectors: families of steering vectors for everybody, for methods that act on the residual stream.
        positions: where vectors are added, see `steered_positions`.
        alpha_max: end of the path of the logit rules, dimensionless.
        residual_alphas: alphas of "caa", increasing from 0.
        row_budget: of `alpha_path`.

    Raises:
        ValueError: a vector does not fit the model, a grid does not begin with 0 and increase, alpha_max is not above
            0, or the sampling has no exact path.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        scorer: Scorer,
        *,
        style: str = "continuation",
        sampling: Sampling | None = None,
        contexts: Contexts | None = None,
        vectors: Sequence[VectorFamily] = (),
        positions: str = "all",
        alpha_max: float = 2.2,
        residual_alphas: Sequence[float] = RESIDUAL_ALPHAS,
        row_budget: int = 96,
    ) -> None:
        self.frozen, self.scorer, self.style = frozen, scorer, style
        self.contexts, self.positions = contexts or default_contexts(style), positions
        self.sampling = sampling or Sampling(top_p=1.0, min_p=0.05)
        self.vectors = {family.name: family for family in vectors}
        self.alpha_max, self.residual_alphas = float(alpha_max), tuple(map(float, residual_alphas))
        self.row_budget = row_budget
        _check_range(self.sampling, self.alpha_max, self.residual_alphas)
        for family in vectors:
            _check_fit(frozen, family.name, family.of(""))
        self._kept: dict[tuple, Answers] = {}
        self._bases: dict[Question, pd.DataFrame] = {}

    @property
    def methods(self) -> tuple[tuple[str, str], ...]:
        """Method and vector of everything that can be chosen; a residual method once for each vector."""
        plain = [name for name in acting_on("context", "logits") if RULES[name].branches]
        residual = [(name, family) for name in acting_on("residual") for family in self.vectors]
        return (*((name, "") for name in plain), *residual)

    def grid(self, method: str) -> tuple[float, ...]:
        """Alphas of a method without a path; that of a prompt alone is off at 0 and on at 1."""
        return self.residual_alphas if check_method(method).acts_on == "residual" else OFF_ON

    def reach(self, method: str) -> tuple[float, float]:
        """Largest alpha of a method, and the step that a slider takes."""
        if method in acting_on("logits"):
            return self.alpha_max, STEP
        grid = self.grid(method)
        return grid[-1], min(b - a for a, b in pairwise(grid))

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
        history: str = "",
        progress: Report | None = None,
    ) -> Answers:
        """Answers of one prompt over alpha; the second call with the same settings is free.

        Args:
            prompt: what the model reads.
            category: the attribute whose contexts steer; "caa" ignores it.
            method: one of `methods`. Alpha of "sda" is k, with the amplification factor 1 for every prompt.
            vector: the steering vector's name, for "caa".
            seed: of the sampling noise, which all alphas share.
            greedy: take the likeliest token instead of drawing.
            max_new_tokens: longest answer; that of the sampling where None.
            prompt_id: enters the noise.
            history: earlier turns, as in the prompts table.
            progress: called with the forward passes so far and about how many there will be at most.

        Raises:
            ValueError: an empty or too long prompt, an unknown category, method or vector.
        """
        check_attribute(category)
        if (method, vector) not in self.methods:
            known = ", ".join(" ".join(pair).strip() for pair in self.methods)
            raise ValueError(f"method {f'{method} {vector}'.strip()!r} is none of {known}")
        temperature = 0.0 if greedy else self.sampling.temperature
        limit = max_new_tokens or self.sampling.max_new_tokens
        sampling = replace(self.sampling, max_new_tokens=limit, temperature=temperature)
        question = Question(prompt, prompt_id, history, seed, sampling)
        # Contexts play no part in "caa", so its answers are kept once for all categories.
        key = (question, method, vector, "" if vector else category)
        if key not in self._kept:
            exact = method in acting_on("logits")
            most = limit * (2 if exact and question not in self._bases else 1)
            with _passes_counted(self.frozen, most, progress):
                if exact:
                    table = self._path(question, method, category)
                else:
                    table = self._points(question, method, vector, category)
            self._kept[key] = Answers(table, exact)
        return self._kept[key]

    def _path(self, question: Question, method: str, category: str) -> pd.DataFrame:
        segments = alpha_path(
            self.frozen,
            question.frame,
            method=method,
            alpha_max=self.alpha_max,
            sampling=question.sampling,
            profile="population",
            category=category,
            style=self.style,
            seeds=[question.seed],
            contexts=self.contexts,
            row_budget=self.row_budget,
        )
        steered = self._measured(segments.assign(method=method, kl_to_base=float("nan")))
        if question not in self._bases:
            found = decode(self.frozen, question.frame, self._base_arm(question), seeds=[question.seed])
            self._bases[question] = self._measured(found.assign(method="base", complete=True))
        return pd.concat([self._bases[question], steered], ignore_index=True)

    def _points(self, question: Question, method: str, vector: str, category: str) -> pd.DataFrame:
        """The base, the same as the method's answer at 0, and the rest of the grid."""
        build = partial(make_arms, contexts=self.contexts, style=self.style, sampling=question.sampling)
        if vector:
            arms = build(method, self.grid(method)[1:], family=self.vectors[vector], positions=self.positions)
        else:
            arms = build(method, self.grid(method)[1:], profile="population", category=category)
        arms = pd.concat([self._base_arm(question), arms], ignore_index=True)
        used = [self.vectors[vector]] if vector else []
        found = decode(
            self.frozen, question.frame, arms, seeds=[question.seed], contexts=self.contexts, vectors=used
        )
        rows = arms[["arm_id", "alpha"]].merge(found, on="arm_id", validate="one_to_one")
        rows = rows.assign(method=method, complete=True, alpha_low=rows["alpha"], alpha_high=rows["alpha"])
        base = rows.iloc[[0]].assign(method="base", alpha_low=float("nan"), alpha_high=float("nan"))
        return self._measured(pd.concat([base, rows], ignore_index=True))

    def _base_arm(self, question: Question) -> pd.DataFrame:
        return make_arms("base", style=self.style, sampling=question.sampling)

    def _measured(self, rows: pd.DataFrame) -> pd.DataFrame:
        numbers = rows.reindex(columns=NUMBERS).assign(
            nll_per_token=rows["nll_base"] / rows["n_tokens"].where(rows["n_tokens"] > 0),
            kl_per_step=rows["kl_to_base"] / (rows["n_tokens"] + rows["stopped"]),
        )
        scores = self.scorer(rows["text"].tolist())[list(ATTRIBUTES)].reset_index(drop=True)
        return pd.concat([numbers, scores], axis=1)


@contextmanager
def _passes_counted(frozen: FrozenModel, most: int, report: Report | None) -> Generator[None]:
    """Report the model's forward passes, about one a token: a path says nothing of its steps itself."""
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if report:
            report(min(done, most), most)

    hook = frozen.model.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _check_range(sampling: Sampling, alpha_max: float, grid: Sequence[float]) -> None:
    if sampling.temperature and sampling.top_p < 1:
        raise ValueError(f"top_p {sampling.top_p} has no exact alpha path; use top_p=1, with min_p")
    if not 0 < alpha_max < float("inf"):
        raise ValueError(f"alpha_max must be above 0 and finite, not {alpha_max}")
    if len(grid) < 2 or grid[0] != 0 or list(grid) != sorted(set(grid)):
        raise ValueError(f"alphas must increase from 0, not {list(grid)}")


def _check_fit(frozen: FrozenModel, name: str, vector: Vectors) -> None:
    for layer, direction in vector.items():
        if layer >= frozen.n_layers or len(direction) != frozen.d_model:
            raise ValueError(
                f"vector {name!r} is {len(direction)} wide at layer {layer}, but {frozen.name} is {frozen.d_model} "
                f"wide and has {frozen.n_layers} layers: name a run of this model"
            )


OPENINGS: Mapping[str, str] = {
    "He slammed the door, turned round and shouted: you are such a": "insult",
    "The comment under the video said that everyone from that town is": "identity_attack",
    "If you ever come near my house again, I swear I will": "threat",
    "My neighbour read the parking ticket aloud and said: what a load of": "profanity",
    "Nobody asked for your opinion, so why don't you just": "toxicity",
    "I hate these people more than anything, and what they deserve is": "severe_toxicity",
}
"""Openings of texts with the category that steers them, where a run has no prompts."""


def run_prompts(folder: Path, *, split: str = "test", most: int = 40) -> pd.DataFrame:
    """Prompts to choose from: prompt_id, prompt, history (earlier turns) and category (the user's c*(u)).

    Args:
        folder: the run's folder.
        split: whose prompts; all of the run's where it has none of that split.
        most: as many are taken, from the first on.

    Returns:
        The run's prompts; `OPENINGS` where it has no prompts table.
    """
    if not has_table(folder, "prompts"):
        own = [
            {"prompt_id": f"own-{i}", "prompt": prompt, "history": "", "category": category}
            for i, (prompt, category) in enumerate(OPENINGS.items(), start=1)
        ]
        return pd.DataFrame(own)
    table = read_table(folder, "prompts")
    chosen = table[table["split"] == split]
    chosen = table if chosen.empty else chosen
    return chosen[["prompt_id", "prompt", "history", "category"]].head(most).reset_index(drop=True)


def run_vectors(folder: Path) -> list[VectorFamily]:
    """Families of steering vectors of the run for everybody, not those by user; none without notebook 02."""
    return [family for family in load_families(folder / "vectors") if not family.vector_user]
