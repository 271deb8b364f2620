"""Greedy against sampled: the contrasts by hand, which arms are twins, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch

from steerlib.decoding import Sampling, VectorFamily, make_arms, with_variants
from steerlib.evaluation import paired_interval, quality_by_sampling

GREEDY, SAMPLED = Sampling(temperature=0, top_p=1), Sampling()
N = 40


def study(*, growth=0.0):
    """Steered text repeats itself 0.1 more than the base's, and under sampling `growth` more than that."""
    arms = pd.concat(
        [
            *(make_arms("base", sampling=s) for s in (GREEDY, SAMPLED)),
            *(
                make_arms("caa", [1.0, 2.0], family=VectorFamily("v", {"": {1: torch.ones(2)}}), sampling=s)
                for s in (GREEDY, SAMPLED)
            ),
        ],
        ignore_index=True,
    )
    prompts = pd.DataFrame(
        {"prompt_id": [f"p{i}" for i in range(N)], "user_id": [f"u{i // 4}" for i in range(N)]}
    )
    prompts["split"] = "test"
    rng = np.random.default_rng(0)
    rows = []
    for arm in arms.itertuples():
        sampled = arm.temperature > 0
        own = 0.3 - 0.1 * sampled + (0.1 + growth * sampled) * arm.alpha + 0.01 * rng.standard_normal(N)
        tokens = rng.integers(5, 20, N)
        rows.append(
            pd.DataFrame(
                {
                    "arm_id": arm.arm_id,
                    "prompt_id": prompts["prompt_id"],
                    "repetition": own,
                    "nll_base": tokens * (1 + sampled + own),
                    "n_tokens": tokens,
                }
            )
        )
    return pd.concat(rows, ignore_index=True), with_variants(arms), prompts


def one(found, arms, measure, contrast, alpha=2.0):
    arm = arms[(arms["alpha"] == alpha) & (arms["temperature"] > 0)]["arm_id"].iloc[0]
    rows = found[(found["arm_id"] == arm) & (found["measure"] == measure) & (found["contrast"] == contrast)]
    assert len(rows) == 1
    return rows.iloc[0]


def arm_values(values, arms, alpha, greedy):
    arm = arms[(arms["alpha"] == alpha) & ((arms["temperature"] == 0) == greedy)]["arm_id"].iloc[0]
    return values[values["arm_id"] == arm].reset_index(drop=True)


def test_sampled_and_greedy_are_compared_prompt_by_prompt():
    values, arms, prompts = study()
    found = quality_by_sampling(values, arms, prompts)
    greedy, sampled = (arm_values(values, arms, 2.0, g) for g in (True, False))
    row = one(found, arms, "repetition", "difference")
    expected = paired_interval(greedy["repetition"], sampled["repetition"], prompts["user_id"])
    assert row[["value", "low", "high"]].tolist() == pytest.approx(expected[:3])
    assert row[["greedy", "sampled"]].tolist() == pytest.approx(
        [x["repetition"].mean() for x in (greedy, sampled)]
    )
    row = one(found, arms, "perplexity", "ratio")
    sums = ["nll_base", "n_tokens"]
    expected = paired_interval(greedy[sums], sampled[sums], prompts["user_id"], statistic="perplexity_ratio")
    assert row[["value", "low", "high"]].tolist() == pytest.approx(expected[:3])
    assert row["sampled"] / row["greedy"] == pytest.approx(row["value"])


def test_growth_sets_off_what_sampling_does_to_the_base_itself():
    same = quality_by_sampling(*study())
    arms = study()[1]
    row = one(same, arms, "repetition", "growth")
    assert row["low"] < 0 < row["high"]
    assert one(same, arms, "repetition", "difference")["high"] < -0.09
    worse = quality_by_sampling(*study(growth=0.1))
    row = one(worse, arms, "repetition", "growth")
    assert row["value"] == pytest.approx(0.2, abs=0.01)
    assert row["low"] > 0
    assert one(worse, arms, "perplexity", "growth")["low"] > 1


def test_growth_is_the_ratio_of_ratios_by_hand():
    values, arms, prompts = study(growth=0.1)
    ppl = {
        (alpha, greedy): np.exp(v["nll_base"].sum() / v["n_tokens"].sum())
        for alpha in (0.0, 1.0)
        for greedy in (True, False)
        for v in [arm_values(values, arms, alpha, greedy)]
    }
    expected = ppl[1.0, False] / ppl[0.0, False] / (ppl[1.0, True] / ppl[0.0, True])
    found = quality_by_sampling(values, arms, prompts)
    assert one(found, arms, "perplexity", "growth", alpha=1.0)["value"] == pytest.approx(expected)
    bases = found[found["arm_id"].str.startswith("base")]
    assert set(bases["contrast"]) == {"difference", "ratio"}


def test_without_bases_there_is_no_growth_and_without_tokens_no_perplexity():
    values, arms, prompts = study()
    found = quality_by_sampling(values[~values["arm_id"].str.startswith("base")], arms, prompts)
    assert set(found["contrast"]) == {"difference", "ratio"}
    silent = quality_by_sampling(values.assign(n_tokens=0, nll_base=0.0), arms, prompts)
    assert set(silent["measure"]) == {"repetition"}


def test_arms_without_a_twin_or_on_other_prompts_are_refused():
    values, arms, prompts = study()
    with pytest.raises(ValueError, match="no sampled arm has a greedy twin"):
        quality_by_sampling(values, arms[arms["temperature"] > 0], prompts)
    with pytest.raises(ValueError, match="were not run on the same prompts"):
        quality_by_sampling(values.iloc[1:], arms, prompts)
