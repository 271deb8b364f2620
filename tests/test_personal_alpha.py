"""Alphas by category and by user: planted ones are found on dev, valued on test, and never with its help."""

import numpy as np
import pandas as pd
import pytest

from steerlib.evaluation import paired_interval, personal_alphas, tuned_arm
from steerlib.tables import check_table

BEST = {"insult": 2.0, "threat": 0.5}
ALPHAS = [0.5, 1.0, 2.0]
ARMS = pd.DataFrame(
    [("base", "base", 0.0, "none", "base"), *[(f"ae{a}", "anti_expert", a, "own", "") for a in ALPHAS]],
    columns=["arm_id", "method", "alpha", "profile", "control"],
).assign(family="", vector_user="", variant="")


def study(by="users", users=12, each=6):
    """Users of two categories; the distance is smallest at the category's own alpha, for a user u0 at 1."""
    rng = np.random.default_rng(0)
    names = [(f"p{i}", f"u{i // each}", f"c{i}") for i in range(users * each)]
    prompts = pd.DataFrame(names, columns=["prompt_id", "user_id", "conversation_id"])
    number = prompts["user_id"].str[1:].astype(int)
    prompts["category"] = np.where(number % 2, "insult", "threat")
    prompts["prompt_category"] = ""
    dev = number < users // 2 if by == "users" else np.arange(len(prompts)) % each < each // 2
    prompts["split"] = np.where(dev, "dev", "test")
    best = np.where(prompts["user_id"] == "u0", 1.0, prompts["category"].map(BEST))
    rows = []
    for arm, alpha in ARMS[["arm_id", "alpha"]].itertuples(index=False):
        distance = 0.05 + 0.02 * np.abs(np.log2((alpha or 16) / best)) + 0.002 * rng.random(len(prompts))
        rows.append(prompts[["prompt_id"]].assign(arm_id=arm, distance=distance))
    values = pd.concat(rows, ignore_index=True)
    return values.assign(toxicity=values["distance"], n_tokens=4.0, nll_base=8.0, kl_to_base=1.0), prompts


def chosen(values, prompts, **settings):
    settings = {"by": "category", "min_prompts": 8, "column": "distance"} | settings
    return personal_alphas(values, prompts, ARMS, base_arm="base", **settings)


def test_each_category_gets_the_alpha_planted_in_it():
    found = chosen(*study()).set_index("group")
    assert found["alpha"].to_dict() == BEST
    assert found["arm_id"].to_dict() == {"insult": "ae2.0", "threat": "ae0.5"}
    assert found["global_alpha"].nunique() == 1
    values, prompts = study()
    values.loc[values["arm_id"] == "base", "distance"] = 0.01  # nothing helps
    assert chosen(values, prompts)["arm_id"].tolist() == ["base", "base"]


def test_each_user_gets_an_alpha_of_its_own_where_it_has_dev_prompts_enough():
    values, prompts = study(by="conversations", each=12)
    found = chosen(values, prompts, by="user", min_prompts=6).set_index("group")
    assert found.loc[["u0", "u1", "u2"], "alpha"].tolist() == [1.0, 2.0, 0.5]
    fallen = chosen(values, prompts, by="user", min_prompts=7)
    assert (fallen["alpha"] == fallen["global_alpha"]).all()
    prompts = prompts[(prompts["user_id"] != "u5") | (prompts["split"] == "test")]
    alphas = chosen(values, prompts, by="user", min_prompts=6).set_index("group", drop=False)
    assert alphas.loc["u5", "alpha"] == alphas.loc["u5", "global_alpha"]
    tuned = tuned_arm(values, alphas, prompts, base_arm="base", scorer="planted")
    assert set(tuned["arm_id"]) == {"anti_expert-own-alpha-by-user"}


def test_a_few_prompts_are_weighed_against_all_as_the_formula_says():
    prompts = pd.DataFrame({"prompt_id": list("abcd"), "user_id": list("uvwx"), "split": ["dev"] * 4})
    prompts["conversation_id"] = prompts["prompt_id"]
    prompts["category"] = ["insult", "threat", "threat", "threat"]
    # Of insult, with its single prompt: (x + 8 x / 4) / 9 at alpha 1, 8 * 2.25 / 9 at alpha 0.5; equal at x = 6.
    for x, alpha in ((6.1, 1.0), (5.9, 0.5)):
        fall = {"base": [0.0] * 4, "ae0.5": [0.0, 3.0, 3.0, 3.0], "ae1.0": [x, 0.0, 0.0, 0.0]}
        rows = [(arm, p, 10 - f) for arm, falls in fall.items() for p, f in zip("abcd", falls, strict=True)]
        values = pd.DataFrame(rows, columns=["arm_id", "prompt_id", "distance"])
        found = chosen(values, prompts, min_prompts=1).set_index("group")
        assert found["alpha"].to_dict() == {"insult": alpha, "threat": 0.5}


def test_the_tuned_arm_is_compared_with_the_global_alpha_and_with_base_on_test_prompts():
    values, prompts = study()
    alphas = chosen(values, prompts)
    found = tuned_arm(values, alphas, prompts, base_arm="base", scorer="planted")
    check_table("metrics", found)
    assert set(found["arm_id"]) == {"anti_expert-own-alpha-by-category"}
    assert set(found["split"]) == {"test"}
    one = found[found["subgroup"] == "all"].set_index(["comparator", "metric"])
    test = prompts[prompts["split"] == "test"]
    by_arm = values.pivot(index="prompt_id", columns="arm_id", values="distance").loc[test["prompt_id"]]
    own = np.where(test["category"] == "insult", by_arm["ae2.0"], by_arm["ae0.5"])
    for comparator in ("base", alphas["global_arm_id"].iloc[0]):
        direct = paired_interval(by_arm[comparator], own, test["user_id"], statistic="reduction_percent")
        row = one.loc[(comparator, "tuned_reduction_percent")]
        assert row[["value", "low", "high"]].tolist() == pytest.approx(direct[:3])
        assert row["low"] >= 0  # three of six users have the global alpha as their own
        assert (row["n"], row["n_clusters"]) == (36, 6)
    assert one.loc[("", "tuned_distance"), "value"] == pytest.approx(own.mean())
    assert {"category=insult", "category=threat"} < set(found["subgroup"])


def test_splits_that_do_not_serve_the_choice_and_unfinished_sweeps_are_refused():
    values, prompts = study()
    unfinished = values[(values["arm_id"] != "ae1.0") | (values["prompt_id"] != "p3")]
    for given, settings, named in (
        (study(by="conversations"), {}, "'u0'"),
        ((values, prompts), {"by": "user"}, "splits by conversations"),
        ((values, prompts[prompts["split"] == "test"]), {}, "no dev prompts"),
        ((unfinished, prompts), {}, r"'p3' .*'ae1\.0'"),
    ):
        with pytest.raises(ValueError, match=named):
            chosen(*given, **settings)
