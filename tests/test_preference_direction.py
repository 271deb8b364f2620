"""The study of the preference direction: scores, what length explains of them, their AUC, residuals that are kept."""

import numpy as np
import pandas as pd
import pytest
import torch
from studies import preference_direction as study
from studies.preference_direction import compare_auc, kept_pair_residuals, scores_along, without_length

from steerlib.vectors import pair_residuals

RNG = np.random.default_rng(0)


def test_scores_are_lengths_along_the_unit_vector():
    above, below = {3: torch.tensor([[1.0, 2.0], [0.0, 1.0]])}, {3: torch.tensor([[3.0, 0.0], [1.0, 1.0]])}
    scores = scores_along({3: torch.tensor([0.0, 5.0])}, above, below)
    assert [side.tolist() for side in scores[3]] == [[2.0, 1.0], [0.0, 1.0]]


def test_a_score_that_is_length_alone_is_nothing_without_it():
    lengths = RNG.normal(size=(2, 50))
    scores = 3 * lengths
    left = without_length(scores, lengths, train=scores, train_lengths=lengths)
    np.testing.assert_allclose(left, np.zeros((2, 50)), atol=1e-12)


def test_the_clustered_auc_agrees_with_delongs_where_nothing_is_clustered():
    above, below = RNG.normal(size=400) + 0.5, RNG.normal(size=400)
    found = compare_auc({"s": (above, below)}, np.arange(400), reference="s").iloc[0]
    wins = (above[:, None] > below[None, :]).astype(float)
    half = 1.96 * np.sqrt((wins.mean(1).var(ddof=1) + wins.mean(0).var(ddof=1)) / 400)
    expected = [wins.mean(), wins.mean() - half, wins.mean() + half]
    assert found[["value", "low", "high"]].tolist() == pytest.approx(expected, abs=0.004)


ROWS = [("Why?", "yes", "nope"), ("How so?", "ok", "k")]
PAIRS = pd.DataFrame(ROWS, columns=["prompt", "preferred", "dispreferred"], index=[4, 9])
SETTINGS = {"layers": [0, 2], "style": "continuation", "pool": "answer_mean"}


def test_residuals_are_recorded_once_and_then_read(tmp_path, tiny, monkeypatch):
    fresh = kept_pair_residuals(tmp_path, tiny, PAIRS, **SETTINGS)
    for kept, plain in zip(fresh, pair_residuals(tiny, PAIRS, **SETTINGS), strict=True):
        assert list(kept) == [0, 2]
        torch.testing.assert_close(kept[2].double(), plain[2], rtol=1e-5, atol=1e-4)
    monkeypatch.setattr(study, "pair_residuals", lambda *_, **__: pytest.fail("recorded again"))
    again = kept_pair_residuals(tmp_path, tiny, PAIRS, **SETTINGS)
    assert torch.equal(again[1][0], fresh[1][0])
