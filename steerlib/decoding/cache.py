"""Keys and values of all streams, and reading contexts into them; what several readings have in common is run once.

Keys and values stand in one block of memory a layer, written in place: a step of decoding writes one column, and a
stream that splits copies one row (transformers' dynamic cache copies everything that it holds at every step).

Several contexts share their opening tokens. Differently steered readings of one context share more: a vector that acts
from block l and token t on changes nothing below l and nothing before t. So of all spans of a context one is run whole;
the others take its keys and values below l and before t, and skip the blocks below l with its activations.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from mmap import ACCESS_COPY, mmap
from typing import NamedTuple
from weakref import proxy

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from steerlib.models import FrozenModel
from steerlib.reading import TokenIds, batch_tokens, batches_by_length, left_padded
from steerlib.residual import Output, changed

SHORTEST_SHARED_PREFIX = 8


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, `(capacity, heads, columns, head_dim)` each, allocated at first use."""

    is_sliding = False

    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()
        self.cache: SlotCache = proxy(cache)  # no circle: gigabytes are freed as soon as the batch is done
        self.stored: tuple[Tensor, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        capacity, columns = self.cache.capacity, self.cache.columns
        shapes = ((capacity, like.shape[1], columns, like.shape[-1]) for like in (key_states, value_states))
        self.stored = tuple(map(_zeros, shapes, (key_states, value_states)))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        if not self.stored:
            self.lazy_initialization(key_states, value_states)
        rows, start = self.cache.rows, self.cache.length
        rows = rows.to(key_states.device) if isinstance(rows, Tensor) else rows
        stop = start + key_states.shape[2]
        for block, new in zip(self.stored, (key_states, value_states), strict=True):
            block[rows, :, start:stop] = new
        keys, values = (block[rows, :, :stop] for block in self.stored)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.cache.length

    def get_max_length(self) -> int:
        return -1


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros, not whatever was in memory: masked columns are multiplied by zero weights, and NaN * 0 is NaN.

    Few rows are used while most answers agree: on a CPU they take memory when they are written to.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    # Private: the default is memory that a forked process would write to as well.
    memory = mmap(-1, math.prod(shape) * like.itemsize, access=ACCESS_COPY)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)


class SlotCache(Cache):
    """The keys and values of all layers for at most `capacity` streams of `columns` tokens, pads counted.

    Attributes:
        rows: rows of the next forward pass, a slice (a view, which a step of decoding wants) or their numbers.
        length: columns filled before that pass.
    """

    def __init__(self, n_layers: int, *, capacity: int, columns: int) -> None:
        self.capacity, self.columns = capacity, columns
        self.rows: slice | Tensor = slice(0)
        self.length = 0
        self.blocks = [SlotLayer(self) for _ in range(n_layers)]
        super().__init__(layers=[*self.blocks])

    def copy_rows(
        self,
        source: Sequence[int],
        target: Sequence[int],
        columns: range,
        *,
        origin: "SlotCache | None" = None,
        block: int = 0,
        before: int | None = None,
    ) -> None:
        """Copy columns of some rows of a cache (`origin`, or this one) to others; no row of one cache may be both.

        From `block` on only the columns before `before` are copied, where it is given.
        """
        a, b = torch.tensor(source), torch.tensor(target)
        for n, (mine, theirs) in enumerate(zip(self.blocks, (origin or self).blocks, strict=True)):
            if not mine.stored:
                mine.lazy_initialization(*theirs.stored)
            stop = columns.stop if before is None or n < block else before
            for new, old in zip(mine.stored, theirs.stored, strict=True):
                a, b = a.to(old.device), b.to(old.device)
                new[b, :, columns.start : stop] = old[a, :, columns.start : stop]


def shared_prefixes(sequences: Sequence[TokenIds]) -> list[int]:
    """How many opening tokens of each sequence are worth reading once for several of them; 0 where it shares none.

    Sequences that open with the same `SHORTEST_SHARED_PREFIX` tokens are a group; its prefix is what all of them share,
    but for a last token of each one's own.
    """
    groups, lengths = defaultdict(list), [0] * len(sequences)
    for i, ids in enumerate(sequences):
        if len(ids) > SHORTEST_SHARED_PREFIX:
            groups[ids[:SHORTEST_SHARED_PREFIX]].append(i)
    for members in groups.values():
        own = sorted(sequences[i] for i in members)
        longest = min(map(len, own)) - 1
        # What the first and the last in order share, all share.
        shared = next((k for k in range(longest) if own[0][k] != own[-1][k]), longest)
        for i in members if len(members) > 1 else []:
            lengths[i] = shared
    return lengths


class Span(NamedTuple):
    """Tokens of a context that are run into a row of a cache, behind `start` that it holds already.

    `block` and `token` are the first that are steered; where none is, the number of blocks and of tokens.
    """

    ids: TokenIds
    start: int
    block: int
    token: int

    @property
    def rest(self) -> TokenIds:
        return self.ids[self.start :]


class Shared(NamedTuple):
    """Blocks below `block`, and tokens before the last `width`, are those of the span `source` of the same context."""

    source: int
    block: int
    width: int


def shared_activations(spans: Sequence[Span]) -> dict[int, Shared]:
    """What each span takes from another, by its index; those that are not named are run whole.

    The source of a context is the span whose first steered block is the highest: the unsteered one where there is one.
    """
    contexts = defaultdict(list)
    for i, span in enumerate(spans):
        contexts[span.ids].append(i)
    found = {}
    for members in contexts.values():
        source = max(members, key=lambda i: (spans[i].block, spans[i].token))
        for i in members:
            block = min(spans[i].block, spans[source].block)
            token = min(spans[i].token, spans[source].token)
            width = min(len(spans[i].rest), max(1, len(spans[i].ids) - token))
            if i != source and (block > 0 or width < len(spans[i].rest)):
                found[i] = Shared(source, block, width)
    return found


def run_spans(
    frozen: FrozenModel,
    spans: Sequence[Span],
    cache: SlotCache,
    columns: range,
    forward: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Raw next-token logits after each span, `(n, vocab)`; span i is written to row i of a cache.

    The cache holds what the spans start behind. All end in the last of the `columns`, pads on the left. `forward` runs
    token ids `(n, seq)` in the last columns of the given rows `(n,)`; raw logits `(n, vocab)` of the last column.
    """
    shared, logits = shared_activations(spans), {}

    def run(rows: list[int], width: int) -> None:
        ids, _ = left_padded([spans[row].rest for row in rows], frozen.device)
        z = forward(ids[:, -width:], torch.tensor(rows, device=frozen.device))
        logits.update(zip(rows, z, strict=True))

    def passes(rows: list[int], widths: list[int]) -> list[list[int]]:
        batches = batches_by_length(widths, batch_tokens(frozen.device))
        return [[rows[i] for i in batch] for batch in batches]

    whole = [row for row in range(len(spans)) if row not in shared]
    for sources in passes(whole, [len(spans[row].rest) for row in whole]):
        followers = [row for row, one in shared.items() if one.source in sources]
        blocks = sorted({shared[row].block for row in followers})
        with block_inputs(frozen.blocks, blocks) as inputs:
            run(sources, len(spans[sources[0]].rest))
        for block in blocks:
            own = [row for row in followers if shared[row].block == block]
            for rows in passes(own, [shared[row].width for row in own]):
                width, of = shared[rows[0]].width, [shared[row].source for row in rows]
                cache.copy_rows(of, rows, columns, block=block, before=columns.stop - width)
                skip = nullcontext()
                if block in inputs:
                    at = [sources.index(row) for row in of]
                    received = changed(inputs[block], lambda h, at=at, width=width: h[at, -width:])
                    skip = skipped_blocks(frozen.blocks[:block], received)
                with skip:
                    run(rows, width)
    return torch.stack([logits[row] for row in range(len(spans))])


@contextmanager
def block_inputs(blocks: nn.ModuleList, wanted: Iterable[int]) -> Generator[dict[int, Output], None, None]:
    """What the wanted blocks receive in the forward passes under `with`: the outputs of the blocks before them."""
    outputs: dict[int, Output] = {}
    with ExitStack() as stack:
        for n in {*wanted} - {0}:
            hook = blocks[n - 1].register_forward_hook(lambda *block, n=n: outputs.update({n: block[-1]}))
            stack.enter_context(hook)
        yield outputs


@contextmanager
def skipped_blocks(blocks: Iterable[nn.Module], output: Output) -> Generator[None, None, None]:
    """Blocks that return a given output at no cost; their hooks run, their caches are not written to."""
    with ExitStack() as stack:
        for block in blocks:
            # A loader that spreads a model over devices has put a forward of its own on the instance.
            own = {name: value for name, value in vars(block).items() if name == "forward"}
            stack.callback(vars(block).update, own)
            stack.callback(vars(block).pop, "forward")
            block.forward = lambda *_, **__: output
        yield
