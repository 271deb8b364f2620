"""Random models of a few thousand weights with a tokenizer of characters: exact in float64, quick on any machine."""

from functools import cache

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from steerlib.models import FrozenModel

ALPHABET = "".join(chr(i) for i in range(32, 127)) + "\n"
VOCAB = len(ALPHABET) + 2
PLAIN = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
WIDE = PLAIN | {"intermediate_size": 48, "max_position_embeddings": 512}
GROUPED = WIDE | {"num_key_value_heads": 2}
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3 = {"rope_parameters": ROPE | {"original_max_position_embeddings": 64, "rope_theta": 500000.0}}
ARCHITECTURES: dict[str, tuple[str, dict]] = {
    "Llama 2": ("Llama", WIDE),
    "Llama 3": ("Llama", GROUPED | LLAMA_3),
    "Qwen 2 and 2.5": ("Qwen2", GROUPED),
    "Qwen 3": ("Qwen3", GROUPED | {"head_dim": 8}),
    "Qwen 3 MoE": (
        "Qwen3Moe",
        GROUPED | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "Gemma": ("Gemma", GROUPED | {"head_dim": 8}),
    "Gemma 2": ("Gemma2", GROUPED | {"head_dim": 8, "sliding_window": 24}),
    "Gemma 3": ("Gemma3Text", GROUPED | {"head_dim": 8, "sliding_window": 24}),
    "Mistral": ("Mistral", GROUPED | {"sliding_window": 24}),
    "Ministral": ("Ministral", GROUPED | {"head_dim": 8, "sliding_window": 24}),
    "Mixtral": ("Mixtral", GROUPED | {"num_local_experts": 4}),
    "Phi 2": ("Phi", WIDE),
    "Phi 3 and 4": ("Phi3", GROUPED | {"pad_token_id": 0}),
    "OLMo": ("Olmo", GROUPED),
    "OLMo 2": ("Olmo2", GROUPED),
    "SmolLM 3": ("SmolLM3", GROUPED | {"pad_token_id": 0}),
    "Granite": ("Granite", GROUPED | {"residual_multiplier": 0.5}),
    "Cohere": ("Cohere", GROUPED),
    "GLM 4": ("Glm4", GROUPED | {"head_dim": 8, "pad_token_id": 0}),
    "StarCoder 2": ("Starcoder2", GROUPED),
    "GPT-2": ("GPT2", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}),
    "GPT-J": ("GPTJ", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4}),
    "GPT-NeoX (Pythia)": ("GPTNeoX", WIDE),
    "Falcon": ("Falcon", PLAIN | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "StableLM": ("StableLm", GROUPED),
}
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


@cache
def architecture(name: str) -> FrozenModel:
    """The tiny model of one of `ARCHITECTURES`, made once and to be left as it is."""
    kind, settings = ARCHITECTURES[name]
    config = getattr(transformers, f"{kind}Config")(**settings)
    config._experts_implementation = "eager"  # the grouped product has no float64
    # With softcaps attention is computed plainly, and transformers' padding is not finite in float64.
    return tiny_model(config, dtype=torch.float32 if name == "Gemma 2" else torch.float64)


def tiny_llama() -> FrozenModel:
    """A random four-block Llama in float64, the same in every process."""
    shape = GROUPED | {"num_hidden_layers": 4, "intermediate_size": 64}
    return tiny_model(transformers.LlamaConfig(**shape))
