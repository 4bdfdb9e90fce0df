"""The organism's network: a small Llama with tied embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backfire.seeding import child_seed

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["new_network", "save_network"]


def new_network(
    vocabulary: int, layers: int, width: int, inner: int, seed: int
) -> LlamaForCausalLM:
    """Return an untrained network (fp32); the global random state is left alone.

    Args:
        vocabulary: Tokens.
        layers: Blocks.
        width: Hidden size, shared by four heads.
        inner: Width of the feed-forward layers.
        seed: Of the weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=inner,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(child_seed(seed, "organism", "weights"))
    try:
        return LlamaForCausalLM(config)
    finally:
        torch.random.set_rng_state(state)


def save_network(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Write a folder that `transformers` loads, and return it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
