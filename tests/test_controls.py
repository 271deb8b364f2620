import pandas as pd

from steerlib.evaluation import with_controls

ARMS = pd.DataFrame(
    [
        ("b", "base", 0.0, "none", ""),
        ("o1", "anti_expert", 1.0, "own", ""),
        ("o2", "anti_expert", 2.0, "own", ""),
        ("s1", "anti_expert", 1.0, "shuffled", ""),
        ("s2", "anti_expert", 2.0, "shuffled", ""),
        ("v", "caa", 0.5, "none", "population@1"),
        ("r", "caa", 0.5, "none", "random@1"),
    ],
    columns=["arm_id", "method", "alpha", "profile", "vector"],
)


def test_a_chosen_arm_stands_beside_its_control_at_its_own_alpha():
    # The shuffled profile's own best alpha (1.0) does not matter.
    chosen = pd.DataFrame({"arm_id": ["o2", "s1", "v", "r"]})
    assert with_controls(chosen, ARMS).arm_id.tolist() == ["o2", "s2", "v", "r"]


def test_a_method_that_helps_nowhere_has_no_row():
    assert with_controls(pd.DataFrame({"arm_id": ["b", "s1"]}), ARMS).empty
