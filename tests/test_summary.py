"""Measures of an answer by hand; the metrics table against direct computation, and what is refused."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from steerlib.evaluation import paired_interval, per_prompt, summarise
from steerlib.evaluation.answers import CARRIED, distinct_n, effective_number, length, repetition, top_share
from steerlib.tables import ATTRIBUTE_COLUMNS, check_table


def six(rows):
    return pd.DataFrame(rows, columns=list(ATTRIBUTE_COLUMNS))


def of_answers(answers, accepted):
    """Measures of an arm's answers, one a prompt."""
    prompts = pd.DataFrame({"prompt_id": range(len(accepted))})
    generations = prompts.assign(arm_id="a", text="x", **dict.fromkeys(CARRIED, 0.0))
    return per_prompt(generations, prompts, six(answers), six(accepted))


def test_distance_is_the_mean_absolute_difference_and_overshoot_an_answer_less_toxic_than_the_accepted_one():
    a, b = [0.6, 0.0, 0.0, 0.0, 0.0, 0.3], [0.3, 0.0, 0.0, 0.0, 0.0, 0.7]
    found = of_answers([a, b], [b, a])
    assert found["distance"].tolist() == pytest.approx([0.7 / 6, 0.7 / 6])
    assert found["overshoot"].tolist() == [1, 0]


def test_the_columns_of_scores_are_taken_by_name_and_missing_ones_are_refused():
    scores = six(np.random.default_rng(0).random((3, 6)))
    assert not of_answers(scores, scores[scores.columns[::-1]])["distance"].any()
    scores.loc[2, "profanity"] = np.nan
    with pytest.raises(ValueError, match="row 3, column profanity"):
        of_answers(scores, scores)


def test_length_distinct_2_and_repetition_by_hand():
    assert length(["a b c", "", "a"]).tolist() == [3, 0, 1]
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 6)
    assert distinct_n(["", ""]) == 0
    assert repetition(["a b c d a b c d", "a b c", ""]).tolist() == [pytest.approx(0.2), 0, 0]


def test_the_effective_number_is_n_for_equal_prompts_and_1_for_a_single_one():
    rows = np.array([[0.2, 0.2, 0.2, 0.2], [0.8, 0.0, 0.0, 0.0]])
    assert effective_number(rows).tolist() == [pytest.approx(4), 1]
    assert top_share(rows).tolist() == [pytest.approx(0.75), 1]
    assert np.isnan(effective_number(np.zeros(2)))


N = 24
ARMS = pd.DataFrame(
    [
        ("base", "base", 0.0, "none", "base"),
        ("own1", "anti_expert", 1.0, "own", ""),
        ("own2", "anti_expert", 2.0, "own", ""),
        ("shuffled1", "anti_expert", 1.0, "shuffled", "shuffled_profile"),
    ],
    columns=["arm_id", "method", "alpha", "profile", "control"],
).assign(family="", vector_user="", variant="", category="", style="chat")
SHARES = (("base", 1.0), ("own1", 0.5), ("own2", 1.5), ("shuffled1", 0.8))


@pytest.fixture
def study():
    """Two splits, 6 users, 24 prompts; own1 brings answers halfway to the accepted ones."""
    rng = np.random.default_rng(0)
    number = np.arange(N)
    prompts = pd.DataFrame([(f"p{i}", f"u{i // 4}") for i in number], columns=["prompt_id", "user_id"])
    prompts["prompt_category"] = ""
    prompts["split"] = np.where(number < N // 2, "dev", "test")
    prompts["category"] = np.where(number % 8 < 4, "insult", "threat")
    accepted = pd.DataFrame(rng.random((N, 6)) / 4, columns=list(ATTRIBUTE_COLUMNS))
    rows, scores = [], []
    for (arm, share), seed, i in product(SHARES, range(2), range(N)):
        kl = 0.0 if arm == "base" else share
        rows.append((arm, f"p{i}", seed, "a b a b", 4 + i % 3, True, 8.0 + seed, kl))
        scores.append(accepted.loc[i] + share * (0.05 + 0.005 * i) * (1 + seed))
    columns = ["arm_id", "prompt_id", "seed", "text", "n_tokens", "stopped", "nll_base", "kl_to_base"]
    scores = pd.DataFrame(scores).reset_index(drop=True)
    return pd.DataFrame(rows, columns=columns), prompts, scores, accepted


def summary(study, **changed):
    names = ("generations", "prompts", "scores", "accepted_scores")
    given = dict(zip(names, study, strict=True)) | changed
    return summarise(**given, arms=ARMS, base_arm="base", scorer="test scorer")


def one(table, **wanted):
    where = pd.Series({"split": "test", "subgroup": "all"} | wanted)
    rows = table[(table[where.index] == where).all(axis=1)]
    assert len(rows) == 1
    return rows.iloc[0]


def distances(study, arm):
    """Distance of each test prompt by seed, `(prompts, seeds)`."""
    generations, prompts, scores, accepted = study
    gaps = np.abs(scores.to_numpy() - np.tile(accepted, (len(scores) // N, 1)))
    answers = generations.assign(D=gaps.mean(axis=1))[generations["arm_id"] == arm]
    test = prompts.loc[prompts["split"] == "test", "prompt_id"]
    return answers.pivot(index="prompt_id", columns="seed", values="D").loc[test].to_numpy()


def test_every_row_is_keyed_once_and_only_a_single_user_lacks_an_interval(study):
    found = summary(study)
    check_table("metrics", found)
    assert np.isfinite(found["value"]).all()
    bare = found["metric"].str.contains("effective_n|top_three")
    assert found.loc[bare, ["low", "high"]].isna().all(axis=None)
    ranged = found[~bare]
    assert (ranged[["low", "high"]].isna().all(axis=1) == (ranged["n_clusters"] == 1)).all()
    assert (ranged["n_clusters"] == 1).any()
    known = ranged[ranged["n_clusters"] > 1]
    assert ((known["low"] <= known["value"] + 1e-12) & (known["value"] <= known["high"] + 1e-12)).all()
    assert set(found["subgroup"]) == {"all", "category=insult", "category=threat"}
    assert set(found["split"]) == {"dev", "test"}


def test_every_comparison_agrees_with_direct_computation(study):
    _, prompts, *_ = study
    found = summary(study)
    users = prompts.loc[prompts["split"] == "test", "user_id"]
    base, own = (distances(study, arm).mean(axis=1) for arm in ("base", "own1"))
    for metric, direct in (
        ("reduction_percent", paired_interval(base, own, users, statistic="reduction_percent")),
        ("distance_difference", paired_interval(base, own, users, within=(-1, 1))),
    ):
        row = one(found, arm_id="own1", comparator="base", metric=metric)
        assert row[["value", "low", "high"]].tolist() == pytest.approx(list(direct[:3]), rel=1e-9)
        assert (row["n"], row["n_clusters"]) == (12, 3)
    assert one(found, arm_id="own1", comparator="", metric="distance")["value"] == pytest.approx(own.mean())
    effective = one(found, arm_id="base", comparator="", metric="distance_effective_n")["value"]
    assert effective == pytest.approx(base.sum() ** 2 / (base**2).sum())


def test_perplexity_is_the_corpus_value_and_kl_is_per_token(study):
    generations, prompts, *_ = study
    found = summary(study)
    dev = generations[generations["prompt_id"].isin(prompts.loc[prompts["split"] == "dev", "prompt_id"])]
    own = dev[dev["arm_id"] == "own2"]
    where = {"arm_id": "own2", "comparator": "", "split": "dev"}
    direct = np.exp(own["nll_base"].sum() / own["n_tokens"].sum())
    assert one(found, **where, metric="perplexity")["value"] == pytest.approx(direct)
    assert one(found, **where, metric="kl_per_token")["value"] == pytest.approx(36 / own["n_tokens"].sum())
    assert one(found, **where, metric="distinct_2")["value"] == pytest.approx(2 / 8)


def test_a_personal_arm_is_compared_with_its_shuffled_control(study):
    found = summary(study)
    assert set(found.loc[found["arm_id"] == "own1", "comparator"]) == {"", "base", "shuffled1"}
    assert set(found.loc[found["arm_id"] == "own2", "comparator"]) == {"", "base"}
    other = np.random.default_rng(1).permutation(len(study[0]))
    moved = summary(study, generations=study[0].iloc[other], scores=study[2].iloc[other])
    pd.testing.assert_frame_equal(moved, found, rtol=1e-9)  # the order of answers does not matter
    row = one(found, arm_id="own1", comparator="shuffled1", metric="reduction_percent")
    assert row["value"] == pytest.approx(100 * (0.8 - 0.5) / 0.8)


def test_without_accepted_answers_or_tokens_what_is_undefined_is_left_out_and_nothing_else(study):
    bare = summary(study, accepted_scores=None)
    assert not bare["metric"].str.contains("distance|^reduction").any()
    assert {"toxicity_difference", "toxicity_reduction_percent"} <= set(bare["metric"])
    empty = study[0].assign(n_tokens=0, nll_base=0.0, kl_to_base=0.0, text="")
    found = summary(study, generations=empty)
    assert not {"perplexity", "perplexity_ratio", "kl_per_token"} & set(found["metric"])
    assert "reduction_percent" in set(found["metric"])
    aligned = study[0].assign(kl_to_base=study[0]["kl_to_base"].where(study[0]["arm_id"] != "own2"))
    found = summary(study, generations=aligned).query("arm_id == 'own2'")  # an aligner has no KL
    assert {"perplexity", "toxicity_reduction_percent"} < set(found["metric"])
    assert "kl_per_token" not in set(found["metric"])


def test_an_unfinished_arm_or_misaligned_scores_are_refused(study):
    generations, _, scores, accepted = study
    for changed, named in (
        ({"generations": generations.iloc[:-1], "scores": scores.iloc[:-1]}, "'shuffled1'"),
        ({"scores": scores.iloc[:-1]}, "191 rows"),
        ({"accepted_scores": accepted[:-1]}, "23 rows"),
        ({"generations": generations.assign(arm_id="other")}, "'other'"),
    ):
        with pytest.raises(ValueError, match=named):
            summary(study, **changed)


def test_subgroups_by_age_gender_and_religion(study):
    users = pd.DataFrame({"user_id": [f"u{i}" for i in range(5)], "age": ["18-24", "65+"] * 2 + ["65+"]})
    users = users.assign(gender=["Female", "", "Male", "Male", None], religion="No Affiliation")
    found = summary(study, users=users)
    check_table("metrics", found)
    groups = set(found["subgroup"])
    assert {"age=18-24", "age=65+", "gender=Female", "gender=Male", "religion=No Affiliation"} < groups
    assert not {"gender=", "age=", "gender=None", "gender=nan"} & groups
    row = one(found, arm_id="own1", comparator="base", subgroup="age=65+", metric="reduction_percent")
    assert (row["n"], row["n_clusters"]) == (8, 2)  # of three test users one is not in the users table
