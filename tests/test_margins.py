import numpy as np
import pandas as pd
import pytest

from steerlib.evaluation.intervals import share_interval
from steerlib.evaluation.judging import circularity, margins_by, net_margin, order_averaged, place_bias


def test_the_margin_by_hand():
    # better, better, worse, equal: (2 - 1) / 4
    found = net_margin([80, 70, 20, 50], [60, 69, 40, 50])
    assert found.value == 0.25
    assert (found.win, found.even, found.lose, found.missing) == (2, 1, 1, 0)


def test_a_tolerance_makes_small_differences_even():
    # the differences are 20, 1, -20 and 0; 1 is now even
    found = net_margin([80, 70, 20, 50], [60, 69, 40, 50], tolerance=1)
    assert (found.win, found.even, found.lose) == (1, 2, 1)
    assert found.value == 0
    assert net_margin([53, 57], [50, 53], tolerance=3)[3:6] == (1, 1, 0)


def test_exchanging_the_answers_turns_the_margin_round():
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 101, (2, 60))
    one, two = net_margin(a, b), net_margin(b, a)
    assert one.value == -two.value
    assert (one.win, one.lose) == (two.lose, two.win)
    np.testing.assert_allclose([one.low, one.high], [-two.high, -two.low], atol=0.02)


def test_pairs_without_a_score_are_counted_and_left_out():
    found = net_margin([80, np.nan, 20], [60, 50, np.nan])
    assert (found.value, found.missing, found.n_clusters) == (1, 2, 1)
    with pytest.raises(ValueError, match="none of 2 pairs has both scores"):
        net_margin([np.nan, 1], [1, np.nan])


def test_the_interval_is_that_of_clusters():
    scores, other = [9, 9, 9, 1, 5, 9], [1, 1, 1, 9, 5, 1]
    clusters = ["a", "a", "a", "b", "c", "d"]
    found = net_margin(scores, other, clusters=clusters)
    expected = share_interval([1, 1, 1, -1, 0, 1], clusters, within=(-1, 1))
    assert found.n_clusters == 4
    assert (found.low, found.high) == (expected.low, expected.high)


def test_bounds_stay_within_one():
    found = net_margin([9] * 9 + [1], [5] * 10)
    assert -1 <= found.low < found.value == 0.8 < found.high <= 1


def test_all_alike_has_the_exact_binomial_bounds():
    won, even = net_margin([9] * 10, [1] * 10), net_margin([5] * 10, [5] * 10)
    least = 0.025**0.1  # the share p of wins for which ten of ten has probability 0.025
    assert (won.low, won.high) == pytest.approx((2 * least - 1, 1))
    assert (even.low, even.high) == pytest.approx((least - 1, 1 - least))


def test_unlike_shapes_and_a_negative_tolerance_are_refused():
    with pytest.raises(ValueError, match=r"scores must be \(n,\) both, not \(2,\) and \(3,\)"):
        net_margin([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="tolerance must be 0 or more, not -1"):
        net_margin([1], [2], tolerance=-1)


def test_margins_of_each_dimension_against_each_comparator():
    table = pd.DataFrame(
        {
            "dimension": ["honesty"] * 3 + ["empathy"] * 2,
            "comparator": ["base", "base", "instructed", "base", "base"],
            "score": [9, 9, 9, 1, 5],
            "other_score": [1, 9, 1, 9, 5],
            "cluster": ["a", "b", "a", "a", "a"],
        }
    )
    found = margins_by(table).set_index(["dimension", "comparator"])
    assert found.value.to_dict() == {
        ("honesty", "base"): 0.5,
        ("honesty", "instructed"): 1,
        ("empathy", "base"): -0.5,
    }
    assert found.loc[("empathy", "base"), "n_clusters"] == 1


def shown() -> pd.DataFrame:
    """A judge that gives the first place ten points: text 60 against 55, then 40 against 50, both plus place."""
    true = np.array([[60.0, 55.0], [40.0, 50.0]])
    return pd.DataFrame(
        {
            "score": true[:, 0] + 10,
            "other_score": true[:, 1],
            "score_second": true[:, 0],
            "other_score_first": true[:, 1] + 10,
        }
    )


def test_both_orders_averaged_cancel_a_bonus_of_the_first_place():
    found = order_averaged(shown())
    assert found.score.tolist() == [65, 45]
    assert found.other_score.tolist() == [60, 55]
    assert found.first_bonus.tolist() == [10, 10]
    assert net_margin(found.score, found.other_score).value == 0


def test_the_place_bias_is_its_points_and_the_share_of_winners_that_turn():
    found = place_bias(shown())
    assert found.bonus.value == 10
    # 70:55 then 60:65 turns; 50:50 then 40:60 does not, for the first was even
    assert found.turned == 0.5


def test_a_pair_with_one_order_missing_has_no_average_and_no_bias():
    table = shown()
    table.loc[0, "other_score_first"] = np.nan
    assert order_averaged(table).other_score.isna().tolist() == [True, False]
    assert place_bias(table).bonus.n == 1
    table["score"] = np.nan
    with pytest.raises(ValueError, match="none of 2 pairs was scored in both orders"):
        place_bias(table)


@pytest.mark.parametrize(
    ("scoring", "evaluating", "warning"),
    [
        ("endpoint:gpt@a.org:1234abcd", "endpoint:gpt@a.org:1234abcd", "by its own scores"),
        ("endpoint:gpt@a.org:1234abcd", "endpoint:gpt@b.org:99999999", "one model under two prompts"),
        ("local:Llama 3:8b:1234abcd", "local:Llama 3:70b:1234abcd", ""),
        ("scorer:one", "scorer:two", ""),
        ("endpoint:gpt@a.org:1234abcd", "scorer:one", ""),
    ],
)
def test_a_judge_of_its_own_scores_is_warned_of(scoring, evaluating, warning):
    found = circularity(scoring, evaluating)
    assert warning in found
    assert bool(found) == bool(warning)
