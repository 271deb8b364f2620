"""Fixtures shared by the tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tiny import tiny_llama

from steerlib.models import FrozenModel
from steerlib.tables import ROOT

settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """`real_data("jigsaw/sixlabel_clean_furkan.csv")`: path of optional real data, or the test is skipped.

    The folder is named by STEERLIB_TEST_DATA; by default it is `shared/data` beside the checkout.
    """

    def find(relative: str) -> Path:
        folder = Path(os.environ.get("STEERLIB_TEST_DATA") or ROOT.parent / "shared" / "data")
        path = folder / relative
        if not path.exists():
            pytest.skip(f"real data {relative} is not here; name its folder in STEERLIB_TEST_DATA")
        return path

    return find


@pytest.fixture(scope="session")
def tiny() -> FrozenModel:
    """A random four-block Llama in float64."""
    return tiny_llama()


@pytest.fixture
def saved(tiny: FrozenModel, tmp_path: Path) -> str:
    """Folder of the tiny model."""
    folder = tmp_path / "saved"
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return str(folder)
