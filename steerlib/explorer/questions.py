"""What the alpha explorer is asked and answers, and what of a run it starts from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from steerlib.figures.report import kept_toxicity
from steerlib.profiles import demo_openings
from steerlib.rules import RULES
from steerlib.tables import has_table, read_table

PROMPT_COLUMNS = ["prompt_id", "prompt", "history", "category", "shuffled_category", "accepted", "user_id"]
TYPED = "typed"  # the prompt_id of one's own words


@dataclass(frozen=True)
class Question:
    """What is asked, and what steers the answers.

    Attributes:
        prompt, prompt_id, history: a row of the prompts table; the id enters the sampling noise.
        method, category: of `Explorer.methods` (of "sda" alpha is k, with a = 1); whose contexts steer.
        vector, user, vector_alpha: a family of `Explorer.vectors`, whose of it, and its strength beside a logit rule.
        layers, unit: first and last layer used, empty for all; unit of the vector's alpha, see `in_unit`.
    """

    prompt: str
    method: str = "expert_anti_expert"
    category: str = "toxicity"
    vector: str = ""
    vector_alpha: float = 0.0
    layers: tuple[int, ...] = ()
    unit: str = "vector"
    user: str = ""
    seed: int = 0
    greedy: bool = False
    max_new_tokens: int = 32
    prompt_id: str = TYPED
    history: str = ""

    @property
    def exact(self) -> bool:
        """Whether every alpha is known: a logit rule alone."""
        return RULES[self.method].acts_on == "logits" and not self.vector_alpha

    @property
    def by_vector(self) -> bool:
        """Whether a vector steers, alone or beside a logit rule."""
        return RULES[self.method].acts_on == "residual" or bool(self.vector_alpha)

    @property
    def of_base(self) -> "Question":
        """The question of the unsteered answer, the same for all that steers."""
        plain = {"method": "base", "category": "toxicity", "vector": "", "vector_alpha": 0.0, "user": ""}
        return replace(self, layers=(), unit="vector", **plain)

    @property
    def key(self) -> "Question":
        """Equal where answers are equal: contexts play no part beside a vector, nor a vector without strength."""
        if RULES[self.method].acts_on == "residual":
            return replace(self, category="toxicity", vector_alpha=0.0)
        return self if self.vector_alpha else replace(self, vector="", layers=(), unit="vector", user="")


@dataclass(frozen=True)
class Answers:
    """The base's answer and those steered ones that are there so far, with their numbers.

    Attributes:
        table: the base's answer (alpha_low and alpha_high NaN), then the steered ones by rising alpha. Columns:
            method, alpha_low, alpha_high, text, token_ids, n_tokens, stopped, complete, nll_per_token (nats, under the
            unsteered base; NaN for an empty answer), perplexity_ratio (to the base's answer), collapsed, kl_per_token
            (KL(steered || base) in nats, along a path at the middle of the segment; NaN until measured), six scores.
        exact: each steered answer holds from alpha_low to alpha_high; else at the alpha_low = alpha_high decoded.
        tokens: of each row, one dict a token: its text, probability under the base and steered (NaN for the base's own
            answer), and the likeliest tokens of each branch; empty until measured.
    """

    question: Question
    table: pd.DataFrame
    exact: bool
    tokens: tuple[list[dict], ...] = ()

    @property
    def base(self) -> pd.Series:
        """The unsteered answer. For SDA it is not the answer at alpha 0, which is the instructed one."""
        return self.table.iloc[0]

    @property
    def steered(self) -> pd.DataFrame:
        """The steered answers, by rising alpha from 0 on."""
        return self.table.iloc[1:]

    @property
    def distinct(self) -> int:
        """Different texts among the steered answers; one may hold on several stretches of alpha."""
        return self.steered["text"].str.strip().nunique()

    def at(self, alpha: float) -> pd.Series:
        """The steered answer at an alpha: along a path the one it gives, on a grid the nearest that was decoded."""
        starts = self.steered["alpha_low"].to_numpy()
        along = max(0, int(np.searchsorted(starts, alpha, side="right")) - 1)
        return self.steered.iloc[along if self.exact else int(np.abs(starts - alpha).argmin())]


def run_prompts(folder: Path, *, first: Sequence[str] = ()) -> pd.DataFrame:
    """Prompts to choose from: `PROMPT_COLUMNS`, where category is c*(u).

    Twelve hostile openings of the demo come first, `first` of them by name, steered in "toxicity". Then at most 40 test
    prompts of the run (of all prompts without a test split), those first whose base answers are most toxic: there an
    effect can be seen.
    """
    own = demo_openings()[1].query("split == 'test'").set_index("prompt_id", drop=False)
    own = own.loc[[*first, *own.index.difference([*first], sort=False)]].head(12)
    own = own.assign(category="toxicity").reindex(columns=PROMPT_COLUMNS, fill_value="")
    if not has_table(folder, "prompts"):
        return own.reset_index(drop=True)
    table = read_table(folder, "prompts")
    chosen = table if (table["split"] != "test").all() else table[table["split"] == "test"]
    if all(has_table(folder, name) for name in ("arms", "generations", "scores")):
        arms, answers = (read_table(folder, name) for name in ("arms", "generations"))
        answers = answers[answers["arm_id"].isin(arms.loc[arms["control"] == "base", "arm_id"])]
        answers = answers.assign(toxicity=answers["text"].map(kept_toxicity(folder, answers["text"])))
        toxicity = chosen["prompt_id"].map(answers.groupby("prompt_id")["toxicity"].mean())
        chosen = chosen.loc[toxicity.sort_values(ascending=False, kind="stable").index]
    return pd.concat([own, chosen[PROMPT_COLUMNS].head(40)], ignore_index=True)


def run_ranges(folder: Path) -> dict[tuple[str, str], tuple[float, float, float]]:
    """By method and vector: alpha chosen on dev, lowest and highest of the operating range (NaN); empty without 04."""
    if not (has_table(folder, "verdict") and has_table(folder, "arms")):
        return {}
    arms = read_table(folder, "arms").set_index("arm_id")
    found = {}
    for row in read_table(folder, "verdict").to_dict("records"):
        arm = arms.loc[row["arm_id"]]
        key = arm["method"], f"{arm['vector_user']} {arm['family']}".strip()
        found[key] = (row["alpha"], row["alpha_low"], row["alpha_high"])
    return found
