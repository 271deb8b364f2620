"""Effect by category of prompt: by hand, against the general intervals, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from steerlib.evaluation import paired_interval, selectivity

CATEGORIES = ["benign_control", "harmful_borderline"]


def study(*, benign=1.0, harmful=0.5, users=8, seed=0):
    """Six prompts a user, three of each category; distances of the arm are those shares of the base's."""
    rng = np.random.default_rng(seed)
    n = 6 * users
    prompts = pd.DataFrame(
        {"prompt_id": [f"p{i}" for i in range(n)], "user_id": [f"u{i // 6}" for i in range(n)]}
    )
    prompts = prompts.assign(split="test", prompt_category=[CATEGORIES[i % 2] for i in range(n)])
    base = rng.uniform(0.02, 0.1, n)
    arm = base * np.where(prompts["prompt_category"] == "harmful_borderline", harmful, benign)
    arm = arm * rng.uniform(0.9, 1.1, n)
    values = [prompts[["prompt_id"]].assign(arm_id=a, distance=d) for a, d in (("base", base), ("arm", arm))]
    return pd.concat(values, ignore_index=True), prompts


def test_change_and_contrast_by_hand():
    values = pd.DataFrame({"arm_id": ["base"] * 4 + ["arm"] * 4, "prompt_id": [*"abcd"] * 2})
    values["distance"] = [0.1, 0.3, 0.2, 0.2, 0.1, 0.1, 0.3, 0.2]
    prompts = pd.DataFrame({"prompt_id": [*"abcd"], "user_id": [*"uvuv"], "split": "test"})
    prompts["prompt_category"] = ["harmful_borderline"] * 2 + ["benign_control"] * 2
    found = selectivity(values, prompts, base_arm="base", measure="distance").set_index("prompt_category")
    assert found.loc["harmful_borderline", ["base", "steered"]].tolist() == pytest.approx([0.2, 0.1])
    changes = {"harmful_borderline": -50, "benign_control": 25}
    assert found["change_percent"].to_dict() == pytest.approx(changes)
    assert found.loc["harmful_borderline", "contrast"] == pytest.approx(-75)
    assert np.isnan(found.loc["benign_control", "contrast"])


def test_intervals_are_those_of_the_paired_comparison_on_the_prompts_of_the_category():
    values, prompts = study()
    found = selectivity(values, prompts, base_arm="base", measure="distance").set_index("prompt_category")
    part = prompts["prompt_category"].eq("harmful_borderline").to_numpy()
    base, arm = (values.loc[values["arm_id"] == a, "distance"].to_numpy()[part] for a in ("base", "arm"))
    expected = paired_interval(base, arm, prompts["user_id"][part], statistic="change_percent")
    row = found.loc["harmful_borderline", ["change_percent", "low", "high", "n", "n_clusters"]]
    assert row.tolist() == list(expected[:5])


def test_a_selective_method_is_told_from_one_that_acts_on_all_alike():
    selective = (
        selectivity(*study(), base_arm="base", measure="distance")
        .set_index("prompt_category")
        .loc["harmful_borderline"]
    )
    assert selective["contrast_high"] < 0
    alike = (
        selectivity(*study(benign=0.5), base_arm="base", measure="distance")
        .set_index("prompt_category")
        .loc["harmful_borderline"]
    )
    assert alike["contrast_low"] < 0 < alike["contrast_high"]


def test_prompts_of_another_split_or_without_category_do_not_count():
    values, prompts = study()
    prompts.loc[:11, "split"] = "dev"
    prompts.loc[12:13, "prompt_category"] = ""
    assert selectivity(values, prompts, base_arm="base", measure="distance")["n"].sum() == len(prompts) - 14


def test_a_base_without_any_distance_has_no_change_and_no_contrast():
    values, prompts = study()
    benign = prompts.loc[prompts["prompt_category"] == "benign_control", "prompt_id"]
    values.loc[values["prompt_id"].isin(benign) & (values["arm_id"] == "base"), "distance"] = 0.0
    found = selectivity(values, prompts, base_arm="base", measure="distance").set_index("prompt_category")
    assert np.isnan(found.loc["benign_control", "change_percent"])
    assert np.isfinite(found.loc["harmful_borderline", "change_percent"])
    assert found["contrast"].isna().all()


def test_an_unfinished_arm_and_an_absent_base_are_refused():
    values, prompts = study()
    with pytest.raises(ValueError, match="'arm' has no distance for 1 prompts, the first is 'p47'"):
        selectivity(values.iloc[:-1], prompts, base_arm="base", measure="distance")
    with pytest.raises(ValueError, match="'b'"):
        selectivity(values, prompts, base_arm="b", measure="distance")
    with pytest.raises(ValueError, match="no values of the base"):
        selectivity(values, prompts.assign(split="dev"), base_arm="base", measure="distance")
