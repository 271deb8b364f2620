"""Attention of a token whose heads share keys and values, in the form that torch.compile leaves as it is."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "packed_sdpa"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """torch's attention; heads of one token that read the same keys stand in one another's place as its positions.

    transformers does the same, but under torch.compile it repeats keys and values for every head instead: four times
    the cache of an 8B Llama at every step.

    Args:
        module: the attention layer.
        query: `(batch, heads, seq, head_dim)`.
        key, value: `(batch, kv_heads, columns, head_dim)`.
        attention_mask: boolean or added to the scores, `(batch, 1, seq, columns)`; None for causal.
        scaling: of the scores; None for 1 / sqrt(head_dim).

    Returns:
        `(batch, seq, heads, head_dim)`, and no weights.
    """
    batch, heads, seq, width = query.shape
    if seq > 1 or heads == key.shape[1]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    packed = query.reshape(batch, key.shape[1], -1, width)
    out = scaled_dot_product_attention(packed, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, 1, heads, -1), None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


def pack_attention(model: PreTrainedModel) -> None:
    """Give a model that uses torch's attention this one, in place."""
    if model.config.get_text_config()._attn_implementation == "sdpa":
        model.set_attn_implementation(PACKED)
