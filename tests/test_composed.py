"""Category directions, dislike-weighted and other composed vectors, the placebo's user, their files and their map."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import save_file
from torch.testing import assert_close

from steerlib.figures import plot_user_map
from steerlib.profiles import shuffled_categories
from steerlib.tables import ATTRIBUTE_COLUMNS
from steerlib.vectors import (
    Basis,
    UserCoordinates,
    VectorFamily,
    category_differences,
    describe_composed,
    dislike_weighted,
    dislike_weights,
    load_families,
    load_family,
    mixtures,
    personal_vectors,
    rescaled,
    save_family,
    shuffled_users,
)

SIX = list(ATTRIBUTE_COLUMNS)
RESIDUALS = {4: torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [10.0, 3.0]])}
UNIT = {category: {4: torch.eye(6)[place]} for place, category in enumerate(SIX)}


def scored(values):
    return pd.DataFrame({category: values for category in SIX}, dtype=float)


def sensitive(*rows, users=None):
    return pd.DataFrame(rows, index=users or [f"u{i}" for i in range(len(rows))], columns=SIX, dtype=float)


def test_the_direction_of_a_category_by_hand_points_towards_toxicity():
    scores = scored([0.1, 0.2, 0.3, 0.4]).assign(threat=[0.4, 0.3, 0.2, 0.1])
    quarter = category_differences(RESIDUALS, scores, share=0.25)
    assert_close(quarter["insult"][4], torch.tensor([10.0, 2.0]))
    assert_close(quarter["threat"][4], torch.tensor([-10.0, -2.0]))
    half = category_differences(RESIDUALS, scores, share=0.5)
    assert_close(half["insult"][4], torch.tensor([6.0 - 0.5, 2.0 - 1.0]))
    assert list(half) == SIX


def test_answers_that_tie_with_the_last_of_a_side_belong_to_it_in_any_order_of_rows():
    scores = scored([0.1, 0.1, 0.2, 0.4])
    vector = category_differences(RESIDUALS, scores, share=0.25)["insult"][4]
    assert_close(vector, torch.tensor([10.0 - 0.5, 3.0 - 1.0]))
    order = [2, 1, 3, 0]
    again = category_differences({4: RESIDUALS[4][order]}, scores.iloc[order], share=0.25)
    assert_close(again["insult"][4], vector)


@pytest.mark.parametrize(
    ("values", "share", "words"),
    [
        ([0.2] * 4, 0.25, "toxicity: the lowest 1 and the highest 1 of 4 scores meet at 0.2"),
        ([0.0, 0.0, 0.0, 0.9], 0.5, "lowest 2 and the highest 2 of 4 scores meet at 0"),
        ([0.1, 0.2, 0.3, 0.4], 0.2, "share 0.2 of 4 answers"),
        ([0.1, 0.2, 0.3, 0.4], 0.6, "share 0.6 of 4 answers"),
        ([0.1, 0.2, 0.3], 0.4, "layer 4 has 4 answers, the scores 3"),
        ([0.1, np.nan, 0.3, 0.4], 0.25, "scores: toxicity is missing in row 1"),
    ],
)
def test_scores_that_part_no_two_sides_are_refused(values, share, words):
    with pytest.raises(ValueError, match=words):
        category_differences(RESIDUALS, scored(values), share=share)


def test_dislike_weights_by_hand():
    weights = dislike_weights(sensitive([0.1, 0.1, 0.2, 0, 0, 0], [0.3, -0.5, 0.1, -0.1, 0, 0]))
    assert_allclose(weights.loc["u0"], [0.25, 0.25, 0.5, 0, 0, 0])
    assert_allclose(weights.loc["u1"], [0.75, 0, 0.25, 0, 0, 0])  # the negative ones count nothing


def test_relative_weights_by_hand_are_of_what_a_user_dislikes_more_than_others():
    s = sensitive([0.9, 0.1, 0.2, 0, 0, 0], [0.7, 0.3, 0.4, 0, 0, 0])
    weights = dislike_weights(s, relative=True)  # standardised: +1 and -1 wherever the two differ
    assert_allclose(weights, [[1, 0, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0, 0]], atol=1e-12)
    assert_close(dislike_weighted(UNIT, s, relative=True)["u0"][4], -UNIT["toxicity"][4])


def test_a_user_without_a_positive_sensitivity_gets_the_populations_weights():
    weights = dislike_weights(sensitive([0.9, 0.3, 0, 0, 0, -0.3], [-0.1, -0.1, 0, 0, 0, 0]))
    assert_allclose(weights.loc["u1"], [0.8, 0.2, 0, 0, 0, 0])  # of the means 0.4, 0.1, 0, 0, 0, -0.15
    nobody = dislike_weights(sensitive([-0.1] * 6, [0.0] * 6))
    assert_allclose(nobody, np.full((2, 6), 1 / 6))


def test_a_missing_sensitivity_names_user_and_category():
    with pytest.raises(ValueError, match="user 'u1' has no sensitivity to insult"):
        dislike_weights(sensitive([0.1] * 6, [0.1, 0.1, 0.1, np.nan, 0.1, 0.1]))
    with pytest.raises(ValueError, match="lack the categories"):
        dislike_weights(sensitive([0.1] * 6).drop(columns="threat"))


def test_the_dislike_weighted_vector_points_away_from_what_the_user_dislikes():
    vectors = dislike_weighted(UNIT, sensitive([0.1, 0.1, 0.2, 0, 0, 0]))
    assert_close(vectors["u0"][4], -torch.tensor([0.25, 0.25, 0.5, 0, 0, 0]))


def test_mixtures_are_weighted_sums_and_need_every_direction():
    weights = pd.DataFrame({"insult": [2.0], "threat": [-1.0]}, index=["u"])
    assert_close(mixtures(UNIT, weights)["u"][4], 2 * UNIT["insult"][4] - UNIT["threat"][4])
    with pytest.raises(ValueError, match="no vectors for 'axis_1'"):
        mixtures(UNIT, weights.rename(columns={"threat": "axis_1"}))


def test_personal_vectors_are_displacements_of_theta_and_the_populations_for_strangers():
    basis = Basis({4: 2}, {4: 10.0}, np.eye(2), np.zeros(2), np.array([1.0, 0.5]), np.array([0.5, 0.5]))
    theta = pd.DataFrame([[1.0, 2.0]], index=["u"])
    vectors = personal_vectors(UserCoordinates(np.array([0.0, -2.0]), theta, 0.0), basis, ["u", "stranger"])
    assert_close(vectors["u"][4], torch.tensor([10.0, 10.0]))
    assert_close(vectors["stranger"][4], torch.tensor([0.0, -10.0]))


def test_a_rescaled_vector_has_the_populations_norm_and_its_own_direction():
    like = {1: torch.tensor([3.0, 4.0]), 2: torch.tensor([0.0, 1.0])}
    vectors = rescaled({1: torch.tensor([0.0, 0.1]), 2: torch.tensor([-7.0, 0.0])}, like)
    assert_close(vectors[1], torch.tensor([0.0, 5.0]))
    assert_close(vectors[2], torch.tensor([-1.0, 0.0]))
    with pytest.raises(ValueError, match="layer 1: the vector is 0"):
        rescaled({1: torch.zeros(2)}, like)
    with pytest.raises(ValueError, match="layer 9 has no vector to take the norm from"):
        rescaled({9: torch.ones(2)}, like)


def test_composed_vectors_are_described_by_hand():
    population = {1: torch.tensor([2.0, 0.0]), 2: torch.tensor([0.0, 4.0])}
    personal = {
        "same": population,
        "turned": {1: torch.tensor([0.0, 1.0]), 2: torch.tensor([0.0, -4.0])},
        "none": {1: torch.zeros(2), 2: torch.zeros(2)},
    }
    stability = pd.DataFrame({"user_id": ["same"], "cosine": [0.9], "own_cosine": [0.1]})
    table = describe_composed(personal, population, stability=stability).set_index("user_id")
    assert_allclose(table["norm"], [3.0, 2.5, 0.0])
    assert_allclose(table["relative_norm"], [1.0, 0.75, 0.0])
    assert_allclose(table["cosine_with_population"], [1.0, -0.5, np.nan])
    # At layer 1 and 2 "same" and "turned" have cosines 0 and -1; a vector of 0 adds nothing to either.
    assert_allclose(table["cosine_with_others"], [-0.25, -0.25, 0.0])
    assert_allclose(table["cosine"], [0.9, np.nan, np.nan])
    with pytest.raises(ValueError, match=r"'one' has vectors of layers \[1\], the population of \[1, 2\]"):
        describe_composed({"one": {1: torch.ones(2)}}, population)


def test_the_shuffled_user_has_another_primary_category():
    primaries = pd.Series({f"u{i}": SIX[i % 3] for i in range(12)})
    for seed in range(5):
        other, drawn = (
            shuffled_users(primaries, seed=seed),
            pd.Series(shuffled_categories(primaries, seed=seed)),
        )
        assert (primaries[other].to_numpy() != primaries.to_numpy()).all()
        assert (primaries[other].to_numpy() == drawn[primaries.index].to_numpy()).all()
        assert other.equals(shuffled_users(primaries.sample(frac=1, random_state=1), seed=seed)[other.index])
    assert not shuffled_users(primaries, seed=0).equals(shuffled_users(primaries, seed=1))


def test_there_is_no_shuffled_user_where_all_share_a_category():
    with pytest.raises(ValueError, match="every user's primary category is insult"):
        shuffled_users(pd.Series({"a": "insult", "b": "insult"}), seed=0)
    with pytest.raises(ValueError, match="there are no users"):
        shuffled_users(pd.Series(dtype=object), seed=0)
    with pytest.raises(ValueError, match="user 'b' has no primary category"):
        shuffled_users(pd.Series({"a": "insult", "b": None}), seed=0)


def family(shift=0.0):
    return {
        user: {16: torch.full((3,), value + shift), 9: torch.arange(3.0)}
        for user, value in (("u2", 2.0), ("a/b", 1.0))
    }


def test_a_family_survives_its_file_with_all_that_it_says_of_itself(tmp_path):
    own = VectorFamily("mine", family(), "shuffled", "shuffled_profile")
    save_family(tmp_path / "v" / "any.safetensors", own, {"rank": 3})
    loaded, settings = load_family(tmp_path / "v" / "any.safetensors")
    assert settings == {"rank": 3}
    said = ("name", "vector_user", "control", "unit", "digest", "layers")
    assert [getattr(loaded, one) for one in said] == [getattr(own, one) for one in said]
    for user, vectors in family().items():
        assert list(loaded.of(user)) == [9, 16]
        assert_close(dict(loaded.of(user)), dict(sorted(vectors.items())))
    with pytest.raises(ValueError, match="'mine' has no vector for user 'u9'"):
        loaded.of("u9")


def test_the_digest_of_a_family_is_of_all_users_numbers_and_of_nothing_else():
    first = VectorFamily("a", family(), "own").digest
    assert VectorFamily("b", dict(reversed(family().items())), "shuffled").digest == first
    assert VectorFamily("a", family(0.1), "own").digest != first
    swapped = dict(zip(family(), reversed(family().values()), strict=True))
    assert VectorFamily("a", swapped, "own").digest != first


def test_users_who_share_the_populations_tensor_can_be_written(tmp_path):
    shared = {1: torch.ones(2)}
    save_family(tmp_path / "x.safetensors", VectorFamily("x", {"a": shared, "b": shared}, "own"), {})
    assert len(load_family(tmp_path / "x.safetensors")[0].vectors) == 2


def test_a_folder_gives_its_families_those_for_everybody_first_and_controls_last(tmp_path):
    one, of_users = {"": {1: torch.ones(2)}}, {"u": {1: torch.ones(2)}}
    families = {
        "a": VectorFamily("dislike", of_users, "shuffled", "shuffled_profile"),
        "b": VectorFamily("random", one, control="random_vector"),
        "c": VectorFamily("dislike", of_users, "own"),
        "d": VectorFamily("population", one),
    }
    for file, one_family in families.items():
        save_family(tmp_path / f"{file}.safetensors", one_family, {})
    found = [(one.name, one.vector_user) for one in load_families(tmp_path)]
    assert found == [("population", ""), ("random", ""), ("dislike", "own"), ("dislike", "shuffled")]
    assert load_families(tmp_path / "nothing") == []


def test_files_that_are_absent_or_no_family_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load_family(tmp_path / "absent.safetensors")
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        load_family(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="'none'"):
        VectorFamily("none", {}, "own")
    with pytest.raises(ValueError, match="'x' has vector_user ''"):
        VectorFamily("x", {"u": {1: torch.ones(2)}})
    with pytest.raises(ValueError, match=r"user 'b' has vectors of layers \[2\], user 'a' of \[1\]"):
        uneven = {"a": {1: torch.ones(2)}, "b": {2: torch.ones(2)}}
        save_family(tmp_path / "x.safetensors", VectorFamily("x", uneven, "own"), {})


def test_the_user_map_has_a_mark_for_every_user_and_one_for_the_population():
    users = pd.DataFrame(
        {
            "user_id": ["a", "b", "c"],
            "axis_1": [0.0, 1.0, 2.0],
            "axis_2": [0.5, 0.0, -1.0],
            "primary": ["insult", "threat", "insult"],
        }
    )
    axis = plot_user_map(users, [0.2, 0.1, 9.0]).axes[0]
    marks = {one.get_label(): one.get_offsets().tolist() for one in axis.collections}
    assert marks == {"Insult (2)": [[0.0, 0.5], [2.0, -1.0]], "Threat (1)": [[1.0, 0.0]]}
    star = next(line for line in axis.lines if line.get_label() == "population")
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([0.2], [0.1])
    with pytest.raises(ValueError, match=r"missing \['axis_2'\]"):
        plot_user_map(users.drop(columns="axis_2"), [0, 0])
    with pytest.raises(ValueError, match="user 'b' has primary 'rude'"):
        plot_user_map(users.assign(primary=["insult", "rude", "insult"]), [0, 0])
    with pytest.raises(ValueError, match="population of 1 axes"):
        plot_user_map(users, [0.0])
