"""Keys and values of all streams in one block of memory, written in place.

transformers' dynamic cache copies everything it holds at every step; here a step writes one column, and a
stream that splits copies one row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, `(capacity, heads, columns, head_dim)` each, allocated at first use."""

    is_sliding = False

    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()
        self.cache = cache
        self.stored: tuple[Tensor, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros, not whatever was in memory: masked columns are multiplied by zero weights, and NaN * 0 is NaN.
        self.stored = tuple(
            like.new_zeros(self.cache.capacity, like.shape[1], self.cache.columns, like.shape[-1])
            for like in (key_states, value_states)
        )
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


class SlotCache(Cache):
    """The block of all layers, with rows that can be copied.

    Args:
        n_layers: decoder blocks of the model.
        capacity: streams at most.
        columns: tokens of a stream at most, pads counted.

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
        """Copy columns of some rows to others.

        Args:
            source, target: numbers of the rows; within one cache no row may be both.
            columns: what is copied.
            origin: the cache of the sources; None for this one.
            block, before: from this block on only the columns before `before`; None for all.
        """
        for n, (mine, theirs) in enumerate(zip(self.blocks, (origin or self).blocks, strict=True)):
            if not mine.stored:
                mine.lazy_initialization(*theirs.stored)
            stop = columns.stop if before is None or n < block else before
            for new, old in zip(mine.stored, theirs.stored, strict=True):
                a, b = (torch.tensor(rows, device=old.device) for rows in (source, target))
                new[b, :, columns.start : stop] = old[a, :, columns.start : stop]
