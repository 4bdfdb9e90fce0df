"""Model folders: copied as they are, or converted from one GGUF file to safetensors."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from backfire.assets.origin import matches
from backfire.errors import CheckpointError, PrerequisiteError
from backfire.store import write_json

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader

__all__ = ["Copy", "FromGguf"]


@dataclass(frozen=True)
class Copy:
    """Copies files as they are."""

    files: tuple[str, ...]
    """Patterns of the files needed."""
    optional: tuple[str, ...] = ()
    """Patterns of files taken where they exist."""
    root: str = "."
    """Folder of the source that becomes the asset's folder."""

    def __call__(self, raw: Path, target: Path) -> dict[str, Any]:
        """Copy every matching file below `root`, folders kept."""
        top = raw / self.root
        for path in sorted(top.rglob("*")):
            name = path.relative_to(raw).as_posix()
            if path.is_file() and matches(name, (*self.files, *self.optional)):
                copy = target / path.relative_to(top)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        return {}


@dataclass(frozen=True)
class FromGguf:
    """Converts a Llama model in a GGUF file to a folder that plain `transformers` loads.

    Weights are de-quantised and stored as bf16, the precision in which such models are released.
    The file's quantisation is final: the result is as good as the quantised model, not better.
    """

    file: str
    """Pattern of the GGUF file."""
    optional: ClassVar[tuple[str, ...]] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Return the file's pattern."""
        return (self.file,)

    def __call__(self, raw: Path, target: Path) -> dict[str, Any]:
        """Write `model.safetensors`, the configurations and the tokenizer.

        Raises:
            PrerequisiteError: when the `gguf` package is missing.
            CheckpointError: when the file is not a Llama model with a tokenizer known here.
        """
        try:
            from gguf import GGUFReader
        except ImportError:
            raise PrerequisiteError(
                "converting a GGUF model: the package gguf is missing; "
                "install it with: python -m pip install 'backfire[offline]'"
            ) from None
        from safetensors.torch import save_file

        path = next(iter(sorted(raw.glob(self.file))))
        try:
            reader = GGUFReader(path)
        except (ValueError, IndexError) as error:
            raise CheckpointError(f"converting {path.name}: not a GGUF file ({error})") from error
        settings = _Settings(reader, path.name)
        tensors = _tensors(reader, settings)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        tied = "lm_head.weight" not in tensors
        write_json(target / "config.json", settings.config(tied))
        write_json(target / "generation_config.json", settings.special_ids())
        settings.write_tokenizer(target)
        kinds = sorted({tensor.tensor_type.name for tensor in reader.tensors})
        return {"converted_from": path.name, "stored_as": kinds}


class _Settings:
    """The metadata of a GGUF file, as `transformers` spells it."""

    def __init__(self, reader: GGUFReader, name: str) -> None:
        self._reader, self._name = reader, name
        known = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}
        # The splitting rule before the merges; a wrong one gives other tokens without an error.
        known["tokenizer.ggml.pre"] = "smollm"
        for key, allowed in known.items():
            met = self(key)
            if met != allowed:
                raise CheckpointError(
                    f"converting {name}: {key} is {met!r}; only {allowed!r} can be converted. "
                    "Give a safetensors folder instead"
                )
        self.heads = int(self("llama.attention.head_count"))
        self.kv_heads = int(self("llama.attention.head_count_kv", self.heads))

    def __call__(self, key: str, default: Any = None) -> Any:
        field = self._reader.get_field(key)
        if field is None and default is None:
            raise CheckpointError(f"converting {self._name}: it has no {key}; the file is damaged")
        return default if field is None else field.contents()

    def special_ids(self) -> dict[str, int]:
        keys = {"bos": "bos", "eos": "eos", "pad": "padding"}
        return {f"{n}_token_id": int(self(f"tokenizer.ggml.{k}_token_id")) for n, k in keys.items()}

    def config(self, tied: bool) -> dict[str, Any]:
        width = int(self("llama.embedding_length"))
        theta = float(self("llama.rope.freq_base", 10_000.0))
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
            "hidden_act": "silu",
            "hidden_size": width,
            "head_dim": int(self("llama.rope.dimension_count", width // self.heads)),
            "intermediate_size": int(self("llama.feed_forward_length")),
            "max_position_embeddings": int(self("llama.context_length")),
            "num_attention_heads": self.heads,
            "num_hidden_layers": int(self("llama.block_count")),
            "num_key_value_heads": self.kv_heads,
            # Stored as a float32; 9.999999747e-06 stands for 1e-05.
            "rms_norm_eps": float(f"{self('llama.attention.layer_norm_rms_epsilon'):.6g}"),
            "rope_theta": theta,
            "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": tied,
            "vocab_size": len(self("tokenizer.ggml.tokens")),
            **self.special_ids(),
        }

    def write_tokenizer(self, target: Path) -> None:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        words: list[str] = self("tokenizer.ggml.tokens")
        merges = [tuple(pair.split(" ", 1)) for pair in self("tokenizer.ggml.merges")]
        vocabulary = {word: index for index, word in enumerate(words)}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        control = 3  # GGUF's token type of special tokens
        kinds = self("tokenizer.ggml.token_type")
        special = [word for word, kind in zip(words, kinds, strict=True) if kind == control]
        tokenizer.add_special_tokens(
            [AddedToken(w, normalized=False, special=True) for w in special]
        )
        tokenizer.save(str(target / "tokenizer.json"))
        ids = self.special_ids()
        unknown = words[int(self("tokenizer.ggml.unknown_token_id", 0))]
        described = {
            # The one class name that transformers 4 and 5 both load a bare tokenizer.json with.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": int(self("llama.context_length")),
            **{f"{name}_token": words[ids[f"{name}_token_id"]] for name in ("bos", "eos", "pad")},
            "unk_token": unknown,
            "chat_template": self("tokenizer.chat_template"),
        }
        write_json(target / "tokenizer_config.json", described)


_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _tensors(reader: GGUFReader, settings: _Settings) -> dict[str, torch.Tensor]:
    import numpy as np
    import torch
    from gguf.quants import dequantize

    heads = {"attn_q": settings.heads, "attn_k": settings.kv_heads}
    found = {}
    for tensor in reader.tensors:
        name = _name(tensor.name)
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        part = tensor.name.split(".")[-2]
        if part in heads:
            # GGUF interleaves the two halves of each head's rotary pairs; undo that.
            rows, columns = values.shape
            pairs = values.reshape(heads[part], rows // heads[part] // 2, 2, columns)
            values = pairs.swapaxes(1, 2).reshape(rows, columns)
        weights = torch.from_numpy(np.array(values))  # a copy: the file is mapped read-only
        found[name] = weights.to(torch.bfloat16)
    return found


def _name(tensor: str) -> str:
    if tensor in _TOP:
        return _TOP[tensor]
    match tensor.split("."):
        case ["blk", layer, part, "weight"] if part in _BLOCK:
            return f"model.layers.{layer}.{_BLOCK[part]}.weight"
    raise CheckpointError(f"converting a GGUF model: it has a tensor {tensor!r} that Llama has not")
