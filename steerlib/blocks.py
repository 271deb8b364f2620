"""Where a transformer keeps its decoder blocks."""

from torch import nn

BLOCK_PATHS = ("model.layers", "model.language_model.layers", "transformer.h", "gpt_neox.layers")


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Decoder blocks of a transformer (Llama, Qwen, Gemma, Mistral, GPT-2, GPT-NeoX and their like).

    Raises:
        ValueError: no list of blocks where these architectures keep it; the paths tried are named.
    """
    for path in BLOCK_PATHS:
        found: object = model
        for part in path.split("."):
            found = getattr(found, part, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    raise ValueError(f"no decoder blocks in {type(model).__name__}; looked for {', '.join(BLOCK_PATHS)}")
