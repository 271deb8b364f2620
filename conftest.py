"""What tests and notebooks share under pytest; in tests/ it would not be asked about notebooks/."""

import time
from contextlib import suppress

import pytest

STARTED = time.perf_counter()


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Notebooks are compared by their text: a picture's bytes and a table's HTML say nothing more."""
    path = getattr(collector, "path", None)
    if path is not None and path.suffix == ".ipynb":
        collector.skip_compare += ("application/vnd.plotly.v1+json", "image/svg+xml", "text/html", "stderr")  # ty: ignore[missing-attribute]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the tests cost, kernels of notebooks included: the budget is 8 minutes."""
    peak = float("nan")
    with suppress(ImportError):  # Windows has no such count
        import resource

        whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
        peak = max(resource.getrusage(who).ru_maxrss for who in whose) * 1024 / 1e9
    seconds = time.perf_counter() - STARTED
    terminalreporter.write_line(f"total {seconds:.1f} s, peak memory {peak:.2f} GB")
