import pandas as pd

from steerlib.evaluation import with_controls
from steerlib.evaluation.summary import shuffled_twins

ARMS = pd.DataFrame(
    [
        ("b", "base", 0.0, "none", "base", "", ""),
        ("o1", "anti_expert", 1.0, "own", "", "", ""),
        ("o2", "anti_expert", 2.0, "own", "", "", ""),
        ("s1", "anti_expert", 1.0, "shuffled", "shuffled_profile", "", ""),
        ("s2", "anti_expert", 2.0, "shuffled", "shuffled_profile", "", ""),
        ("v", "caa", 0.5, "none", "", "population", ""),
        ("r", "caa", 0.5, "none", "random_vector", "random", ""),
    ],
    columns=["arm_id", "method", "alpha", "profile", "control", "family", "vector_user"],
).assign(variant="")


def test_a_chosen_arm_stands_beside_its_control_at_its_own_alpha():
    # The shuffled profile's own best alpha (1.0) does not matter.
    chosen = pd.DataFrame({"arm_id": ["o2", "s1", "v", "r"]})
    assert with_controls(chosen, ARMS).arm_id.tolist() == ["o2", "s2", "v", "r"]


def test_a_method_that_helps_nowhere_has_no_row():
    assert with_controls(pd.DataFrame({"arm_id": ["b", "s1"]}), ARMS).empty


MORE = pd.DataFrame(
    [
        ("b", "base", 0.0, "none", "base", "", "", ""),
        ("plain", "prompt_only", 0.0, "own", "prompt_only", "", "", ""),
        ("placebo", "prompt_only", 0.0, "shuffled", "shuffled_profile", "", "", ""),
        ("o", "anti_expert", 1.0, "own", "", "", "", ""),
        ("s", "anti_expert", 1.0, "shuffled", "shuffled_profile", "", "", ""),
        ("both", "anti_expert", 1.0, "own", "", "population", "", "beside the vector at 0.3"),
        ("v", "caa", 0.5, "none", "", "population", "", ""),
        ("gated", "caa", 0.5, "none", "", "population", "", "gated"),
        ("r", "caa", 0.5, "none", "random_vector", "random", "", ""),
        ("mine", "caa", 0.5, "own", "", "dislike", "own", ""),
        ("other", "caa", 0.5, "shuffled", "shuffled_profile", "dislike", "shuffled", ""),
        ("further", "caa", 0.5, "shuffled", "shuffled_profile", "coordinates", "shuffled", ""),
    ],
    columns=["arm_id", "method", "alpha", "profile", "control", "family", "vector_user", "variant"],
)


def beside(*chosen):
    return with_controls(pd.DataFrame({"arm_id": list(chosen)}), MORE).arm_id.tolist()


def test_a_personal_vector_stands_beside_another_users_and_a_random_one():
    assert beside("mine") == ["mine", "r", "other"]


def test_a_control_that_two_arms_share_is_named_once():
    assert beside("v", "mine") == ["v", "r", "mine", "other"]


def test_arms_with_something_beside_them_take_no_control_that_lacks_it():
    assert beside("gated") == ["gated"]
    assert beside("both") == ["both", "plain"]


def test_a_logit_rule_stands_beside_its_context_as_a_plain_prompt():
    assert beside("o") == ["o", "s", "plain"]


def test_the_shuffled_twin_of_a_personal_family_is_the_family_of_other_users():
    twins = shuffled_twins(MORE)
    assert twins == {"plain": "placebo", "o": "s", "mine": "other"}
