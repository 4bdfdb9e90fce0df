"""From a checkpoint on disk to a model, its tokenizer and its chat format, ready to use.

Safetensors only; code that comes with a model runs only where the user asked for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from backfire.data.chat import Chat, ChatFormat
from backfire.errors import CheckpointError, PrerequisiteError
from backfire.records import Checkpoint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "NOTE",
    "DType",
    "Head",
    "Loaded",
    "context_length",
    "load",
    "open_network",
    "pick_device",
    "read_note",
]

DType = Literal["auto", "fp32", "bf16", "fp16"]
"""`auto`: fp32 on a CPU, the stored type elsewhere."""

Head = Literal["next token", "classes"]
"""What a network ends in: the logits of the next token, or those of classes."""

_TASKS: dict[Head, str] = {
    "next token": "causal language modeling",
    "classes": "sequence classification",
}

NOTE = "backfire.json"
"""File beside the weights that says what was done to them, and under which chat format."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in evaluation mode with what is needed to talk to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    """Has a pad token; which side is padded is each batcher's business."""
    chat: Chat


def pick_device(device: str) -> torch.device:
    """Return the torch device for a name; `auto` is the best one present.

    Raises:
        PrerequisiteError: when the named device is not there.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise PrerequisiteError(
            f"choosing the device {device!r}: {error}; use `--device cpu`, or `auto`"
        ) from error
    return chosen


def load(
    checkpoint: Checkpoint | Path | str,
    *,
    device: str = "auto",
    dtype: DType = "auto",
    chat: ChatFormat | None = None,
) -> Loaded:
    """Return the model of a checkpoint, adapters merged, in evaluation mode.

    Args:
        checkpoint: A record, or a local folder (ids are resolved by `backfire.assets`).
        device: See `pick_device`.
        dtype: Of the weights in memory.
        chat: Format to use; None takes the one noted in the folder, else the tokenizer's own.

    Raises:
        CheckpointError: when the folder is missing, damaged, or holds no safetensors.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(Path(checkpoint), key="")
    model, tokenizer = open_network(checkpoint, device=device, dtype=dtype, head="next token")
    chosen_chat = chat or read_note(checkpoint.path)[0]
    if chosen_chat.soft:
        from backfire.models.soft import install_soft, read_soft

        install_soft(model, read_soft(checkpoint.path, chosen_chat.soft))
    return Loaded(model, tokenizer, Chat(tokenizer, chosen_chat))


def open_network(
    checkpoint: Checkpoint, *, device: str, dtype: DType, head: Head
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a checkpoint's model, adapters merged, in evaluation mode, and its tokenizer.

    Args:
        checkpoint: A model or adapter folder.
        device: See `pick_device`.
        dtype: Of the weights in memory.
        head: What the model ends in.

    Raises:
        CheckpointError: when the folder is missing, damaged, holds no safetensors, or lacks weights.
    """
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
    from transformers.utils import logging

    folder = checkpoint.base or checkpoint.path
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"loading a model from {folder}: there is no config.json; give a folder that "
            "`save_pretrained` wrote, a hub id or an asset name (`backfire list assets`)"
        )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    target = pick_device(device)
    chosen: Any = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype)
    if chosen is None:
        chosen = torch.float32 if target.type == "cpu" else "auto"
    options: dict[str, Any] = {
        "local_files_only": True,
        "trust_remote_code": checkpoint.trust_remote_code,
    }
    kind: Any = AutoModelForCausalLM if head == "next token" else AutoModelForSequenceClassification
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model, found = kind.from_pretrained(
            folder, dtype=chosen, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:
        if not _is_damage(error):
            raise
        raise CheckpointError(
            f"loading a model from {folder}: {error}. The folder must hold a model for {_TASKS[head]} as "
            "safetensors with its tokenizer; if it was downloaded, fetch it again (an asset: "
            "`backfire fetch --verify NAME`)"
        ) from error
    lacking = sorted(found["missing_keys"])
    if lacking:
        # They would be drawn at random, with a warning at most.
        raise CheckpointError(
            f"loading a model from {folder}: it is no model for {_TASKS[head]}, or damaged: the weights "
            f"{', '.join(lacking[:3])}{' and others' if len(lacking) > 3 else ''} are missing"
        )
    if checkpoint.base is not None:
        model = _merged(model, checkpoint.path)
    if tokenizer.pad_token_id is None:
        # Padding is masked by position, never by id, so borrowing a token is harmless.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = 0
    model.to(target).eval().requires_grad_(False)
    return model, tokenizer


def read_note(folder: Path) -> tuple[ChatFormat, dict[str, Any]]:
    """Return the chat format and the whole note of a folder; the defaults where it has none."""
    path = folder / NOTE
    if not path.is_file():
        return ChatFormat(), {}
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return ChatFormat(**note.get("chat", {})), note
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"reading {path}: {error}; it says under which chat format the model was trained. "
            "Restore it, or delete it to use the tokenizer's own template"
        ) from error


def context_length(config: PreTrainedConfig) -> int:
    """Return the longest sequence a model accepts, in tokens (a large number when unlimited)."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1 << 30


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    from peft import PeftModel

    if not (adapter / "adapter_config.json").is_file():
        raise CheckpointError(
            f"loading the adapter {adapter}: there is no adapter_config.json; attack again, or give "
            "the folder of a full model"
        )
    merged: PreTrainedModel = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return merged


def _is_damage(error: Exception) -> bool:
    """Tell a folder's fault from a bug of ours."""
    from safetensors import SafetensorError

    return isinstance(error, (OSError, ValueError, KeyError, SafetensorError, json.JSONDecodeError))
