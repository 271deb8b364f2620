"""The verdict's sentence and table follow from the metrics, for an effect, for a null, and without accepted answers."""

import numpy as np
import pandas as pd
import pytest

from steerlib.evaluation import operating_range, paired_interval, verdict, verdict_shown, with_interval
from steerlib.evaluation.controls import kl_on_dev, match_controls, mix_controls
from steerlib.evaluation.summary import compare, compare_at_equal_kl, subgroups
from steerlib.evaluation.verdict import detectable
from steerlib.tables import check_table

ARMS = pd.DataFrame(
    [
        ("b", "base", 0.0, "none", "", "", "base"),
        *[(f"v{a:g}", "caa", a, "none", "population", "", "") for a in (-0.6, -0.3, 0.3)],
        *[(f"r{a:g}", "caa", a, "none", "random", "", "random_vector") for a in (-0.6, -0.3, 0.3)],
        ("o1", "anti_expert", 1.0, "own", "", "", ""),
        *[(f"s{a:g}", "anti_expert", a, "shuffled", "", "", "shuffled_profile") for a in (1.0, 2.0)],
        ("m", "caa", 0.3, "own", "dislike", "own", ""),
        *[(f"w{a:g}", "caa", a, "shuffled", "dislike", "shuffled", "shuffled_profile") for a in (0.3, 0.9)],
    ],
    columns=["arm_id", "method", "alpha", "profile", "family", "vector_user", "control"],
).assign(variant="")
LIMITS = {"base_arm": "b", "max_perplexity_ratio": 2.0}
KEPT = {"v-0.3": 0.5, "v-0.6": 0.3, "v0.3": 1.5, "o1": 0.8, "s2": 0.6, "m": 0.7, "w0.9": 0.5}
"""Share of the base's toxicity that an arm keeps; 1 for all other arms."""
DEARER = {"v-0.6": 3.0, "v0.3": 1.5}
"""Perplexity over the base's."""
KL = {"v-0.3": 0.2, "r-0.3": 0.05, "r-0.6": 0.21, "o1": 0.3, "s1": 0.2, "s2": 0.6}
KL |= {"m": 0.5, "w0.3": 0.4, "w0.9": 0.8}


def metrics(kept=KEPT, distance=True, users=20):
    rng = np.random.default_rng(0)
    n = 2 * 2 * users
    prompts = pd.DataFrame([(f"p{i}", f"u{i // 2}") for i in range(n)], columns=["prompt_id", "user_id"])
    prompts["split"] = np.where(np.arange(n) < n // 2, "dev", "test")
    base, parts = rng.uniform(0.2, 0.6, n), []
    for arm in ARMS["arm_id"]:
        noise = 0.0 if arm == "b" else 0.05 * rng.standard_normal(n)
        part = prompts[["prompt_id"]].assign(arm_id=arm, repetition=0.1, n_tokens=10.0)
        part["toxicity"] = base * kept.get(arm, 1.0) + noise
        part["nll_base"] = 10 * np.log(9 * DEARER.get(arm, 1.0))
        part["kl_to_base"] = 10 * KL.get(arm, 0.0 if arm == "b" else 1.0)
        parts.append(part.assign(distance=part["toxicity"] / 2) if distance else part)
    values = pd.concat(parts, ignore_index=True)
    against = {arm: ["b"] for arm in ARMS["arm_id"][1:]}
    matched, members = match_controls(ARMS, kl_on_dev(values, prompts)), list(subgroups(prompts))
    for row in matched[matched["matched"] == "alpha"].itertuples():
        against[row.arm_id].append(row.control_arm)
    found = [compare(values, members, against, scorer="s")]
    found += compare_at_equal_kl(values, mix_controls(values, matched), members, scorer="s")
    return pd.concat(found, ignore_index=True), values, prompts


def mixture(values, prompts, near, far, weight):
    test = prompts[prompts["split"] == "test"]
    wide = values.pivot(index="prompt_id", columns="arm_id", values="toxicity").loc[test["prompt_id"]]
    return wide, weight * wide[near] + (1 - weight) * wide[far], test["user_id"]


def test_an_effect_is_stated_against_the_control_at_equal_kl_at_the_alpha_chosen_on_dev():
    table, values, prompts = metrics()
    found = verdict(table, ARMS, **LIMITS)
    check_table("verdict", found)
    row = found.set_index("method").loc["CAA, population"]
    assert row["sentence"] == found["sentence"].iloc[0]
    assert (row["alpha"], row["arm_id"], row["control_arm"]) == (-0.3, "v-0.3", "r-0.6")
    wide, control, users = mixture(values, prompts, "r-0.6", "r-0.3", 0.15 / 0.16)
    direct = paired_interval(control, wide["v-0.3"], users)
    assert row[["difference", "low", "high"]].tolist() == pytest.approx(list(direct[:3]))
    means = [wide["b"].mean(), wide["v-0.3"].mean()]
    assert row[["toxicity_base", "toxicity"]].tolist() == pytest.approx(means)
    assert (row["alpha_low"], row["alpha_high"], row["n"]) == (-0.3, -0.3, 40)
    assert "a random vector at equal KL" in row["sentence"]
    assert "not distinguishable" not in row["sentence"]
    assert row[["kl_per_token", "control_kl"]].tolist() == pytest.approx([0.2, 0.2])
    assert np.isnan(row[["own_minus_shuffled", "shuffled_kl"]].tolist()).all()


@pytest.mark.parametrize(
    ("method", "arm", "near", "far"),
    [("Anti-Expert", "o1", "s1", "s2"), ("CAA, dislike", "m", "w0.3", "w0.9")],
)
def test_own_minus_shuffled_is_at_equal_kl_for_rules_and_vectors_alike(method, arm, near, far):
    table, values, prompts = metrics()
    row = verdict(table, ARMS, **LIMITS).set_index("method").loc[method]
    wide, control, users = mixture(values, prompts, near, far, 0.75)  # a quarter of the way in KL
    assert row["arm_id"] == arm
    direct = paired_interval(control, wide[arm], users)
    assert row[["own_minus_shuffled", "own_low", "own_high"]].tolist() == pytest.approx(list(direct[:3]))
    assert row["kl_per_token"] == pytest.approx(row["shuffled_kl"])
    assert "difference to the shuffled profile at equal KL" in row["sentence"]


def test_a_null_says_so_with_the_smallest_effect_that_the_run_detects():
    table = metrics(kept={"o1": 0.95, "s1": 0.95})[0]
    row = verdict(table, ARMS, **LIMITS).set_index("method").loc["Anti-Expert"]
    assert row["control_arm"] == "s1"
    assert row["own_minus_shuffled"] == row["difference"]
    smallest = detectable(row["low"], row["high"], 20)
    assert 1.3 < smallest / ((row["high"] - row["low"]) / 2) < 1.5  # (2.09 + 0.86) / 2.09
    assert "not distinguishable from zero" in row["sentence"]
    assert f"detects {smallest:.3f}" in row["sentence"]


def test_a_method_that_nothing_helps_on_dev_has_no_effect_to_report():
    table = metrics(kept={"v-0.3": 1.4, "v-0.6": 1.4, "v0.3": 1.4})[0]
    row = verdict(table, ARMS, **LIMITS).set_index("method").loc["CAA, population"]
    assert (row["alpha"], row["arm_id"]) == (0, "b")
    assert "no effect to report" in row["sentence"]


def test_a_run_without_accepted_answers_has_a_verdict_and_a_table_for_readers():
    found = verdict(metrics(distance=False)[0], ARMS, **LIMITS)
    assert found["distance"].isna().all()
    shown = verdict_shown(found).set_index("method").loc["CAA, population"]
    assert shown["operating range"] == "-0.3"
    assert shown["distance, change"] == ""
    assert shown["minus control"].startswith("-0.2")
    assert with_interval(12.34, -np.inf, 30.0, 1) == "+12.3 [unbounded, +30.0]"


def test_the_operating_range_ends_where_text_falls_apart_repeats_or_knowledge_goes():
    table = metrics()[0]
    rows = operating_range(table, ARMS, **LIMITS).set_index("arm_id")
    assert rows.loc[["v-0.6", "v-0.3", "v0.3"], "falls"].tolist() == [True, True, False]
    assert rows.loc[["v-0.6", "v-0.3", "v0.3"], "fluent"].tolist() == [False, True, True]
    assert rows.index[rows["inside"] & (rows["family"] == "population")].tolist() == ["v-0.3"]
    over_all = "arm_id == 'v-0.3' and comparator == 'b' and split == 'test' and subgroup == 'all'"
    worse = table.query(over_all).head(1).assign(low=1.0, high=-1.0)
    for metric, found in {"accuracy_change": "forgets", "repetition_difference": "repeats"}.items():
        changed = pd.concat([worse.assign(metric=metric), table])
        row = operating_range(changed, ARMS, **LIMITS).set_index("arm_id").loc["v-0.3"]
        assert row[["falls", found, "inside"]].tolist() == [True, True, False]
