"""Random models of a few thousand weights with a tokenizer of characters: exact in float64, quick on any machine."""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from steerlib.models import FrozenModel

ALPHABET = "".join(chr(i) for i in range(32, 127)) + "\n"
SMALL = {"vocab_size": len(ALPHABET) + 2, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
ARCHITECTURES = [
    LlamaConfig(**SMALL, intermediate_size=48, num_key_value_heads=2),
    Qwen2Config(**SMALL, intermediate_size=48, num_key_value_heads=2),
    MistralConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, sliding_window=7),
    GemmaConfig(**SMALL, intermediate_size=48, num_key_value_heads=1, head_dim=8),
    GPT2Config(vocab_size=len(ALPHABET) + 2, n_embd=32, n_layer=4, n_head=4),
    GPTNeoXConfig(**SMALL, intermediate_size=48),
    FalconConfig(**SMALL, alibi=False),  # its blocks return tuples
]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable character, token 0 ends an answer; with a chat template."""
    vocab = {"<eos>": 0, "<unk>": 1} | {c: i + 2 for i, c in enumerate(ALPHABET)}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_model(
    config: PreTrainedConfig, *, dtype: torch.dtype = torch.float64, attention: str | None = None
) -> FrozenModel:
    """A random model of an architecture with the tokenizer of characters; sharp enough that choices differ."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).eval()
    for weight in model.parameters():
        weight.requires_grad_(False).mul_(4 if weight.ndim == 2 else 1)
    model.generation_config.eos_token_id = 0
    return FrozenModel(model, character_tokenizer(), f"tiny {config.model_type}")


def tiny_llama() -> FrozenModel:
    """A random four-block Llama in float64, the same in every process."""
    return tiny_model(
        LlamaConfig(
            vocab_size=len(ALPHABET) + 2,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
        )
    )
