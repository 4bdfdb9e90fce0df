"""A GGUF file becomes a folder that plain `transformers` loads, with the same function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backfire.assets.weights import FromGguf
from backfire.errors import CheckpointError
from backfire.models.tiny import CHAT_TEMPLATE, byte_tokenizer, tiny_model

gguf = pytest.importorskip("gguf")

PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return a projection in GGUF's order: rotary pairs side by side instead of half a head apart."""
    per_head = weight.shape[0] // heads
    rows = [h * per_head + i + half for h in range(heads) for i in range(per_head // 2)
            for half in (0, per_head // 2)]  # fmt: skip
    return weight[rows]


def write_gguf(path: Path, model: Any, *, split: str = "smollm", odd: bool = False) -> None:
    config = model.config
    tokenizer = byte_tokenizer()
    words = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    words[-2:] = ["12", "ab"]  # two bytes the tests do not need make room for two merges
    special = set(tokenizer.all_special_tokens)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(words)
    writer.add_token_types([3 if word in special else 1 for word in words])
    writer.add_token_merges(["1 2", "a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHAT_TEMPLATE)
    heads = {"self_attn.q_proj": config.num_attention_heads}
    heads["self_attn.k_proj"] = config.num_key_value_heads
    for name, weight in model.state_dict().items():
        if name == "model.embed_tokens.weight":
            stored = "token_embd.weight"
        elif name == "model.norm.weight":
            stored = "output_norm.weight"
        elif name == "lm_head.weight":
            if config.tie_word_embeddings:
                continue
            stored = "output.weight"
        else:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            stored = f"blk.{layer}.{PARTS[part]}.weight"
            if part in heads:
                weight = interleaved(weight, heads[part])
        writer.add_tensor(stored, weight.float().numpy())
    if odd:
        writer.add_tensor("blk.0.attn_q.bias", torch.zeros(4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_converted_model_computes_the_same(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tiny_model("llama")
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()  # exact in the stored precision
    write_gguf(tmp_path / "tiny.gguf", model)
    target = tmp_path / "out"
    target.mkdir()
    facts = FromGguf("*.gguf")(tmp_path, target)
    loaded = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    assert facts == {"converted_from": "tiny.gguf", "stored_as": ["F32"]}
    for key in ("rms_norm_eps", "rope_parameters", "tie_word_embeddings", "num_key_value_heads"):
        assert getattr(loaded.config, key) == getattr(model.config, key)
    assert not hasattr(loaded.config, "quantization_config")
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    ids = torch.arange(5, 25)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)

    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.tokenize("ab12") == ["ab", "1", "2"]  # digits apart, merge or no merge
    text = "What is 2 + 2?\n  héé"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "<|user|>hi<|end|><|assistant|>"


def test_what_cannot_be_converted_exactly_is_refused(tmp_path: Path) -> None:
    convert = FromGguf("*.gguf")
    (tmp_path / "tiny.gguf").write_bytes(b"not a GGUF file at all")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        convert(tmp_path, tmp_path)
    write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), split="qwen2")
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.pre is 'qwen2'"):
        convert(tmp_path, tmp_path)
    write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), odd=True)
    with pytest.raises(CheckpointError, match=r"attn_q\.bias"):
        convert(tmp_path, tmp_path)
