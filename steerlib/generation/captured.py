"""A step of work that a CUDA device is asked for once and then repeats by itself."""

import functools
import warnings
from collections.abc import Callable

import torch

_unrecordable: set[torch.device] = set()
"""Devices on which a recording failed: it is not tried again."""


@functools.cache
def _stream(device: torch.device) -> "torch.cuda.Stream":
    """Where steps are warmed up and recorded: one stream a device, for libraries keep a workspace for each."""
    return torch.cuda.Stream(device)


class Captured:
    """A step that is the same sequence of kernels at every call, recorded as a CUDA graph at its second one.

    The first call runs it plainly, which warms up what is made at first use. Where a graph cannot be recorded, and on
    other devices, every call runs it plainly.

    Args:
        step: reads and writes tensors that stay where they are, and waits for none of them.
        device: where they are.
    """

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self.step, self.device = step, device
        self.warm, self.graph = False, None

    def __call__(self) -> None:
        """Do the step once."""
        if self.device.type != "cuda" or self.device in _unrecordable:
            self.step()
            return
        if not self.warm:
            self._warm_up()
            return
        self.graph = self.graph or self._recorded()
        if self.graph:
            self.graph.replay()
        else:
            self.step()

    def _warm_up(self) -> None:
        stream, current = _stream(self.device), torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self.step()
        current.wait_stream(stream)
        self.warm = True

    def _recorded(self) -> "torch.cuda.CUDAGraph | None":
        """The graph of one step; recording does not run it. None, with a warning, where it fails."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            before = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, stream=_stream(self.device)):
                    self.step()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as failure:
                _unrecordable.add(self.device)
                cause = str(failure.__context__ or failure).strip().splitlines()[0]
                warnings.warn(f"decoding goes on without a CUDA graph: {cause}", RuntimeWarning, stacklevel=2)
                return None
            finally:
                # A recording that fails does not leave its stream by itself.
                torch.cuda.set_stream(before)
        return graph
