"""What differently steered readings of one context have in common, and blocks that take it over.

A vector that acts at block l from token t on changes nothing below l and nothing before t. So of all readings of a
context one leads: its outputs of block l - 1 are the others' too, and so are its keys and values below l and, in every
block, before t.
"""

from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steerlib.prompting import TokenIds

Output = Tensor | tuple


@dataclass(frozen=True)
class Reading:
    """A context that is read into a row of a cache.

    Attributes:
        ids: token ids of the context.
        start: opening tokens that the cache holds already.
        layer: lowest block that is steered; the number of blocks where none is.
        token: first token that is steered; the number of tokens where none is.
    """

    ids: TokenIds
    start: int
    layer: int
    token: int

    @property
    def rest(self) -> TokenIds:
        """The tokens still to be read."""
        return self.ids[self.start :]


@dataclass(frozen=True)
class Share:
    """What a reading takes over from another one of the same context.

    Attributes:
        leader: index of the other one.
        layer: blocks below this one are the leader's.
        width: tokens at the end that are read; those before are the leader's in every block.
    """

    leader: int
    layer: int
    width: int


def shares(readings: Sequence[Reading]) -> dict[int, Share]:
    """What each reading takes over, by its index; those that are not named read everything themselves.

    Of the readings of a context that one leads whose first steered block is the highest: the unsteered one
    where there is one.
    """
    groups = defaultdict(list)
    for i, reading in enumerate(readings):
        groups[reading.ids].append(i)
    found = {}
    for members in groups.values():
        leader = max(members, key=lambda i: (readings[i].layer, readings[i].token))
        for i in members:
            layer, token = (
                min(getattr(readings[j], name) for j in (i, leader)) for name in ("layer", "token")
            )
            unread = len(readings[i].rest)
            width = min(unread, max(1, len(readings[i].ids) - token))
            if i != leader and (layer > 0 or width < unread):
                found[i] = Share(leader, layer, width)
    return found


@contextmanager
def recorded_outputs(
    blocks: nn.ModuleList, layers: Iterable[int]
) -> Generator[dict[int, Output], None, None]:
    """What the given layers receive in the forward passes under `with`: the outputs of the blocks before them."""
    outputs: dict[int, Output] = {}
    with ExitStack() as stack:
        for layer in {*layers} - {0}:

            def hook(block: nn.Module, inputs: tuple, output: Output, layer: int = layer) -> None:  # noqa: ARG001
                outputs[layer] = output

            stack.callback(blocks[layer - 1].register_forward_hook(hook).remove)
        yield outputs


def part(output: Output, rows: Sequence[int], width: int) -> Output:
    """Some rows and the last columns of a block's output, in the form that the block returns it in."""
    residual = output[0] if isinstance(output, tuple) else output
    rest = residual[torch.tensor(rows, device=residual.device), -width:]
    return (rest, *output[1:]) if isinstance(output, tuple) else rest


@contextmanager
def standing_in(blocks: Iterable[nn.Module], output: Output) -> Generator[None, None, None]:
    """Blocks that return a given output at no cost, whatever they receive; as they were afterwards.

    Their hooks run, their caches are not written to.
    """
    with ExitStack() as stack:
        for block in blocks:
            # A loader that spreads a model over devices has put a forward of its own on the instance.
            own = {name: value for name, value in vars(block).items() if name == "forward"}
            stack.callback(vars(block).update, own)
            stack.callback(vars(block).pop, "forward")
            block.forward = lambda *_, **__: output
        yield
