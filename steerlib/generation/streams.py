"""Streams: contexts of the frozen model that are decoded as rows of one batched forward pass.

A stream is one branch of one or more answers. Its context is read once; answers that agree so far share the
stream, and it splits where they part. Columns of the batch: shared prefixes (padded on the left), then
what is left of each context (padded on the left), then the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerlib.generation.cache import SlotCache
from steerlib.models import FrozenModel, TokenIds, left_padded
from steerlib.vectors.residual import ResidualDose, steered_positions

SHORTEST_SHARED_PREFIX = 8
PREFILL_TOKENS = 4096


@dataclass(frozen=True)
class Stream:
    """One context and what reads it.

    Attributes:
        ids: token ids of the context.
        vector: name of the steering vector added to its residual stream; empty for none.
        alpha: strength of that vector.
        positions: where it is added, see `steered_positions`.
        model: which model reads it: empty for the frozen one, else the name of a trained branch, see `owner`.
    """

    ids: TokenIds
    vector: str = ""
    alpha: float = 0.0
    positions: str = "all"
    model: str = ""


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


class Streams:
    """The streams of one batch: their cache, their masks, and the slots they live in.

    Args:
        frozen: the model.
        streams: distinct streams; stream i starts in slot i.
        capacity: slots, the most streams that may live at one time.
        max_new_tokens: longest answer.
        vectors: names of the steering vectors, in the order of `dose`'s last dimension.
        dose: what the residual hooks add.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        streams: Sequence[Stream],
        *,
        capacity: int,
        max_new_tokens: int,
        vectors: Sequence[str],
        dose: ResidualDose,
    ) -> None:
        self.frozen, self.dose = frozen, dose
        self.streams = list(streams)
        self.n_live = len(self.streams)
        self.prefix_lengths = self._prefix_lengths()
        self.head = max(self.prefix_lengths, default=0)
        self.tail = max(len(s.ids) - p for s, p in zip(streams, self.prefix_lengths, strict=True))
        self.length = self.head + self.tail
        columns = self.length + max_new_tokens
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
        lengths = [0] * len(self.streams)
        kinds = {(s.vector, s.alpha, s.positions) for s in self.streams}
        for kind in kinds:
            members = [i for i, s in enumerate(self.streams) if (s.vector, s.alpha, s.positions) == kind]
            for i, length in zip(
                members, shared_prefixes([self.streams[i].ids for i in members]), strict=True
            ):
                lengths[i] = length
        return lengths

    def prefill(self) -> Tensor:
        """Read all contexts.

        Returns:
            Raw next-token logits `(n_streams, vocab)`, float32 or higher, in the order of the slots.
        """
        if self.head:
            self._read_prefixes()
        logits: dict[int, Tensor] = {}
        rests = [s.ids[p:] for s, p in zip(self.streams, self.prefix_lengths, strict=True)]
        for first, last in self._prefill_batches(rests):
            rest = rests[first:last]
            ids, mask = left_padded(rest, self.frozen.device)
            start = self.length - ids.shape[1]
            self.mask[first:last, start : self.length] = mask
            z = self._forward(ids, slice(first, last), start)
            logits.update(zip(range(first, last), z, strict=True))
        return torch.stack([logits[i] for i in range(len(self.streams))])

    def _prefill_batches(self, rests: Sequence[TokenIds]) -> list[tuple[int, int]]:
        """Runs of neighbouring slots whose padded tokens stay within the budget."""
        batches, first, longest = [], 0, 0
        for i, ids in enumerate(rests):
            longest = max(longest, len(ids))
            if i > first and longest * (i + 1 - first) > PREFILL_TOKENS:
                batches.append((first, i))
                first, longest = i, len(ids)
        return [*batches, (first, len(rests))]

    def _read_prefixes(self) -> None:
        """Read each distinct prefix once and copy its cache to the streams that open with it."""
        keys = [
            (s.ids[:p], s.vector, s.alpha, s.positions) if p else None
            for s, p in zip(self.streams, self.prefix_lengths, strict=True)
        ]
        distinct = [key for key in dict.fromkeys(keys) if key is not None]
        owners = [keys.index(key) for key in distinct]
        cache = SlotCache(self.frozen.n_layers, capacity=len(distinct), columns=self.head)
        ids, mask = left_padded([key[0] for key in distinct], self.frozen.device)
        slots = torch.tensor(owners, device=self.frozen.device)
        self._call(ids, mask, slots, cache)
        cache.window.length = self.head
        source = torch.tensor([distinct.index(k) if k else 0 for k in keys], device=self.frozen.device)
        has_prefix = torch.tensor([k is not None for k in keys], device=self.frozen.device)
        self.cache.take_rows(cache, source)
        self.mask[: len(keys), : self.head] = mask[source] * has_prefix[:, None]

    def _forward(self, ids: Tensor, slots: slice, start: int) -> Tensor:
        self.cache.window.first, self.cache.window.length = slots.start, start
        mask = self.mask[slots, : start + ids.shape[1]]
        indices = torch.arange(slots.start, slots.stop, device=self.frozen.device)
        return self._call(ids, mask, indices, self.cache)

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
        steered = torch.zeros_like(position, dtype=torch.bool)
        lengths = self.prompt_lengths[slots][:, None]
        specs = [self.positions[slot] for slot in slots.tolist()]
        for spec in set(specs) - {""}:
            rows = torch.tensor([s == spec for s in specs], device=position.device)
            steered[rows] = steered_positions(spec, position[rows], lengths[rows])
        return (steered & mask.bool())[..., None] * self.dosage[slots][:, None, :]

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
        z = self._forward(ids, slice(0, self.n_live), self.length)
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
