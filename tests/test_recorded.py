import pandas as pd
import pytest
import torch
from studies import preference_direction as recorded_module
from studies.preference_direction import kept_pair_residuals, pair_tokens
from torch.testing import assert_close

from steerlib.vectors import pair_residuals

PAIRS = pd.DataFrame(
    {"prompt": ["Why?", "How so?"], "preferred": ["yes", "ok"], "dispreferred": ["nope", "k"]}, index=[4, 9]
)
SETTINGS = {"layers": [0, 2], "style": "continuation"}


def test_residuals_are_recorded_once_and_then_read(tmp_path, tiny, monkeypatch):
    fresh = kept_pair_residuals(tmp_path, tiny, PAIRS, **SETTINGS)
    for kept, plain in zip(fresh, pair_residuals(tiny, PAIRS, **SETTINGS), strict=True):
        assert list(kept) == [0, 2]
        assert_close(kept[2].double(), plain[2], rtol=1e-5, atol=1e-4)
    monkeypatch.setattr(recorded_module, "pair_residuals", lambda *_, **__: pytest.fail("recorded again"))
    again = kept_pair_residuals(tmp_path, tiny, PAIRS, **SETTINGS)
    assert torch.equal(again[1][0], fresh[1][0])


@pytest.mark.parametrize("change", [{"layers": [0, 1]}, {"style": "chat"}, {"pool": "last"}])
def test_another_setting_or_text_is_recorded_anew(tmp_path, tiny, change):
    kept_pair_residuals(tmp_path, tiny, PAIRS, **SETTINGS)
    kept_pair_residuals(tmp_path, tiny, PAIRS, **{**SETTINGS, **change})
    kept_pair_residuals(tmp_path, tiny, PAIRS.assign(preferred="no"), **SETTINGS)
    assert len(list((tmp_path / "residuals").iterdir())) == 3


def test_lengths_count_the_models_tokens(tiny):
    counts = pair_tokens(tiny, PAIRS, style="continuation")
    assert counts.index.tolist() == [4, 9]
    assert counts["prompt"].tolist() == [4, 7]
    assert counts["preferred"].tolist() == [4, 3]  # joined by a space
    assert counts["longest"].tolist() == [9, 10]
    assert (pair_tokens(tiny, PAIRS, style="chat")["prompt"] > counts["prompt"]).all()
