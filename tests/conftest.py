"""Fixtures shared by the tests."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from steerlib.runner.study import peak_gb
from steerlib.tables import ROOT


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


STARTED = time.perf_counter()


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Notebooks are compared by their text: a picture's bytes and a table's HTML say nothing more."""
    path = getattr(collector, "path", None)
    if path is not None and path.suffix == ".ipynb":
        collector.skip_compare += ("application/vnd.plotly.v1+json", "image/svg+xml", "text/html", "stderr")  # ty: ignore[missing-attribute]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the tests cost, kernels of notebooks included: the budget is 15 minutes."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    seconds, peak = time.perf_counter() - STARTED, max(own, peak_gb())
    terminalreporter.write_line(f"total {seconds:.1f} s, peak memory {peak:.2f} GB")
