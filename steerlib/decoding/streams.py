"""The streams of one batch, whichever model reads them: one numbering of slots, a forward pass a model.

Streams: contexts of the frozen model that are decoded as rows of one batched forward pass.

A stream is one branch of one or more answers. Its context is read once; answers that agree so far share the
stream, and it splits where they part. Columns of the batch: shared prefixes (padded on the left), then
what is left of each context (padded on the left), then the answer.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerlib.decoding.cache import SlotCache
from steerlib.decoding.prefill import Prefill, Reading, shared_prefixes
from steerlib.decoding.requests import Request, Stream
from steerlib.models import FrozenModel
from steerlib.reading import left_padded
from steerlib.residual import ResidualDose, VectorKey, steered_positions

COLUMNS = 16
"""The cache's columns are a multiple of it: attention on a GPU would pad every mask to one."""


@functools.cache
def first_steered(positions: str, length: int) -> int:
    """First position of a prompt of so many tokens that is steered; its length where none is."""
    steered = steered_positions(positions, torch.arange(length)[None], torch.tensor([[length]]))[0]
    return int(steered.int().argmax()) if steered.any() else length


@dataclass(frozen=True)
class Doses:
    """How strongly each row of a forward pass is steered by which vector.

    Attributes:
        rows: numbers of the rows that are steered at a kind of positions, see `steered_positions`.
        prompt_lengths: tokens of each row's context, `(rows,)`.
        dosage: strength of each vector, `(rows, n_vectors)`.
    """

    rows: dict[str, Tensor]
    prompt_lengths: Tensor
    dosage: Tensor

    def at(self, position: Tensor) -> Tensor:
        """Coefficients `(rows, seq, n_vectors)` of tokens at these positions, `(rows, seq)`."""
        steered = torch.zeros_like(position, dtype=torch.bool)
        for spec, rows in self.rows.items():
            steered[rows] = steered_positions(spec, position[rows], self.prompt_lengths[rows, None])
        return steered[..., None] * self.dosage[:, None, :]


class Streams:
    """The streams of one batch: their cache, their masks, and the slots they live in.

    Args:
        frozen: the model.
        streams: distinct streams; stream i starts in slot i.
        capacity: slots, the most streams that may live at one time.
        max_new_tokens: longest answer.
        vectors: the steering vectors, in the order of `dose`'s last dimension.
        dose: what the residual hooks add.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        streams: Sequence[Stream],
        *,
        capacity: int,
        max_new_tokens: int,
        vectors: Sequence[VectorKey],
        dose: ResidualDose,
    ) -> None:
        self.frozen, self.dose = frozen, dose
        self.first_layers = dict(zip(vectors, dose.first_layers, strict=True))
        self.streams = list(streams)
        self.n_live = len(self.streams)
        self.prefix_lengths = self._prefix_lengths()
        self.head = max(self.prefix_lengths, default=0)
        self.tail = max(len(s.ids) - p for s, p in zip(streams, self.prefix_lengths, strict=True))
        self.length = self.head + self.tail
        columns = -(-(self.length + max_new_tokens) // COLUMNS) * COLUMNS
        self.cache = SlotCache(frozen.n_layers, capacity=capacity, columns=columns)
        self.mask = torch.zeros(capacity, columns, dtype=torch.long, device=frozen.device)
        self.prompt_lengths = torch.zeros(capacity, dtype=torch.long, device=frozen.device)
        self.dosage = torch.zeros(capacity, len(vectors), device=frozen.device)
        self.positions: list[str] = [""] * capacity
        for slot, stream in enumerate(self.streams):
            self.prompt_lengths[slot] = len(stream.ids)
            self.positions[slot] = stream.positions if stream.vector else ""
            if stream.vector:
                self.dosage[slot, vectors.index(stream.vector)] = stream.alpha

    def _prefix_lengths(self) -> list[int]:
        # Sliding windows count columns, and the pads between prefix and rest would widen the gap.
        if getattr(self.frozen.model.config.get_text_config(), "sliding_window", None):
            return [0] * len(self.streams)
        contexts = list(dict.fromkeys(stream.ids for stream in self.streams))
        lengths = dict(zip(contexts, shared_prefixes(contexts), strict=True))
        return [lengths[stream.ids] for stream in self.streams]

    def prefill(self) -> Tensor:
        """Read all contexts; what differently steered readings of one have in common is computed once.

        Returns:
            Raw next-token logits `(n_streams, vocab)`, float32 or higher, in the order of the slots.
        """
        if self.head:
            self._read_prefixes()
        n, both = self.n_live, zip(self.streams, self.prefix_lengths, strict=True)
        readings = [self._reading(stream, prefix, len(stream.ids)) for stream, prefix in both]
        _, mask = left_padded([reading.rest for reading in readings], self.frozen.device)
        self.mask[:n, self.head : self.length] = mask
        return self._read(readings, torch.arange(n), self.cache, self.mask[:n, : self.length], self.head)

    def _reading(self, stream: Stream, start: int, stop: int) -> Reading:
        """A stretch of a stream's context, and where in it steering begins."""
        token = first_steered(stream.positions, len(stream.ids)) if stream.vector else stop
        layer = self.first_layers[stream.vector] if token < stop else self.frozen.n_layers
        return Reading(stream.ids[:stop], start, layer, min(token, stop))

    def _read_prefixes(self) -> None:
        """Read each distinct prefix once and copy its cache to the streams that open with it."""
        device, both = self.frozen.device, zip(self.streams, self.prefix_lengths, strict=True)
        readings = [self._reading(stream, 0, prefix) for stream, prefix in both]
        # An unsteered prefix is the same whatever steers the rest.
        keys = [
            (r.ids, (s.vector, s.alpha, s.positions) if r.token < len(r.ids) else ())
            for s, r in zip(self.streams, readings, strict=True)
        ]
        distinct = [key for key in dict.fromkeys(keys) if key[0]]
        owners = [keys.index(key) for key in distinct]
        cache = SlotCache(self.frozen.n_layers, capacity=len(distinct), columns=self.head)
        _, mask = left_padded([ids for ids, _ in distinct], device)
        self._read([readings[slot] for slot in owners], torch.tensor(owners), cache, mask, 0)
        cache.window.length = self.head
        source = torch.tensor([distinct.index(key) if key[0] else 0 for key in keys], device=device)
        has_prefix = torch.tensor([bool(ids) for ids, _ in keys], device=device)
        self.cache.take_rows(cache, source)
        self.mask[: len(keys), : self.head] = mask[source] * has_prefix[:, None]

    def _read(
        self, readings: Sequence[Reading], slots: Tensor, cache: SlotCache, mask: Tensor, first: int
    ) -> Tensor:
        """Read into columns `first` and later of a cache, row by row what is steered as some slots are."""
        stop, slots = mask.shape[1], slots.to(mask.device)

        def forward(ids: Tensor, rows: Tensor) -> Tensor:
            cache.window.rows, cache.window.length = rows, stop - ids.shape[1]
            return self._call(ids, mask[rows], slots[rows], cache)

        return Prefill(self.frozen, readings, cache, range(first, stop), forward).read()

    def _call(self, ids: Tensor, mask: Tensor, slots: Tensor, cache: SlotCache) -> Tensor:
        """One forward pass over some slots, steering included; raw logits at the last column."""
        position = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        self.dose.coefficients = self._coefficients(position, mask[:, -ids.shape[1] :], slots)
        z = self.frozen.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return z.to(torch.promote_types(z.dtype, torch.float32))

    def _coefficients(self, position: Tensor, mask: Tensor, slots: Tensor) -> Tensor | None:
        if not self.dosage.shape[1]:
            return None
        doses = Doses(self.steered_rows(slots.tolist()), self.prompt_lengths[slots], self.dosage[slots])
        return doses.at(position) * mask[..., None]

    def steered_rows(self, slots: Sequence[int]) -> dict[str, Tensor]:
        """Which of some slots are steered at which kind of positions."""
        specs = [self.positions[slot] for slot in slots]
        return {
            spec: torch.tensor([i for i, s in enumerate(specs) if s == spec], device=self.frozen.device)
            for spec in sorted({*specs} - {""})
        }

    def advance(self, parents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Append a token to each next stream; several may have the same parent, which then splits.

        Args:
            parents: slot that each next stream continues, `(n_next,)`; streams that are nobody's parent end.
            tokens: token appended to each, `(n_next,)`.

        Returns:
            Slot of each next stream `(n_next,)`, and raw next-token logits in the order of the slots,
            `(n_next, vocab)`.
        """
        slots = self._place(parents.tolist())
        slot = torch.tensor(slots, device=self.frozen.device)
        self.n_live = len(slots)
        ids = torch.empty(self.n_live, 1, dtype=torch.long, device=self.frozen.device)
        ids[slot, 0] = tokens
        self.mask[: self.n_live, self.length] = 1
        slots = torch.arange(self.n_live, device=self.frozen.device)
        self.cache.window.rows, self.cache.window.length = slice(0, self.n_live), self.length
        z = self._call(ids, self.mask[: self.n_live, : self.length + 1], slots, self.cache)
        self.length += 1
        return slot, z

    def _place(self, parents: list[int]) -> list[int]:
        """Slots of the next streams, packed to the front: one child stays where its parent was, others are copied."""
        n = len(parents)
        stays = {parent: child for child, parent in reversed(list(enumerate(parents))) if parent < n}
        free = iter([slot for slot in range(n) if slot not in stays])
        slots = [p if stays.get(p) == child else next(free) for child, p in enumerate(parents)]
        moved = [(p, s) for p, s in zip(parents, slots, strict=True) if p != s]
        if moved:
            source, target = (
                torch.tensor(side, device=self.frozen.device) for side in zip(*moved, strict=True)
            )
            self.cache.window.length = self.length
            self.cache.copy_rows(source, target)
            for table in (self.mask, self.prompt_lengths, self.dosage):
                table[target] = table[source]
            for p, s in moved:
                self.positions[s] = self.positions[p]
        return slots


class JoinedStreams:
    """The streams of several models behind one another: slots of the first model, then those of the next.

    Args:
        parts: the streams of each model.
    """

    def __init__(self, parts: Sequence[Streams]) -> None:
        self.parts = parts

    def prefill(self) -> Tensor:
        """Read all contexts; raw next-token logits `(n_streams, vocab)`, see `Streams.prefill`."""
        return self._rows([part.prefill() for part in self.parts])

    def advance(self, parents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Append a token to each next stream, see `Streams.advance`; a model with no stream left is not run."""
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


def open_streams(
    models: Mapping[str, FrozenModel],
    requests: Sequence[Request],
    *,
    rows_per_request: int,
    max_new_tokens: int,
    vectors: Sequence[VectorKey],
    dose: ResidualDose,
) -> tuple[JoinedStreams, dict[Stream, int]]:
    """The distinct streams of some answers, each opened in the model that reads it.

    Args:
        models: the frozen model under "", trained branches by name, see `Stream.model`.
        requests: the answers.
        rows_per_request: rows that one answer may split into.
        max_new_tokens: longest answer.
        vectors, dose: steering of the frozen model's own streams.

    Returns:
        The streams, and the slot of each.
    """
    reads = [stream for request in requests for stream in request.branches.values()]
    parts, index = [], {}
    for name, model in models.items():
        mine = [stream for stream in reads if stream.model == name]
        if not mine:
            continue
        # Alike lengths lie side by side, so that prefill pads little.
        ordered = sorted(set(mine), key=lambda s: (len(s.ids), s.ids, s.vector, s.alpha, s.positions))
        index |= {stream: len(index) + i for i, stream in enumerate(ordered)}
        parts.append(
            Streams(
                model,
                ordered,
                capacity=len(mine) * rows_per_request,
                max_new_tokens=max_new_tokens,
                vectors=() if name else vectors,
                dose=ResidualDose() if name else dose,
            )
        )
    return JoinedStreams(parts), index
