"""The metrics table: what stands in it, against hand computation, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from steerlib.evaluation import (
    chosen_arms,
    paired_interval,
    perplexity,
    reduction_percent,
    seed_interval,
    sign_test,
    small_subgroups,
    summarise,
    toxicity_distance,
)
from steerlib.tables import check_table
from steerlib.toxicity.attributes import ATTRIBUTES

N = 24
ARMS = pd.DataFrame(
    [
        ("base", "base", 0.0, "none"),
        ("own1", "anti_expert", 1.0, "own"),
        ("own2", "anti_expert", 2.0, "own"),
        ("shuffled1", "anti_expert", 1.0, "shuffled"),
    ],
    columns=["arm_id", "method", "alpha", "profile"],
).assign(family="", vector_user="", category="", style="chat", control=["base", "", "", "shuffled_profile"])

VALUES_ONLY = {"sign_test_p", "reduction_percent_seed_low", "reduction_percent_seed_high"}


@pytest.fixture
def study():
    """Two splits, 6 users, 24 prompts, two seeds; own1 brings answers halfway to the accepted ones."""
    rng = np.random.default_rng(0)
    prompts = pd.DataFrame(
        {
            "prompt_id": [f"p{i}" for i in range(N)],
            "user_id": [f"u{i // 4}" for i in range(N)],
            "split": ["dev" if i < N // 2 else "test" for i in range(N)],
            "category": ["insult" if i % 8 < 4 else "threat" for i in range(N)],
            "prompt_category": [""] * N,
        }
    )
    accepted = rng.random((N, 6)) / 4
    rows, scores = [], []
    for arm, share in (("base", 1.0), ("own1", 0.5), ("own2", 1.5), ("shuffled1", 0.8)):
        for seed in (0, 1):
            for i in range(N):
                rows.append((arm, f"p{i}", seed, "a b a b", 4 + i % 3, True, 8.0 + seed, 1.0))
                scores.append(accepted[i] + share * (0.1 + 0.01 * i) * (1 + seed))
    columns = ["arm_id", "prompt_id", "seed", "text", "n_tokens", "stopped", "nll_base", "kl_to_base"]
    return (
        pd.DataFrame(rows, columns=columns),
        prompts,
        pd.DataFrame(scores, columns=list(ATTRIBUTES)),
        accepted,
    )


def summary(study, **changed):
    generations, prompts, scores, accepted = study
    given = {
        "generations": generations,
        "prompts": prompts,
        "scores": scores,
        "accepted_scores": accepted,
    } | changed
    return summarise(**given, arms=ARMS, base_arm="base", scorer="test scorer")


def one(table, **wanted):
    rows = table[np.logical_and.reduce([table[column] == value for column, value in wanted.items()])]
    assert len(rows) == 1
    return rows.iloc[0]


def test_every_row_is_keyed_once_and_only_a_single_user_lacks_an_interval(study):
    found = summary(study)
    check_table("metrics", found)
    assert found["value"].notna().all()
    bare = found["metric"].isin(VALUES_ONLY) | found["metric"].str.startswith("distance_change")
    assert found.loc[bare, ["low", "high"]].isna().all(axis=None)
    ranged = found[~bare]
    assert (ranged[["low", "high"]].isna().all(axis=1) == (ranged["n_clusters"] == 1)).all()
    assert (ranged["n_clusters"] == 1).any()
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"]) | found["low"].isna()).all()
    assert set(found["subgroup"]) == {"all", "category=insult", "category=threat"}
    assert set(found["split"]) == {"dev", "test"}


def test_reduction_and_distance_agree_with_direct_computation(study):
    generations, prompts, scores, accepted = study
    found = summary(study)
    generations["D"] = toxicity_distance(scores, np.tile(accepted, (8, 1)))
    averages = generations.groupby(["arm_id", "prompt_id"])["D"].mean()
    test = prompts[prompts["split"] == "test"]
    base, own = (averages[arm].loc[test["prompt_id"]].to_numpy() for arm in ("base", "own1"))
    direct = paired_interval(base, own, test["user_id"], statistic="reduction_percent")
    row = one(
        found, arm_id="own1", comparator="base", split="test", subgroup="all", metric="reduction_percent"
    )
    assert (row["value"], row["low"], row["high"]) == pytest.approx(direct[:3])
    assert row["value"] == pytest.approx(50)
    assert (row["n"], row["n_clusters"]) == (12, 3)
    row = one(found, arm_id="own1", comparator="", split="test", subgroup="all", metric="distance")
    assert row["value"] == pytest.approx(own.mean())


def test_perplexity_is_the_corpus_value_and_kl_is_per_token(study):
    generations, prompts, *_ = study
    found = summary(study)
    dev = generations[generations["prompt_id"].isin(prompts.loc[prompts["split"] == "dev", "prompt_id"])]
    own = dev[dev["arm_id"] == "own2"]
    where = {"arm_id": "own2", "comparator": "", "split": "dev", "subgroup": "all"}
    assert one(found, **where, metric="perplexity")["value"] == pytest.approx(
        perplexity(own["nll_base"], own["n_tokens"])
    )
    assert one(found, **where, metric="kl_per_token")["value"] == pytest.approx(24 / own["n_tokens"].sum())
    assert one(found, **where, metric="distinct_2")["value"] == pytest.approx(2 / 8)


def test_a_personal_arm_is_compared_with_its_shuffled_twin_of_the_same_alpha(study):
    found = summary(study)
    assert set(found.loc[found["arm_id"] == "own1", "comparator"]) == {"", "base", "shuffled1"}
    assert set(found.loc[found["arm_id"] == "own2", "comparator"]) == {"", "base"}
    row = one(
        found, arm_id="own1", comparator="shuffled1", split="test", subgroup="all", metric="reduction_percent"
    )
    assert row["value"] == pytest.approx(100 * (0.8 - 0.5) / 0.8)


def test_the_order_of_generations_does_not_matter(study):
    generations, _, scores, _ = study
    other = np.random.default_rng(1).permutation(len(generations))
    shuffled = summary(study, generations=generations.iloc[other], scores=scores.iloc[other])
    pd.testing.assert_frame_equal(shuffled, summary(study), rtol=1e-9)


def test_without_accepted_answers_toxicity_is_compared(study):
    found = summary(study, accepted_scores=None)
    assert "distance" not in set(found["metric"])
    assert "toxicity_reduction_percent" in set(found["metric"])


def test_empty_answers_leave_perplexity_out_and_nothing_else(study):
    generations, *_ = study
    empty = generations.assign(n_tokens=0, nll_base=0.0, kl_to_base=0.0, text="")
    found = summary(study, generations=empty)
    assert not {"perplexity", "perplexity_ratio", "kl_per_token"} & set(found["metric"])
    assert "reduction_percent" in set(found["metric"])


def test_alpha_is_chosen_from_the_table_on_dev(study):
    chosen = chosen_arms(summary(study), ARMS, base_arm="base").set_index("profile")
    assert chosen.loc["own", ["alpha", "arm_id"]].tolist() == [1.0, "own1"]
    assert chosen.loc["shuffled", "arm_id"] == "shuffled1"


def test_an_unfinished_arm_or_misaligned_scores_are_refused(study):
    generations, _, scores, accepted = study
    with pytest.raises(ValueError, match="'shuffled1' has 47 answers, the base 48, and 47 share"):
        summary(study, generations=generations.iloc[:-1], scores=scores.iloc[:-1])
    with pytest.raises(ValueError, match=r"scores of the answers must be \(192, 6\), not \(191, 6\)"):
        summary(study, scores=scores.iloc[:-1])
    with pytest.raises(ValueError, match=r"scores of the prompts must be \(24, 6\)"):
        summary(study, accepted_scores=accepted[:-1])
    with pytest.raises(ValueError, match="arm 'other' of the generations is not in the arms"):
        summary(study, generations=generations.assign(arm_id="other"))


def distances(study, arm, split="test"):
    """Distance of each prompt of a split by seed, `(prompts, seeds)`."""
    generations, prompts, scores, accepted = study
    answers = generations.assign(D=toxicity_distance(scores, np.tile(accepted, (8, 1))))
    table = answers[answers["arm_id"] == arm].pivot(index="prompt_id", columns="seed", values="D")
    return table.loc[prompts.loc[prompts["split"] == split, "prompt_id"]].to_numpy()


def test_median_trimmed_mean_and_sign_test_stand_beside_the_mean(study):
    change = (distances(study, "own1") - distances(study, "base")).mean(axis=1)
    where = {"arm_id": "own1", "comparator": "base", "split": "test", "subgroup": "all"}
    found = summary(study)
    assert one(found, **where, metric="distance_change_median")["value"] == pytest.approx(np.median(change))
    # 12 prompts: 1.2 of them are cut at either end, the second smallest and largest count for 0.8.
    inner = np.sort(change)[1:-1]
    trimmed = (inner.sum() - 0.2 * (inner[0] + inner[-1])) / 9.6
    assert one(found, **where, metric="distance_change_trimmed")["value"] == pytest.approx(trimmed)
    p = sign_test(np.zeros(12), change, np.repeat([0, 1, 2], 4)).p_value
    row = one(found, **where, metric="sign_test_p")
    assert (row["value"], row["n"], row["n_clusters"]) == (p, 12, 3)


def test_seeds_have_their_mean_their_range_and_a_wider_interval(study):
    found = summary(study)
    base, own = distances(study, "base"), distances(study, "shuffled1")
    by_seed = [reduction_percent(base[:, s], own[:, s]) for s in (0, 1)]
    where = {"arm_id": "shuffled1", "comparator": "base", "split": "test", "subgroup": "all"}
    row = one(found, **where, metric="reduction_percent_over_seeds")
    assert row[["value", "low", "high"]].tolist() == pytest.approx(seed_interval(by_seed)[:3])
    assert (row["n"], row["n_clusters"]) == (2, 2)
    assert one(found, **where, metric="reduction_percent_seed_low")["value"] == min(by_seed)
    assert one(found, **where, metric="reduction_percent_seed_high")["value"] == max(by_seed)
    both = one(found, **where, metric="reduction_percent_users_and_seeds")
    users = one(found, **where, metric="reduction_percent")
    assert both["value"] == pytest.approx(users["value"])
    assert both["high"] - both["low"] >= users["high"] - users["low"]


def test_one_seed_has_nothing_to_say_of_seeds(study):
    generations, _, scores, _ = study
    first = (generations["seed"] == 0).to_numpy()
    found = summary(study, generations=generations[first], scores=scores[first])
    assert not found["metric"].str.contains("seed").any()
    assert "reduction_percent" in set(found["metric"])


def test_subgroups_by_age_gender_and_religion_and_a_warning_where_they_are_small(study):
    users = pd.DataFrame({"user_id": [f"u{i}" for i in range(5)], "age": ["18-24", "65+"] * 2 + ["65+"]})
    users = users.assign(gender=["Female", "", "Male", "Male", None], religion="No Affiliation")
    found = summary(study, users=users)
    check_table("metrics", found)
    groups = set(found["subgroup"])
    assert {"age=18-24", "age=65+", "gender=Female", "gender=Male", "religion=No Affiliation"} < groups
    assert not {"gender=", "age=", "gender=None", "gender=nan"} & groups
    row = one(
        found, arm_id="own1", comparator="base", split="test", subgroup="age=65+", metric="reduction_percent"
    )
    assert (row["n"], row["n_clusters"]) == (8, 2)  # of three test users one is not in the users table
    small = small_subgroups(found, least=3).set_index(["split", "subgroup"])["n_clusters"]
    assert small["test", "age=65+"] == 2
    assert ("dev", "religion=No Affiliation") not in small
    assert small.is_monotonic_increasing
    assert small_subgroups(found, least=1).empty
    assert set(summary(study)["subgroup"]) == {"all", "category=insult", "category=threat"}


def fluency_of(generations, model="judge", nats=1.5):
    keys = generations[["arm_id", "prompt_id", "seed"]]
    steered = (keys["arm_id"] == "own2") * 0.5
    n_tokens = 2 + generations["n_tokens"]
    return keys.assign(scorer_model=model, nll=(nats + steered) * n_tokens, n_tokens=n_tokens)


def test_another_models_perplexity_stands_under_its_own_name(study):
    generations, *_ = study
    fluency = pd.concat([fluency_of(generations), fluency_of(generations, "second", 2.0)])
    found = summary(study, fluency=check_table("fluency", fluency).sample(frac=1, random_state=0))
    check_table("metrics", found)
    where = {"arm_id": "own2", "split": "test", "subgroup": "all"}
    row = one(found, **where, comparator="", metric="perplexity_of_text", scorer="judge")
    assert row["value"] == pytest.approx(np.exp(2.0))
    row = one(found, **where, comparator="", metric="perplexity_of_text", scorer="second")
    assert row["value"] == pytest.approx(np.exp(2.5))
    row = one(found, **where, comparator="base", metric="perplexity_of_text_ratio", scorer="judge")
    assert row["value"] == pytest.approx(np.exp(0.5))
    pd.testing.assert_frame_equal(
        found[found["scorer"] == "test scorer"].reset_index(drop=True), summary(study)
    )


def test_an_answer_without_likelihood_is_refused(study):
    generations, *_ = study
    with pytest.raises(ValueError, match="1 answers lack a likelihood by judge, first"):
        summary(study, fluency=fluency_of(generations).iloc[1:])
