"""Blind preference: two answers to a prompt in random order, unlabelled; choices are kept, then counted.

STEER-Away names human preference as what its distances still lack.
"""

import json
import os
import re
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import anywidget
import numpy as np
import pandas as pd
import traitlets

from steerlib.decoding.sampling import text_hash
from steerlib.evaluation.intervals import share_interval
from steerlib.reading import after_thinking
from steerlib.tables import read_table

JUDGED = ["prompt_id", "arm_id", "control_arm"]
RESULTS = [*JUDGED[1:], "win_rate", "low", "high", "first_rate", "first_low", "first_high"]
RESULTS += ["no_difference", "kappa", "n", "n_prompts", "n_raters"]


def blind_pairs(folder: Path, arms: Sequence[str] = (), *, n: int = 40) -> pd.DataFrame:
    """Answers of two arms of a run to the same test prompts: prompt_id, prompt, arm_id, control_arm, text, other.

    At most `n` prompts, of those whose two answers differ; a ValueError says that there are none. `arms` are two
    arm_ids, by default the verdict's first arm and its control.
    """
    arm_id, control_arm = arms or read_table(folder, "verdict")[["arm_id", "control_arm"]].iloc[0]
    answers = read_table(folder, "generations").query("seed == seed.min()")
    answers = answers.assign(text=answers["text"].map(after_thinking).str.strip())
    wide = answers.pivot(index="prompt_id", columns="arm_id", values="text")
    both = wide.reindex(columns=[arm_id, control_arm]).set_axis(["text", "other"], axis=1).dropna()
    asked = read_table(folder, "prompts").query("split == 'test'")[["prompt_id", "prompt"]]
    found = asked.merge(both[both["text"] != both["other"]], on="prompt_id").head(n)
    if found.empty:
        raise ValueError(f"no test prompt has different answers of {arm_id!r} and {control_arm!r}")
    return found.assign(arm_id=arm_id, control_arm=control_arm)


def read_choices(folder: Path) -> pd.DataFrame:
    """All choices of a run: rater, prompt_id, arm_id, control_arm, first (the arm shown first), choice (1, 2 or 0 for
    no difference), seconds, time. A line torn by a crash is left out; of two choices of one pair the later counts.
    """
    rows = []
    for path in sorted((folder / "preferences").glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    columns = ["rater", *JUDGED, "first", "choice", "seconds", "time"]
    return pd.DataFrame(rows, columns=columns).drop_duplicates(["rater", *JUDGED], keep="last")


def preference_results(choices: pd.DataFrame) -> pd.DataFrame:
    """What raters preferred: one row per arm and control arm, in the order of the table; the columns `RESULTS`.

    No difference counts half in win_rate; intervals are 95 %, clustered by prompt. first_rate is how often the answer
    shown first was chosen, 0.5 without an order effect. kappa is the raters' agreement on the prompts that all of them
    judged, see `agreement`.
    """
    rows = []
    for _, own in choices.groupby(["arm_id", "control_arm"], sort=False):
        place = own["choice"].map({1: 1.0, 2: 0.0, 0: 0.5})
        won = place.where(own["first"] == own["arm_id"], 1 - place)
        win, first = (share_interval(one.to_numpy(), own["prompt_id"]) for one in (won, place))
        judged = own.assign(won=won).pivot(index="prompt_id", columns="rater", values="won").dropna()
        named, counts = own[["arm_id", "control_arm"]].iloc[0], own[["prompt_id", "rater"]].nunique()
        shares = [*win[:3], *first[:3], (own["choice"] == 0).mean(), agreement(judged)]
        rows.append([*named, *shares, len(own), *counts])
    return pd.DataFrame(rows, columns=RESULTS)


def agreement(ratings: pd.DataFrame) -> float:
    """Kappa of the raters (columns) over the items (rows): Cohen's for two, their mean over pairs for more (Light's).

        kappa = (p_o - p_e) / (1 - p_e)

    p_o is the share of items with equal ratings, p_e that of two independent raters with these margins. NaN where
    there is one rater, no item, or a single answer everywhere. No library that is installed with this one has it; a
    test holds it against scikit-learn's `cohen_kappa_score`.

    Source: Cohen, Educ. Psychol. Meas. 20 (1960); Light, Psychol. Bull. 76 (1971).
    """
    kappas = []
    for one, other in combinations(ratings.columns, 2):
        equal = (ratings[one] == ratings[other]).mean()
        chance = (
            ratings[one].value_counts(normalize=True).mul(ratings[other].value_counts(normalize=True)).sum()
        )
        kappas.append((equal - chance) / (1 - chance) if chance < 1 else np.nan)
    return float(np.mean(kappas)) if kappas else np.nan


class BlindPanel(anywidget.AnyWidget):
    """Two answers side by side, unlabelled; 1, 2 or 0 chooses. A panel made again goes on where the rater stopped.

    Each choice is on disk, in `preferences/<rater>.jsonl` of the run's folder, before the next pair is shown. `pairs`
    are of `blind_pairs`, one below the other; order and sides are drawn by rater and prompt. A ValueError says that the
    rater's name is not plain.
    """

    _esm = Path(__file__).with_name("panel.js").read_text("utf-8")
    pair = traitlets.Dict().tag(sync=True)

    def __init__(self, folder: Path, pairs: pd.DataFrame, *, rater: str) -> None:
        if not re.fullmatch(r"[\w.-]+", rater) or rater.startswith("."):
            raise ValueError(f"rater {rater!r} is no plain name")
        super().__init__()
        self.file, self.rater = folder / "preferences" / f"{rater}.jsonl", rater
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draws = np.array([text_hash(f"{rater} {key}") for key in pairs["prompt_id"] + pairs["arm_id"]])
        first = pairs["arm_id"].where(draws >> 7 & 1 == 1, pairs["control_arm"])
        self.pairs = pairs.assign(draw=draws, first=first).sort_values("draw", ignore_index=True)
        judged = read_choices(folder).query("rater == @rater")[JUDGED].agg(tuple, axis=1).tolist()
        keys = self.pairs[JUDGED].agg(tuple, axis=1)
        self._left = [i for i, key in enumerate(keys) if key not in judged]
        self.on_msg(lambda _, content, __: self.choose(**content))
        self._next()

    def _next(self) -> None:
        done, total = len(self.pairs) - len(self._left), len(self.pairs)
        if not self._left:
            self.pair = {"said": f"{total} of {total} pairs judged by {self.rater}; thank you."}
            return
        row = self.pairs.iloc[self._left[0]]
        texts = [row["text"], row["other"]][:: 1 if row["first"] == row["arm_id"] else -1]
        said = f"Pair {done + 1} of {total}, rater {self.rater}. Which continuation is better?"
        self.pair = {"number": self._left[0], "prompt": row["prompt"], "texts": texts, "said": said}

    def choose(self, choice: int, number: int, seconds: float) -> None:
        """Write a choice down and show the next pair; a second answer to the same pair is ignored."""
        if number not in self._left[:1]:
            return
        row = self.pairs.iloc[self._left.pop(0)]
        kept = {"rater": self.rater, **row[[*JUDGED, "first"]], "choice": choice}
        kept |= {"seconds": round(seconds, 2), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        with self.file.open("a+b") as file:
            # A torn last line must not swallow this one.
            torn = file.tell() and self.file.read_bytes()[-1:] != b"\n"
            file.write(b"\n" * bool(torn) + json.dumps(kept).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._next()
