"""Tiny random models of many architectures with a byte tokenizer, built from code in milliseconds.

They know nothing; they exist so that every stage can run, be tested and be timed without a download.

>>> folder = save_tiny(Path("/tmp/tiny-llama"), "llama")  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from backfire.errors import ConfigError, near_miss

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["ARCHITECTURES", "CHAT_TEMPLATE", "byte_tokenizer", "save_tiny", "tiny_model"]

ARCHITECTURES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "glm", "gpt_neox", "opt", "gpt2",
)  # fmt: skip
"""Names `tiny_model` accepts: the `model_type` of each architecture."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The template of the byte tokenizer: one token a role, one token at the end of each turn."""

_SPECIAL = ("<pad>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte and five special tokens (vocabulary 261)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<|end|>",
        additional_special_tokens=list(_SPECIAL[2:]),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_model(
    architecture: str = "llama", *, seed: int = 0, layers: int = 2, width: int = 32
) -> PreTrainedModel:
    """Return a random model of about 35k parameters (fp32, evaluation mode).

    Args:
        architecture: One of `ARCHITECTURES`.
        seed: Of the weights.
        layers: Number of blocks.
        width: Hidden size; a multiple of 8.

    Raises:
        ConfigError: for an unknown architecture.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"building a tiny model: {near_miss('architecture', architecture, ARCHITECTURES)}"
        )
    options: dict[str, Any] = {
        "vocab_size": 261,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    if architecture not in {"phi", "gpt_neox", "opt", "gpt2"}:
        options["num_key_value_heads"] = 2
    if architecture in {"gemma", "gemma2", "glm", "qwen3"}:
        options["head_dim"] = width // 4
    if architecture == "gpt2":
        options = {
            "vocab_size": 261, "n_embd": width, "n_layer": layers, "n_head": 4, "n_positions": 1024,
            "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
        }  # fmt: skip
    if architecture == "opt":
        options["ffn_dim"] = options.pop("intermediate_size")
        options["word_embed_proj_dim"] = width
    config = AutoConfig.for_model(architecture, **options)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    finally:
        torch.random.set_rng_state(state)
    return model.eval()


def save_tiny(folder: Path, architecture: str = "llama", **options: Any) -> Path:
    """Save a tiny model and its tokenizer as a folder `transformers` loads; return the folder."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = tiny_model(architecture, **options)
    model.generation_config.eos_token_id = 1
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
