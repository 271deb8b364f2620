"""Slopes over alpha, greedy against sampled, and effect by category of prompt: by hand, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress
from studies.realtoxicity import sign_flip_test, trend

from steerlib.decoding import Sampling, make_arms
from steerlib.evaluation import (
    cluster_interval,
    dose_responses,
    paired_interval,
    quality_by_sampling,
    response_slopes,
    selectivity,
)


def test_slopes_are_those_of_scipy_and_a_trend_is_their_mean_with_its_sign_flip_test():
    y = pd.DataFrame(np.random.default_rng(0).random((6, 5)), columns=[-0.2, -0.1, 0.0, 0.1, 0.3])
    slopes = [linregress(y.columns, row).slope for row in y.to_numpy()]
    assert response_slopes(y).tolist() == pytest.approx(slopes)
    found = trend(y)
    assert found.slope[:3] == pytest.approx(cluster_interval(slopes)[:3])
    assert found.p_value == sign_flip_test(slopes)


def test_the_base_is_alpha_zero_of_every_family():
    rows = [("b", 0.0, "", "", "base"), ("v+", 0.5, "v", "", ""), ("v-", -0.5, "v", "", "")]
    rows += [("r", 0.5, "r", "", "random_vector"), ("o", 0.5, "v", "shuffled", "shuffled_profile")]
    arms = pd.DataFrame(rows, columns=["arm_id", "alpha", "family", "vector_user", "control"])
    values = pd.DataFrame(
        [(arm, prompt, i + j) for i, arm in enumerate(arms.arm_id) for j, prompt in enumerate("pq")],
        columns=["arm_id", "prompt_id", "toxicity"],
    )
    found = dose_responses(values, arms, "toxicity")
    alphas = {"v": [-0.5, 0.0, 0.5], "r": [0.0, 0.5], "v, shuffled": [0.0, 0.5]}
    assert {name: list(wide.columns) for name, wide in found.items()} == alphas
    assert found["v"].loc["q"].tolist() == [3, 1, 2]
    with pytest.raises(ValueError, match=r"'q' .*'v'"):
        dose_responses(values.iloc[:-1], arms, "toxicity")
    with pytest.raises(ValueError, match="alphas"):
        response_slopes(pd.DataFrame({0.1: [1.0]}))
    with pytest.raises(ValueError, match="'p7'"):
        response_slopes(pd.DataFrame({0.1: [1.0], 0.2: [np.nan]}, index=["p7"]))


def sampled_study():
    """Steered text repeats itself 0.1 more than the base's, and under sampling 0.1 more than that."""
    n, each = 40, (Sampling(temperature=0, top_p=1), Sampling())
    arms = [make_arms("base", sampling=s) for s in each]
    arms += [make_arms("anti_expert", [1.0, 2.0], profile="own", sampling=s) for s in each]
    arms = pd.concat(arms, ignore_index=True)
    prompts = pd.DataFrame([(f"p{i}", f"u{i // 4}") for i in range(n)], columns=["prompt_id", "user_id"])
    rng, parts = np.random.default_rng(0), []
    for arm in arms.itertuples():
        sampled = arm.temperature > 0
        own = 0.3 - 0.1 * sampled + (0.1 + 0.1 * sampled) * arm.alpha + 0.01 * rng.standard_normal(n)
        tokens = rng.integers(5, 20, n)
        part = prompts[["prompt_id"]].assign(arm_id=arm.arm_id, repetition=own, n_tokens=tokens)
        parts.append(part.assign(nll_base=tokens * (1 + sampled + own)))
    return pd.concat(parts, ignore_index=True), arms, prompts.assign(split="test")


def test_growth_is_the_ratio_of_ratios_by_hand():
    values, arms, prompts = sampled_study()
    ppl = {}
    for arm in arms.itertuples():
        own = values[values["arm_id"] == arm.arm_id]
        ppl[arm.alpha, arm.temperature == 0] = np.exp(own["nll_base"].sum() / own["n_tokens"].sum())
    found = quality_by_sampling(values, arms, prompts).set_index("measure").loc["perplexity"]
    row = found[found["arm_id"].isin(arms.loc[arms["alpha"] == 1.0, "arm_id"])].iloc[0]
    expected = ppl[1.0, False] / ppl[0.0, False] / (ppl[1.0, True] / ppl[0.0, True])
    assert row["value"] == pytest.approx(expected)
    assert row[["greedy", "sampled"]].tolist() == pytest.approx([ppl[1.0, True], ppl[1.0, False]])


def test_arms_without_a_twin_or_on_other_prompts_are_refused():
    values, arms, prompts = sampled_study()
    with pytest.raises(ValueError, match="greedy twin"):
        quality_by_sampling(values, arms[arms["temperature"] > 0], prompts)
    with pytest.raises(ValueError, match="same prompts"):
        quality_by_sampling(values.iloc[1:], arms, prompts)
    silent = quality_by_sampling(values.assign(n_tokens=0, nll_base=0.0), arms, prompts)
    assert set(silent["measure"]) == {"repetition"}  # no perplexity without tokens


CATEGORIES = ["benign_control", "harmful_borderline"]


def study():
    """Eight users of six prompts, three of each category; distances of the arm are shares of the base's."""
    rng, n = np.random.default_rng(0), 48
    prompts = pd.DataFrame([(f"p{i}", f"u{i // 6}") for i in range(n)], columns=["prompt_id", "user_id"])
    prompts = prompts.assign(split="test", prompt_category=[CATEGORIES[i % 2] for i in range(n)])
    base = rng.uniform(0.02, 0.1, n)
    arm = base * np.where(prompts["prompt_category"] == "harmful_borderline", 0.5, 0.9)
    arm = arm * rng.uniform(0.9, 1.1, n)
    values = [prompts[["prompt_id"]].assign(arm_id=a, toxicity=d) for a, d in (("base", base), ("arm", arm))]
    return pd.concat(values, ignore_index=True), prompts


def test_change_and_contrast_are_those_of_the_means_with_the_interval_of_the_paired_comparison():
    values, prompts = study()
    found = selectivity(values, prompts, base_arm="base").set_index("prompt_category")
    wide = values.pivot(index="prompt_id", columns="arm_id", values="toxicity").loc[prompts["prompt_id"]]
    for category in CATEGORIES:
        here = prompts["prompt_category"].eq(category).to_numpy()
        base, arm, users = wide["base"][here], wide["arm"][here], prompts["user_id"][here]
        expected = paired_interval(base, arm, users, statistic="change_percent")
        row = found.loc[category]
        assert row[["base", "steered"]].tolist() == pytest.approx([base.mean(), arm.mean()])
        assert row[["change_percent", "low", "high", "n", "n_clusters"]].tolist() == list(expected[:5])
    benign, harmful = found.loc[CATEGORIES, "change_percent"]
    contrasts = pytest.approx([np.nan, harmful - benign], nan_ok=True)
    assert found.loc[CATEGORIES, "contrast"].tolist() == contrasts
    assert selectivity(values, prompts.assign(split="dev"), base_arm="base").empty
    with pytest.raises(ValueError, match="'arm' lacks 1 prompts, first 'p47'"):
        selectivity(values.iloc[:-1], prompts, base_arm="base")
    with pytest.raises(ValueError, match="'b'"):
        selectivity(values, prompts, base_arm="b")
