"""Pictures of reliability and recovery: every estimator, design and number is on them."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from steerlib.figures.profiles import plot_confusion, plot_recovery, plot_reliability
from steerlib.profiles import ESTIMATORS
from steerlib.tables import ATTRIBUTE_COLUMNS

pytestmark = pytest.mark.filterwarnings("error")


def test_recovery_has_a_line_with_a_band_an_estimator_in_a_panel_a_design() -> None:
    rows = [
        {"design": design, "ratings": number, "estimator": estimator, "share": 0.3, "low": 0.2, "high": 0.4}
        for design, number, estimator in product(("equal", "mixed"), (8, 96), ESTIMATORS)
    ]
    fig = plot_recovery(pd.DataFrame(rows))
    assert len(fig.axes) == 2
    for axis, words in zip(fig.axes, ("all users have as many", "users have different numbers"), strict=True):
        assert words in axis.get_xlabel()
        assert len(axis.lines) == len(ESTIMATORS) + 1 and len(axis.collections) == len(ESTIMATORS)
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["8", "96"]
    assert len(plot_recovery(pd.DataFrame(rows[:6])).axes) == 1


def test_a_confusion_writes_each_share_into_its_cell() -> None:
    six = list(ATTRIBUTE_COLUMNS)
    table = pd.DataFrame(np.eye(6), index=six, columns=six)
    table.loc["threat", ["threat", "insult"]] = 0.25, 0.75
    fig = plot_confusion({"paper": table.loc[six[::-1], six[::-1]], "shrunk": table})
    for axis in fig.axes[:2]:
        cells = {text.get_position(): text.get_text() for text in axis.texts}
        assert len(cells) == 36
        assert cells[six.index("insult"), six.index("threat")] == "0.75"  # column found, row planted
    assert fig.axes[0].get_xlabel() == "found by paper"


def test_reliability_shows_agreement_with_its_interval_beside_chance() -> None:
    rows = [
        {"estimator": estimator, "agreement": 0.4, "low": 0.3, "high": 0.5, "chance": 0.2}
        for estimator in ESTIMATORS
    ]
    axis = plot_reliability(pd.DataFrame(rows)).axes[0]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["paper", "exposure adjusted", "shrunk"]
    points, caps, chance = axis.lines[0], axis.lines[1:3], axis.lines[3]
    assert list(points.get_xdata()) == [0.4] * 3 and list(chance.get_xdata()) == [0.2] * 3
    assert np.allclose(caps[0].get_xdata(), 0.3) and np.allclose(caps[1].get_xdata(), 0.5)
