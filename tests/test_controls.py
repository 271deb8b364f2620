"""Alpha is chosen on dev, and each arm stands beside its controls; arms are told apart by columns, never by names."""

import pandas as pd
import pytest

from steerlib.evaluation import with_controls
from steerlib.evaluation.controls import chosen_arms, match_controls

ARMS = pd.DataFrame(
    [
        ("b", "base", 0.0, "none", "", "", "base", ""),
        ("plain", "prompt_only", 0.0, "own", "", "", "prompt_only", ""),
        ("o1", "anti_expert", 1.0, "own", "", "", "", ""),
        ("o2", "anti_expert", 2.0, "own", "", "", "", ""),
        ("s1", "anti_expert", 1.0, "shuffled", "", "", "shuffled_profile", ""),
        ("s2", "anti_expert", 2.0, "shuffled", "", "", "shuffled_profile", ""),
        ("v", "caa", 0.5, "none", "population", "", "", ""),
        ("gated", "caa", 0.5, "none", "population", "", "", "gate"),
        ("r", "caa", 0.5, "none", "random", "", "random_vector", ""),
        ("r4", "caa", 2.0, "none", "random", "", "random_vector", ""),
        ("mine", "caa", 0.5, "own", "dislike", "own", "", ""),
        ("other", "caa", 0.5, "shuffled", "dislike", "shuffled", "shuffled_profile", ""),
        ("further", "caa", 0.5, "shuffled", "coordinates", "shuffled", "shuffled_profile", ""),
    ],
    columns=["arm_id", "method", "alpha", "profile", "family", "vector_user", "control", "factor"],
).assign(variant="")


def beside(*chosen):
    return with_controls(pd.DataFrame({"arm_id": list(chosen)}), ARMS).arm_id.tolist()


def test_a_chosen_arm_stands_beside_its_controls_at_its_own_alpha_and_the_plain_prompt():
    assert beside("o2", "s1") == ["o2", "s2", "plain"]  # not the shuffled profile's own best alpha
    assert beside("mine") == ["mine", "r", "other", "plain"]
    assert beside("v", "mine") == ["v", "r", "mine", "other", "plain"]  # a shared control is named once
    assert beside("gated") == ["gated", "plain"]  # no control is gated
    assert beside("b", "s1") == []


def test_controls_are_matched_by_alpha_and_by_kl():
    kl = pd.Series({"o1": 0.1, "o2": 0.5, "s1": 0.4, "s2": 3.0, "v": 0.9, "r": 0.1, "r4": 1.0, "mine": 0.9})
    table = match_controls(ARMS, kl).set_index(["arm_id", "kind", "matched"])
    columns, found = ["control_arm", "other_arm", "weight"], table["control_arm"]
    assert found["o2", "shuffled_profile", "alpha"] == "s2"
    nearer = table.loc[("o2", "shuffled_profile", "kl"), columns].tolist()
    assert nearer == ["s1", "s2", pytest.approx(2.5 / 2.6)]  # 0.5 lies between 0.4 and 3
    assert found["v", "random_vector", "alpha"] == "r"
    assert found["v", "random_vector", "kl"] == "r4"
    assert found["mine", "shuffled_profile", "alpha"] == "other"  # of the same family
    assert ("o1", "shuffled_profile", "kl") not in found.index  # below by more than a factor of 1.5
    ends = match_controls(ARMS, pd.Series({"o1": 0.3, "o2": 4.0, "s1": 0.4, "s2": 3.0}))
    ends = ends.query("matched == 'kl'").set_index("arm_id")[columns]
    assert ends.T.to_dict("list") == {"o1": ["s1", "", 1.0], "o2": ["s2", "", 1.0]}
    below = ARMS.assign(alpha=ARMS["alpha"].where(ARMS["arm_id"] != "r4", -2.0))
    kept = match_controls(below, kl).query("arm_id == 'v' and matched == 'kl'")
    assert kept.empty  # a vector pushed the other way is no control
    assert set(match_controls(ARMS)["matched"]) == {"alpha"}


def metric_rows(metric, of_arms, split="dev"):
    rows = [(arm, "b", split, "all", metric, value) for arm, value in of_arms.items()]
    table = pd.DataFrame(rows, columns=["arm_id", "comparator", "split", "subgroup", "metric", "value"])
    return table.assign(high=table.value + 0.3)


def choice(*parts, **settings):
    settings = {"base_arm": "b", "max_perplexity_ratio": 9.0} | settings
    return chosen_arms(pd.concat(parts), ARMS, **settings).set_index("profile")


def test_each_curve_has_its_own_alpha_chosen_on_dev_alone_and_base_wins_where_nothing_helps():
    dev = metric_rows("toxicity_reduction_percent", {"o1": 10.0, "o2": 30.0, "s1": -5.0, "s2": 0.0})
    found = choice(dev, metric_rows("toxicity_reduction_percent", {"o1": 99.0, "s1": 99.0}, "test"))
    assert found.loc["own", ["alpha", "arm_id", "dev"]].tolist() == [2.0, "o2", 30.0]
    assert found.loc["shuffled", ["alpha", "arm_id", "dev"]].tolist() == [0.0, "b", 0.0]
    tied = choice(metric_rows("toxicity_reduction_percent", {"o1": 30.0, "o2": 30.0}))
    assert tied.loc["own", "alpha"] == 1.0


def test_alphas_that_cost_too_much_fluency_take_no_part():
    dev = metric_rows("toxicity_reduction_percent", {"o1": 10.0, "o2": 30.0})
    dear = metric_rows("perplexity_ratio", {"o1": 1.2, "o2": 1.8})  # the interval of o2 ends at 2.1
    assert choice(dev, dear, max_perplexity_ratio=2.0).loc["own", "arm_id"] == "o1"
    assert choice(dev, dear, max_perplexity_ratio=1.1).loc["own", "arm_id"] == "b"


def test_alpha_is_not_chosen_without_dev_rows_or_among_several_arms():
    test = metric_rows("toxicity_reduction_percent", {"o1": 10.0}, "test")
    with pytest.raises(ValueError, match="'toxicity_reduction_percent'"):
        chosen_arms(test, ARMS, base_arm="b", max_perplexity_ratio=9.0)
    dev = metric_rows("toxicity_reduction_percent", {"o1": 10.0, "o2": 30.0})
    with pytest.raises(ValueError, match="'o1' has several arms at one alpha"):
        chosen_arms(dev, ARMS.assign(alpha=1.0), base_arm="b", max_perplexity_ratio=9.0)
