"""Reading contexts into the rows of a cache, with prefix sharing: what several readings have in common is run once.

Several contexts share their opening tokens. Differently steered readings of one context share more: a vector that acts
from block l and token t on changes nothing below l and nothing before t. So of all spans of a context one is run whole;
the others take its keys and values below l and before t, and skip the blocks below l with its activations.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steerlib.decoding.cache import SlotCache
from steerlib.models import FrozenModel
from steerlib.reading import TokenIds, left_padded

SHORTEST_SHARED_PREFIX = 8
PREFILL_TOKENS = 4096
"""Tokens of a forward pass, pads counted: more gain no speed and cost memory."""

Output = Tensor | tuple
"""What a block returns: the residual stream, or a tuple that begins with it."""


def shared_prefixes(sequences: Sequence[TokenIds]) -> list[int]:
    """How many opening tokens of each sequence are worth reading once for several of them; 0 where it shares none.

    Sequences that open with the same `SHORTEST_SHARED_PREFIX` tokens are a group; its prefix is what all of them share,
    one token short of the shortest, since every sequence needs a last token of its own.
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


@dataclass(frozen=True)
class Span:
    """Tokens of a context that are run into a row of a cache, behind `start` that it holds already.

    Attributes:
        block: lowest block that is steered; the number of blocks where none is.
        token: first token that is steered; the number of tokens where none is.
    """

    ids: TokenIds
    start: int
    block: int
    token: int

    @property
    def rest(self) -> TokenIds:
        """The tokens still to be run."""
        return self.ids[self.start :]


@dataclass(frozen=True)
class Shared:
    """What a span takes from another one of the same context.

    Attributes:
        source: index of the other one.
        block: blocks below this one are skipped with its activations.
        width: tokens at the end that are run; those before are the source's in every block.
    """

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

    Args:
        frozen: the model.
        spans: what is run; all of them end in the last of the columns, pads on the left.
        cache: holds what the spans start behind.
        columns: those that the spans are written to.
        forward: forward pass of token ids `(n, seq)` in the last of the columns of the given rows `(n,)`; raw logits
            `(n, vocab)` of the last column.
    """
    shared, logits = shared_activations(spans), {}

    def run(rows: list[int], width: int) -> None:
        ids, _ = left_padded([spans[row].rest for row in rows], frozen.device)
        z = forward(ids[:, -width:], torch.tensor(rows, device=frozen.device))
        logits.update(zip(rows, z, strict=True))

    whole = {row: len(span.rest) for row, span in enumerate(spans) if row not in shared}
    for sources in passes(whole):
        place = {row: i for i, row in enumerate(sources)}
        followers = {row: one for row, one in shared.items() if one.source in place}
        with block_inputs(frozen.blocks, {one.block for one in followers.values()}) as inputs:
            run(sources, whole[sources[0]])
        for block in sorted({one.block for one in followers.values()}):
            widths = {row: one.width for row, one in followers.items() if one.block == block}
            for rows in passes(widths):
                width, of = widths[rows[0]], [followers[row].source for row in rows]
                cache.copy_rows(of, rows, columns, block=block, before=columns.stop - width)
                skip = nullcontext()
                if block in inputs:
                    received = part(inputs[block], [place[row] for row in of], width)
                    skip = skipped_blocks(frozen.blocks[:block], received)
                with skip:
                    run(rows, width)
    return torch.stack([logits[row] for row in range(len(spans))])


def passes(widths: Mapping[int, int]) -> Iterator[list[int]]:
    """Rows of each forward pass, the longest first: no more tokens than fit, and no row that is half pads.

    Args:
        widths: tokens to be run of each row.
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


@contextmanager
def block_inputs(blocks: nn.ModuleList, wanted: Iterable[int]) -> Generator[dict[int, Output], None, None]:
    """What the wanted blocks receive in the forward passes under `with`: the outputs of the blocks before them."""
    outputs: dict[int, Output] = {}
    with ExitStack() as stack:
        for n in {*wanted} - {0}:

            def hook(block: nn.Module, inputs: tuple, output: Output, n: int = n) -> None:  # noqa: ARG001
                outputs[n] = output

            stack.callback(blocks[n - 1].register_forward_hook(hook).remove)
        yield outputs


def part(output: Output, rows: Sequence[int], width: int) -> Output:
    """Some rows and the last columns of a block's output, in the form that the block returns it in."""
    residual = output[0] if isinstance(output, tuple) else output
    rest = residual[torch.tensor(rows, device=residual.device), -width:]
    return (rest, *output[1:]) if isinstance(output, tuple) else rest


@contextmanager
def skipped_blocks(blocks: Iterable[nn.Module], output: Output) -> Generator[None, None, None]:
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
