"""Streams: contexts that are decoded as rows of one batched forward pass, one pass per model.

A stream is one branch of one or more answers. Its context is read once; answers that agree so far share the
stream, and it splits where they part. Columns of the batch: shared prefixes (padded on the left), then
what is left of each context (padded on the left), then the answer.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from steerlib.decoding.cache import SlotCache, Span, run_spans, shared_prefixes
from steerlib.decoding.requests import Request, Stream
from steerlib.models import FrozenModel, row_size
from steerlib.reading import left_padded, position_ids
from steerlib.residual import ResidualDose, steered_range

CPU_CAPACITY, CPU_BYTES = 384, 3 * 2**28
"""Rows of a forward pass at most, and the memory that they may take; more rows gain no speed."""
COLUMNS = 16
"""The cache's columns are a multiple of it: attention on a GPU would pad every mask to one."""


class Streams:
    """The streams of one model: their cache, their masks, and the slots they live in, at most `capacity`.

    Stream i of distinct ones starts in slot i. `dose` is what the model's residual hooks add.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        streams: Sequence[Stream],
        *,
        capacity: int,
        max_new_tokens: int,
        dose: ResidualDose,
    ) -> None:
        self.frozen, self.dose, self.streams, self.n_live = frozen, dose, list(streams), len(streams)
        vectors, contexts = [*dose.first_layers], list(dict.fromkeys(stream.ids for stream in streams))
        lengths = dict(zip(contexts, shared_prefixes(contexts), strict=True))
        # Sliding windows count columns, and the pads between prefix and rest would widen the gap.
        if getattr(frozen.model.config.get_text_config(), "sliding_window", None):
            lengths = dict.fromkeys(contexts, 0)
        self.prefixes = [lengths[stream.ids] for stream in streams]
        self.head = max(self.prefixes, default=0)
        self.length = self.head + max(len(s.ids) - p for s, p in zip(streams, self.prefixes, strict=True))
        columns = -(-(self.length + max_new_tokens) // COLUMNS) * COLUMNS
        self.cache = SlotCache(frozen.n_layers, capacity=capacity, columns=columns)
        self.mask, self.steered = (
            torch.zeros(capacity, width, dtype=torch.long, device=frozen.device) for width in (columns, 2)
        )
        self.alphas = torch.zeros(capacity, len(vectors), device=frozen.device)
        for slot, stream in enumerate(self.streams):
            if stream.vector:
                self.steered[slot] = torch.tensor(steered_range(stream.positions, len(stream.ids)))
                self.alphas[slot, vectors.index(stream.vector)] = stream.alpha

    def prefill(self) -> Tensor:
        """Read all contexts; raw next-token logits `(n_streams, vocab)`, float32 or higher, in the order of slots."""
        if self.head:
            self._read_prefixes()
        n, both = self.n_live, zip(self.streams, self.prefixes, strict=True)
        spans = [self._span(stream, prefix, len(stream.ids)) for stream, prefix in both]
        _, self.mask[:n, self.head : self.length] = left_padded([s.rest for s in spans], self.frozen.device)
        return self._run(spans, range(n), self.cache, self.mask[:n, : self.length], self.head)

    def _span(self, stream: Stream, start: int, stop: int) -> Span:
        """A stretch of a stream's context, and where in it steering begins."""
        first, end = steered_range(stream.positions, len(stream.ids))
        token = min(first, stop) if stream.vector and first < end else stop
        block = self.dose.first_layers[stream.vector] if token < stop else self.frozen.n_layers
        return Span(stream.ids[:stop], start, block, token)

    def _read_prefixes(self) -> None:
        """Read each distinct prefix once and copy its cache to the streams that open with it."""
        both = list(zip(self.streams, self.prefixes, strict=True))
        spans = [self._span(stream, 0, prefix) for stream, prefix in both]
        # An unsteered prefix is the same whatever steers the rest.
        keys = [
            (span.ids, (s.vector, s.alpha, s.positions) if span.token < prefix else ())
            for (s, prefix), span in zip(both, spans, strict=True)
        ]
        distinct = [key for key in dict.fromkeys(keys) if key[0]]
        owners = [keys.index(key) for key in distinct]
        cache = SlotCache(self.frozen.n_layers, capacity=len(distinct), columns=self.head)
        _, mask = left_padded([ids for ids, _ in distinct], self.frozen.device)
        self._run([spans[slot] for slot in owners], owners, cache, mask, 0)
        # A stream without a prefix gets one that its mask hides.
        source = [distinct.index(key) if key[0] else 0 for key in keys]
        self.cache.copy_rows(source, range(len(keys)), range(self.head), origin=cache)
        has_prefix = torch.tensor([[bool(ids)] for ids, _ in keys], device=self.frozen.device)
        self.mask[: len(keys), : self.head] = mask[source] * has_prefix

    def _run(
        self, spans: Sequence[Span], slots: Sequence[int], cache: SlotCache, mask: Tensor, first: int
    ) -> Tensor:
        """Run spans into columns `first` and later of a cache, row by row what is steered as some slots are."""
        stop, slot_of = mask.shape[1], torch.tensor(slots, device=mask.device)

        def forward(ids: Tensor, rows: Tensor) -> Tensor:
            cache.rows, cache.length = rows, stop - ids.shape[1]
            return self._forward(ids, mask[rows], slot_of[rows], cache)

        return run_spans(self.frozen, spans, cache, range(first, stop), forward)

    def _forward(self, ids: Tensor, mask: Tensor, slots: Tensor, cache: SlotCache) -> Tensor:
        """One forward pass over some slots, steering included; raw logits at the last column."""
        position, real = (one[:, -ids.shape[1] :] for one in (position_ids(mask), mask))
        if self.alphas.shape[1]:
            first, end = self.steered[slots, :, None].unbind(1)
            steered = (position >= first) & (position < end)
            self.dose.coefficients = (steered * real)[..., None] * self.alphas[slots][:, None, :]
        z = self.frozen.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self.dose.coefficients = None  # the same weights may stand for another branch, which is not steered
        return z.to(torch.promote_types(z.dtype, torch.float32))

    def advance(self, parents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Append a token to the parent of each next stream, a slot; both `(n_next,)`.

        Several may have the same parent, which then splits; a stream that is nobody's parent ends. Returns the slot of
        each next stream `(n_next,)`, and raw next-token logits in the order of the slots, `(n_next, vocab)`.
        """
        slot, n = self._place(parents.tolist()), len(parents)
        ids = torch.empty(n, 1, dtype=torch.long, device=self.frozen.device)
        ids[slot, 0] = tokens
        self.n_live, self.cache.rows, self.cache.length = n, slice(0, n), self.length
        self.length += 1
        self.mask[:n, self.length - 1] = 1
        slots = torch.arange(n, device=self.frozen.device)
        return slot, self._forward(ids, self.mask[:n, : self.length], slots, self.cache)

    def _place(self, parents: list[int]) -> Tensor:
        """Slots of the next streams, packed to the front: one child stays where its parent was, others are copied."""
        n = len(parents)
        stays = {parent: child for child, parent in reversed(list(enumerate(parents))) if parent < n}
        free = iter([slot for slot in range(n) if slot not in stays])
        slots = [p if stays.get(p) == child else next(free) for child, p in enumerate(parents)]
        moved = [(p, s) for p, s in zip(parents, slots, strict=True) if p != s]
        if moved:
            source, target = (list(side) for side in zip(*moved, strict=True))
            self.cache.copy_rows(source, target, range(self.length))
            for table in (self.mask, self.steered, self.alphas):
                table[target] = table[source]
        return torch.tensor(slots, device=self.frozen.device)


class MultiModelStreams:
    """The streams of some answers, each in the model that reads it: slots of the first model, then of the next.

    `models` has the frozen model under "", trained ones by branch; `rows_per_request` are the rows that one answer may
    split into; `dose` is the steering of the frozen model's own streams. `slot` is that of each stream before the first
    step.
    """

    def __init__(
        self,
        models: Mapping[str, FrozenModel],
        requests: Sequence[Request],
        *,
        rows_per_request: int,
        max_new_tokens: int,
        dose: ResidualDose | None = None,
    ) -> None:
        self.parts: list[Streams] = []
        self.slot: dict[Stream, int] = {}
        reads = [stream for request in requests for stream in request.branches.values()]
        for name in sorted({stream.model for stream in reads}):
            mine = [stream for stream in reads if stream.model == name]
            # Alike lengths lie side by side, so that prefill pads little.
            ordered = sorted(set(mine), key=lambda s: (len(s.ids), s.ids, s.vector, s.alpha, s.positions))
            self.slot |= {stream: len(self.slot) + i for i, stream in enumerate(ordered)}
            own_dose = ResidualDose() if name or dose is None else dose
            limits = {"capacity": len(mine) * rows_per_request, "max_new_tokens": max_new_tokens}
            self.parts.append(Streams(models[name], ordered, **limits, dose=own_dose))

    def prefill(self) -> Tensor:
        """As `Streams.prefill`, of all models."""
        return self._rows([part.prefill() for part in self.parts])

    def append(self, slots: Tensor, tokens: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
        """Append each answer's token, `(answers,)`, to its branches; answers that still agree share them.

        Returns the slots, `(answers, branches)`, -1 for no branch, and raw next-token logits in their order.
        """
        used = slots >= 0
        distinct, place = (slots * vocab + tokens[:, None])[used].unique(return_inverse=True)
        slot, z = self.advance(distinct // vocab, distinct % vocab)
        return slots.masked_scatter(used, slot[place]), z

    def advance(self, parents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As `Streams.advance`; a model with no stream left is not run."""
        slots = torch.empty_like(parents)
        logits, first, placed = [], 0, 0
        for part in self.parts:
            start, first = first, first + part.n_live
            mine = (parents >= start) & (parents < first)
            if mine.any():
                slot, z = part.advance(parents[mine] - start, tokens[mine])
                slots[mine] = slot + placed
                logits.append(z)
            else:
                part.n_live = 0
            placed += part.n_live
        return slots, self._rows(logits)

    def _rows(self, logits: Sequence[Tensor]) -> Tensor:
        # A model in a lower precision than the base's takes the base's.
        return logits[0] if len(logits) == 1 else torch.cat([z.to(logits[0].dtype) for z in logits])


def default_capacity(models: Sequence[FrozenModel], requests: Sequence[Request]) -> int:
    """Rows of a forward pass: as many as half of the free GPU memory, or `CPU_BYTES`, holds in the largest model."""
    device, size = models[0].device, row_bytes(models, requests)
    if device.type != "cuda":
        return max(8, min(CPU_CAPACITY, CPU_BYTES // size))
    # What torch has reserved and not given out counts as used by the driver, and is free for the next batch.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(8, int((torch.cuda.mem_get_info(device)[0] + unused) / 2 // size))


def row_bytes(models: Sequence[FrozenModel], requests: Sequence[Request]) -> int:
    """Bytes of one row of a forward pass in the largest model, for the longest of some answers."""
    tokens = max(len(s.ids) + r.sampling.max_new_tokens for r in requests for s in r.branches.values())
    return max(row_size(frozen.model.config, frozen.dtype, tokens) for frozen in models)
