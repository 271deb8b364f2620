"""Greedy against sampled: what steering adds under each, by hand, which arms are twins, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from steerlib.decoding import Sampling, make_arms
from steerlib.evaluation import quality_by_sampling

N = 40


def study(*, growth=0.0):
    """Steered text repeats itself 0.1 more than the base's, and under sampling `growth` more than that."""
    each = (Sampling(temperature=0, top_p=1), Sampling())
    arms = [make_arms("base", sampling=s) for s in each]
    arms += [make_arms("anti_expert", [1.0, 2.0], profile="own", sampling=s) for s in each]
    arms = pd.concat(arms, ignore_index=True)
    prompts = pd.DataFrame(
        {"prompt_id": [f"p{i}" for i in range(N)], "user_id": [f"u{i // 4}" for i in range(N)]}
    )
    rng, parts = np.random.default_rng(0), []
    for arm in arms.itertuples():
        sampled = arm.temperature > 0
        own = 0.3 - 0.1 * sampled + (0.1 + growth * sampled) * arm.alpha + 0.01 * rng.standard_normal(N)
        tokens = rng.integers(5, 20, N)
        part = prompts[["prompt_id"]].assign(arm_id=arm.arm_id, repetition=own, n_tokens=tokens)
        parts.append(part.assign(nll_base=tokens * (1 + sampled + own)))
    return pd.concat(parts, ignore_index=True), arms, prompts.assign(split="test")


def one(found, arms, measure, alpha=2.0):
    arm = arms[(arms["alpha"] == alpha) & (arms["temperature"] > 0)]["arm_id"].iloc[0]
    rows = found[(found["arm_id"] == arm) & (found["measure"] == measure)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_growth_sets_off_what_sampling_does_to_the_base_itself():
    arms = study()[1]
    same = quality_by_sampling(*study())
    row = one(same, arms, "repetition")
    assert row["low"] < 0 < row["high"]
    assert row["sampled"] < row["greedy"] - 0.09
    worse = quality_by_sampling(*study(growth=0.1))
    row = one(worse, arms, "repetition")
    assert row["value"] == pytest.approx(0.2, abs=0.01)
    assert row["low"] > 0
    assert one(worse, arms, "perplexity")["low"] > 1


def test_growth_is_the_ratio_of_ratios_by_hand():
    values, arms, prompts = study(growth=0.1)
    ppl = {}
    for arm in arms.itertuples():
        own = values[values["arm_id"] == arm.arm_id]
        ppl[arm.alpha, arm.temperature == 0] = np.exp(own["nll_base"].sum() / own["n_tokens"].sum())
    expected = ppl[1.0, False] / ppl[0.0, False] / (ppl[1.0, True] / ppl[0.0, True])
    row = one(quality_by_sampling(values, arms, prompts), arms, "perplexity", alpha=1.0)
    assert row["value"] == pytest.approx(expected)
    assert row[["greedy", "sampled"]].tolist() == pytest.approx([ppl[1.0, True], ppl[1.0, False]])


def test_without_tokens_there_is_no_perplexity():
    values, arms, prompts = study()
    silent = quality_by_sampling(values.assign(n_tokens=0, nll_base=0.0), arms, prompts)
    assert set(silent["measure"]) == {"repetition"}


def test_arms_without_a_twin_or_on_other_prompts_are_refused():
    values, arms, prompts = study()
    with pytest.raises(ValueError, match="greedy twin"):
        quality_by_sampling(values, arms[arms["temperature"] > 0], prompts)
    with pytest.raises(ValueError, match="same prompts"):
        quality_by_sampling(values.iloc[1:], arms, prompts)
