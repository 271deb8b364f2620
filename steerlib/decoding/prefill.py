"""Reading contexts into the rows of a cache: a block or token that several readings have in common is read once.

What several contexts open with, so that it is read once for all of them.

What differently steered readings of one context have in common, and blocks that take it over.

A vector that acts at block l from token t on changes nothing below l and nothing before t. So of all readings of a
context one leads: its outputs of block l - 1 are the others' too, and so are its keys and values below l and, in every
block, before t.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steerlib.decoding.cache import SlotCache
from steerlib.models import FrozenModel
from steerlib.reading import TokenIds, left_padded

SHORTEST_SHARED_PREFIX = 8


def shared_prefixes(sequences: Sequence[TokenIds]) -> list[int]:
    """How many opening tokens of each sequence are worth reading once for several of them.

    Neighbours in lexicographic order that share at least `SHORTEST_SHARED_PREFIX` tokens form a group; its prefix
    is what all of them share, one token short of the shortest, since every sequence needs a last token of its own.

    Returns:
        Length of the prefix of each sequence, 0 where it shares none.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    lengths = [0] * len(sequences)
    group: list[int] = []
    shared = 0
    for i in order:
        common = _common(sequences[group[-1]], sequences[i]) if group else 0
        if group and min(shared or common, common) >= SHORTEST_SHARED_PREFIX:
            group.append(i)
            shared = min(shared or common, common)
            lengths[i] = lengths[group[0]] = shared
        else:
            _close(group, lengths, shared)
            group, shared = [i], 0
    _close(group, lengths, shared)
    return lengths


def _close(group: list[int], lengths: list[int], shared: int) -> None:
    for i in group:
        lengths[i] = shared if len(group) > 1 else 0


def _common(a: TokenIds, b: TokenIds) -> int:
    longest = min(len(a), len(b)) - 1
    return next((k for k in range(longest) if a[k] != b[k]), max(longest, 0))


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


PREFILL_TOKENS = 4096
"""Tokens of a forward pass, pads counted: more gain no speed and cost memory."""


class Prefill:
    """Contexts that end in the last of some columns of a cache.

    Args:
        frozen: the model.
        readings: reading i goes to row i of the cache.
        cache: holds what the readings start behind.
        columns: those that the readings are written to, pads on the left.
        forward: forward pass of token ids `(n, seq)` in the last of the columns of n rows, both given; raw logits
            `(n, vocab)` of the last column.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        readings: Sequence[Reading],
        cache: SlotCache,
        columns: range,
        forward: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.frozen, self.readings, self.cache, self.columns = frozen, readings, cache, columns
        self.forward = forward
        self.shares = shares(readings)

    def read(self) -> Tensor:
        """Raw next-token logits of all readings, `(n, vocab)`: those that lead first, then what follows them."""
        logits: dict[int, Tensor] = {}
        alone = {row: len(r.rest) for row, r in enumerate(self.readings) if row not in self.shares}
        for leaders in passes(alone):
            read = set(leaders)
            followers = [row for row, share in self.shares.items() if share.leader in read]
            layers = {self.shares[row].layer for row in followers}
            with recorded_outputs(self.frozen.blocks, layers) as outputs:
                logits |= self._pass(leaders, alone[leaders[0]])
            for layer in sorted(layers):
                widths = {row: self.shares[row].width for row in followers if self.shares[row].layer == layer}
                for rows in passes(widths):
                    logits |= self._follow(rows, widths[rows[0]], layer, leaders, outputs.get(layer))
        return torch.stack([logits[row] for row in range(len(self.readings))])

    def _follow(
        self, rows: list[int], width: int, layer: int, leaders: list[int], output: Output | None
    ) -> dict[int, Tensor]:
        """Read the last tokens of rows that take over the blocks below a layer from rows that were just read."""
        sources = [self.shares[row].leader for row in rows]
        source, target = (torch.tensor(side, device=self.frozen.device) for side in (sources, rows))
        self.cache.share_rows(source, target, self.columns, layer=layer, unread=self.columns.stop - width)
        if output is None:
            return self._pass(rows, width)
        received = part(output, [leaders.index(row) for row in sources], width)
        with standing_in(self.frozen.blocks[:layer], received):
            return self._pass(rows, width)

    def _pass(self, rows: list[int], width: int) -> dict[int, Tensor]:
        ids, _ = left_padded([self.readings[row].rest for row in rows], self.frozen.device)
        z = self.forward(ids[:, -width:], torch.tensor(rows, device=self.frozen.device))
        return dict(zip(rows, z, strict=True))


def passes(widths: Mapping[int, int]) -> Iterator[list[int]]:
    """Rows that are read in one forward pass, the longest first: no more tokens than fit, and few pads.

    Args:
        widths: tokens to be read of each row.
    """
    rows: list[int] = []
    for row in sorted(widths, key=lambda row: -widths[row]):
        longest = widths[rows[0]] if rows else 0
        if rows and (longest * (len(rows) + 1) > PREFILL_TOKENS or 2 * widths[row] < longest):
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows
