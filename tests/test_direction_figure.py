"""The picture of a direction on both sides of 0: what is drawn, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from steerlib.figures import plot_direction, plot_user_map

pytestmark = pytest.mark.filterwarnings("error")


def curve(vector, alphas, values, spread=0.1):
    value = np.array(values, dtype=float)
    return pd.DataFrame(
        {"vector": vector, "alpha": alphas, "value": value, "low": value - spread, "high": value + spread}
    )


RESPONSE = pd.concat(
    [curve("toxicity", [0.2, -0.2, 0.0], [0.5, 0.1, 0.3]), curve("random", [-0.2, 0.0, 0.2], [0.3, 0.3, 0.3])]
)
COST = pd.concat(
    [curve("toxicity", [-0.2, 0.0, 0.2], [30, 20, 60], 5), curve("random", [-0.2, 0.2], [21, 22], 3)]
)
DRAWS = curve(["random_0", "random_1"] * 2, [-0.2, -0.2, 0.2, 0.2], [0.28, 0.32, 0.29, 0.31])


def test_the_direction_is_drawn_by_rising_alpha_and_random_ones_stand_beside_it():
    figure = plot_direction(RESPONSE, COST, draws=DRAWS)
    left, right = figure.axes
    steered, random, draws = left.get_lines()[:3]
    assert list(steered.get_xdata()) == [-0.2, 0.0, 0.2]
    assert list(steered.get_ydata()) == [0.1, 0.3, 0.5]
    assert random.get_markerfacecolor() == "white"
    assert len(draws.get_xdata()) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "toxicity direction",
        "random directions of equal norm, mean",
        "each of 2 random directions",
    ]
    assert right.get_ylim()[0] == 0


def test_a_picture_of_random_directions_alone_or_with_a_gap_is_refused():
    with pytest.raises(ValueError, match="all curves are random"):
        plot_direction(RESPONSE[RESPONSE.vector == "random"], COST, draws=DRAWS)
    with pytest.raises(ValueError, match="perplexity: a value is missing"):
        plot_direction(RESPONSE, COST.assign(value=np.nan), draws=DRAWS)


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
    with pytest.raises(ValueError, match="axis_2"):
        plot_user_map(users.drop(columns="axis_2"), [0, 0])
    with pytest.raises(ValueError, match="'rude'"):
        plot_user_map(users.assign(primary=["insult", "rude", "insult"]), [0, 0])
    with pytest.raises(ValueError, match="population of 1 axes"):
        plot_user_map(users, [0.0])
