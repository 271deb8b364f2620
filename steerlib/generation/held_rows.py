"""The streams of a batch as rows that stay: a forward pass over the whole block of the cache, written at one column."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from steerlib.generation.streams import Doses, Streams
from steerlib.models import FrozenModel

HOLDABLE = ("gemma", "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
"""Architectures that are known to take a mask of all columns and the position of every token from outside."""


def holds(frozen: FrozenModel) -> bool:
    """Whether the model's rows can stay: a known architecture on one device, torch's attention, no sliding window."""
    config = frozen.model.config.get_text_config()
    known = config.model_type in HOLDABLE and getattr(config, "_attn_implementation", "") == "sdpa"
    spread = {*(getattr(frozen.model, "hf_device_map", None) or {}).values()}
    return known and len(spread) <= 1 and not getattr(config, "sliding_window", None)


class HeldRows:
    """The live streams from here on, one token at a time, without a look at any number.

    Args:
        streams: of one model; live ones packed to the front.
        z: raw next-token logits of the live streams, `(n_live, vocab)`.

    Attributes:
        z: the same after every token.
    """

    def __init__(self, streams: Streams, z: Tensor) -> None:
        self.streams, self.z = streams, z.clone()
        n = streams.n_live
        # A compiled model does not notice hooks that come later, so it reads unsteered rows alone.
        self.model = streams.frozen.model if streams.dosage.shape[1] else streams.frozen.decoder
        self.mask = streams.mask[:n, None, None, :].bool()
        self.position = streams.mask[:n].sum(-1, keepdim=True)
        self.column = torch.tensor([streams.length], device=streams.frozen.device)
        self.doses = Doses(
            streams.steered_rows(range(n)), streams.prompt_lengths[:n].clone(), streams.dosage[:n].clone()
        )

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Write where the rows stand; afterwards the streams know of the tokens they have got."""
        window, streams = self.streams.cache.window, self.streams
        window.rows, window.column = slice(0, streams.n_live), self.column
        try:
            yield
        finally:
            window.column = None
            streams.length = int(self.column)
            streams.mask[: streams.n_live] = self.mask[:, 0, 0]

    def advance(self, tokens: Tensor) -> None:
        """Append a token to each row, `(n_live,)`, and put the logits after it into `z`."""
        self.mask.index_fill_(-1, self.column, True)
        self.streams.dose.coefficients = self.doses.at(self.position) if self.doses.dosage.shape[1] else None
        out = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.streams.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.z.copy_(out.logits[:, -1])
        self.position += 1
        self.column += 1
