"""A step of work that a CUDA device is asked for once and then repeats by itself."""

import warnings
from collections.abc import Callable

import torch


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
        self.calls, self.graph = 0, None
        self.plain = device.type != "cuda"

    def __call__(self) -> None:
        """Do the step once."""
        self.calls += 1
        if self.graph is None and not self.plain and self.calls > 1:
            self.graph = self._recorded()
        if self.graph is not None:
            self.graph.replay()
        elif self.plain:
            self.step()
        else:
            self._warm_up()

    def _warm_up(self) -> None:
        # Recording happens on a stream of its own, and libraries keep their workspaces by stream.
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self.step()
        torch.cuda.current_stream(self.device).wait_stream(stream)

    def _recorded(self) -> "torch.cuda.CUDAGraph | None":
        """The graph of one step; recording does not run it."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as failure:
            reason = str(failure).strip().splitlines()[0]
            warnings.warn(f"decoding goes on without a CUDA graph: {reason}", RuntimeWarning, stacklevel=2)
            self.plain = True
            return None
        return graph
