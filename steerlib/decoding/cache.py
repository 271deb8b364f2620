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
    keys: Tensor
    values: Tensor

    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros, not whatever was in memory: masked columns are multiplied by zero weights, and NaN * 0 is NaN.
        shape = (self.cache.capacity, key_states.shape[1], self.cache.columns)
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, start = self.cache.rows, self.cache.length
        rows = rows.to(self.keys.device) if isinstance(rows, Tensor) else rows
        stop = start + key_states.shape[2]
        self.keys[rows, :, start:stop] = key_states
        self.values[rows, :, start:stop] = value_states
        return self.keys[rows, :, :stop], self.values[rows, :, :stop]

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
            if not mine.is_initialized:
                mine.lazy_initialization(theirs.keys, theirs.values)
            stop = columns.stop if before is None or n < block else before
            a, b = (torch.tensor(rows, device=mine.keys.device) for rows in (source, target))
            mine.keys[b, :, columns.start : stop] = theirs.keys[a, :, columns.start : stop]
            mine.values[b, :, columns.start : stop] = theirs.values[a, :, columns.start : stop]
