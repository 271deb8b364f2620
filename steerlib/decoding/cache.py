"""Keys and values of all streams in one block of memory, written in place.

transformers' dynamic cache copies everything it holds at every step; here a step writes one column, and a
stream that splits copies one row.
"""

from dataclasses import dataclass, field

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass
class Window:
    """Which rows and columns of the block the next forward pass is about.

    Attributes:
        capacity: rows that the block has.
        columns: tokens that a row can hold.
        rows: rows of the pass, a slice (a view, which a step of decoding wants) or their numbers.
        length: columns filled before the pass.
    """

    capacity: int
    columns: int
    rows: slice | Tensor = field(default_factory=lambda: slice(0))
    length: int = 0


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, `(capacity, heads, columns, head_dim)` each, allocated at first use."""

    is_sliding = False

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros, not whatever was in memory: masked columns are multiplied by zero weights, and NaN * 0 is NaN.
        shape = (self.window.capacity, key_states.shape[1], self.window.columns)
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.block()
        rows = self.window.rows
        rows = rows.to(keys.device) if isinstance(rows, Tensor) else rows
        stop = self.window.length + key_states.shape[2]
        keys[rows, :, self.window.length : stop] = key_states
        values[rows, :, self.window.length : stop] = value_states
        return keys[rows, :, :stop], values[rows, :, :stop]

    def block(self) -> tuple[Tensor, Tensor]:
        """All keys and all values.

        Raises:
            ValueError: the layer was never written to.
        """
        if self.keys is None or self.values is None:
            raise ValueError("this layer of the cache holds nothing yet")
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.window.length

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """The block of all layers, with rows that can be copied.

    Args:
        n_layers: decoder blocks of the model.
        capacity: streams at most.
        columns: tokens of a stream at most, pads counted.
    """

    def __init__(self, n_layers: int, *, capacity: int, columns: int) -> None:
        self.window = Window(capacity, columns)
        self.slot_layers = [SlotLayer(self.window) for _ in range(n_layers)]
        super().__init__(layers=[*self.slot_layers])

    def copy_rows(self, source: Tensor, target: Tensor) -> None:
        """Copy the filled columns of some rows to others; no row may be both source and target."""
        for keys, values in self._blocks():
            length, a, b = self.window.length, source.to(keys.device), target.to(keys.device)
            keys[b, :, :length] = keys[a, :, :length]
            values[b, :, :length] = values[a, :, :length]

    def share_rows(self, source: Tensor, target: Tensor, columns: range, *, layer: int, unread: int) -> None:
        """Copy from some rows to others what is theirs too.

        Args:
            source, target: numbers of the rows.
            columns: what the rows hold in these.
            layer: below it all of them are copied.
            unread: from it on, only those before this column.
        """
        for n, (keys, values) in enumerate(self._blocks()):
            a, b = source.to(keys.device), target.to(keys.device)
            stop = columns.stop if n < layer else unread
            keys[b, :, columns.start : stop] = keys[a, :, columns.start : stop]
            values[b, :, columns.start : stop] = values[a, :, columns.start : stop]

    def take_rows(self, other: "SlotCache", source: Tensor) -> None:
        """Fill rows 0, 1, ... from the given rows of another cache, up to that one's length."""
        length = other.window.length
        for layer, theirs in zip(self.slot_layers, other.slot_layers, strict=True):
            their_keys, their_values = theirs.block()
            if not layer.is_initialized:
                layer.lazy_initialization(their_keys, their_values)
            keys, values = layer.block()
            rows = source.to(keys.device)
            keys[: len(rows), :, :length] = their_keys[rows, :, :length]
            values[: len(rows), :, :length] = their_values[rows, :, :length]

    def _blocks(self) -> list[tuple[Tensor, Tensor]]:
        return [layer.block() for layer in self.slot_layers]
