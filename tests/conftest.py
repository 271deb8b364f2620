"""Fixtures shared by the tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, settings
from tiny import tiny_llama

from steerlib.models import FrozenModel
from steerlib.tables import ROOT, SCHEMA

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


FIGURE_ARMS = [
    ("base", 0.0, "none", "", "", "base"),
    ("prompt_only", 0.0, "own", "", "", "prompt_only"),
    ("instructed", 0.0, "own", "", "", "instructed"),
    *[("expert_anti_expert", alpha, "own", "", "", "") for alpha in (0.5, 1.0)],
    ("expert_anti_expert", 1.0, "shuffled", "", "", "shuffled_profile"),
    *[("sda", alpha, "own", "", "", "") for alpha in (1.0, 2.0)],
    *[("caa", alpha, "none", "population", "", "") for alpha in (-0.3, 0.3)],
    *[("caa", alpha, "none", "random", "", "random_vector") for alpha in (-0.3, 0.3)],
    ("caa", 0.3, "own", "dislike_weighted", "own", ""),
    ("caa", 0.3, "shuffled", "dislike_weighted", "shuffled", "shuffled_profile"),
]
FIGURE_VALUES = [
    ("toxicity", "", 0.1),
    ("perplexity_ratio", "arm0", 3.0),
    ("toxicity_difference", "arm0", -0.2),
]


@pytest.fixture
def arms() -> pd.DataFrame:
    """Arms of every kind, for figures and the report."""
    names = ["method", "alpha", "profile", "family", "vector_user", "control"]
    made = pd.DataFrame(FIGURE_ARMS, columns=names).assign(
        arm_id=[f"arm{number}" for number in range(len(FIGURE_ARMS))]
    )
    return made.reindex(columns=SCHEMA["arms"].columns, fill_value="")


@pytest.fixture
def metrics(arms: pd.DataFrame) -> pd.DataFrame:
    """Three metrics of these arms, the same for all."""
    values = pd.DataFrame(FIGURE_VALUES, columns=["metric", "comparator", "value"])
    made = values.merge(pd.DataFrame({"split": ["dev", "test"]}), how="cross")
    made = made.merge(arms[["arm_id"]], how="cross").query("arm_id != comparator")
    made = made.assign(low=made["value"] - 0.3, high=made["value"] + 0.1)
    made = made.assign(subgroup="all", scorer="s", n=12, n_clusters=4)
    return made[list(SCHEMA["metrics"].columns)].reset_index(drop=True)
