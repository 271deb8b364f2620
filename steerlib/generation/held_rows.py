"""The streams of a batch as rows that stay: a forward pass over the whole block of the cache, written at one column."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from steerlib.attention import PACKED
from steerlib.generation.streams import Doses, Streams
from steerlib.models import FrozenModel

HOLDABLE = ("gemma", "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
"""Architectures that are known to take a mask of all columns and the position of every token from outside."""
ATTENTION = ("sdpa", PACKED)


def holds(frozen: FrozenModel) -> bool:
    """Whether the model's rows can stay: a known architecture on one device, torch's attention, no sliding window.

    Rotary embeddings that are stretched as a text grows ("dynamic") look at its length at every token.
    """
    config = frozen.model.config.get_text_config()
    known = config.model_type in HOLDABLE and getattr(config, "_attn_implementation", "") in ATTENTION
    spread = {*(getattr(frozen.model, "hf_device_map", None) or {}).values()}
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    window = getattr(config, "sliding_window", None)
    return known and len(spread) <= 1 and rope != "dynamic" and not window


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
        seen = streams.mask[:n, None, None, :].bool()
        # Added to the scores as it is; a boolean mask would be made into this one by every block.
        self.mask = torch.zeros_like(seen, dtype=streams.frozen.dtype).masked_fill_(~seen, -torch.inf)
        self.position = streams.mask[:n].sum(-1, keepdim=True)
        self.last = streams.frozen.max_length - 1
        self.column = torch.tensor([streams.length], device=streams.frozen.device)
        self.doses = Doses(
            streams.steered_rows(range(n)), streams.prompt_lengths[:n].clone(), streams.dosage[:n].clone()
        )

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Write where the rows stand; afterwards the streams know of the tokens they have got."""
        streams = self.streams
        try:
            with streams.cache.held(streams.n_live, self.column):
                yield
        finally:
            streams.length = int(self.column)
            streams.mask[: streams.n_live] = ~self.mask[:, 0, 0].isneginf()

    def advance(self, tokens: Tensor) -> None:
        """Append a token to each row, `(n_live,)`, and put the logits after it into `z`."""
        self.mask.index_fill_(-1, self.column, 0)
        self.streams.dose.coefficients = self.doses.at(self.position) if self.doses.dosage.shape[1] else None
        out = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            # An answer that has had its tokens runs on until it is let go, perhaps further than positions go.
            position_ids=self.position.clamp(max=self.last),
            past_key_values=self.streams.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.z.copy_(out.logits[:, -1])
        self.position += 1
        self.column += 1
