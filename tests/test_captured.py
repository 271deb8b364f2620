import contextlib

import pytest
import torch

from steerlib.generation import captured
from steerlib.generation.captured import Captured


@pytest.fixture
def fake_cuda(monkeypatch):
    """As much of torch.cuda as `Captured` uses, with a log; recording runs the step and then fails if told to."""
    log: list[str] = []
    failures: list[Exception] = []

    class Stream:
        def __init__(self, device=None) -> None:
            pass

        def wait_stream(self, _) -> None:
            log.append("waits")

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextlib.contextmanager
    def graph(_, stream):  # noqa: ARG001
        log.append("record")
        yield
        if failures:
            raise failures.pop()

    for name, fake in {
        "Stream": Stream,
        "stream": lambda _: contextlib.nullcontext(),
        "device": lambda device: log.append(str(device)) or contextlib.nullcontext(),
        "current_stream": Stream,
        "set_stream": lambda _: log.append("back"),
        "CUDAGraph": Graph,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    captured._stream.cache_clear()
    captured._unrecordable.clear()
    yield log, failures
    captured._stream.cache_clear()
    captured._unrecordable.clear()


def test_a_step_is_run_once_then_recorded_on_its_device_and_from_then_on_replayed(fake_cuda):
    log, _ = fake_cuda
    step = Captured(lambda: log.append("step"), torch.device("cuda:1"))
    for _ in range(4):
        step()
    recorded = ["cuda:1", "record", "step", "back"]
    assert log == ["waits", "step", "waits", *recorded, "replay", "replay", "replay"]


def test_a_step_that_cannot_be_recorded_goes_on_plainly_says_why_and_is_not_tried_again(fake_cuda):
    log, failures = fake_cuda
    failures.append(RuntimeError("operation not permitted when stream is capturing"))
    step = Captured(lambda: log.append("step"), torch.device("cuda"))
    step()
    with pytest.warns(RuntimeWarning, match="without a CUDA graph: operation not permitted"):
        step()
    assert log[-4:] == ["record", "step", "back", "step"]
    other = Captured(lambda: log.append("other"), torch.device("cuda"))
    other()
    other()
    step()
    assert log.count("record") == 1
    assert log[-3:] == ["other", "other", "step"]


def test_memory_that_runs_out_while_recording_is_passed_on(fake_cuda):
    log, failures = fake_cuda
    failures.append(torch.OutOfMemoryError("too much"))
    step = Captured(lambda: None, torch.device("cuda"))
    step()
    with pytest.raises(torch.OutOfMemoryError):
        step()
    assert log[-1] == "back"
