"""Weights that a stage changes, with training or without: opened, and written with tokenizer and note."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backfire import __version__
from backfire.engine.effect import edited
from backfire.errors import ConfigError
from backfire.models.load import NOTE, DType, Loaded, load, pick_device, read_note
from backfire.records import Checkpoint
from backfire.store import content_key, replace_folder, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from backfire.data.chat import ChatFormat
    from backfire.engine.settings import Member
    from backfire.stage import Bench

__all__ = ["complete", "open_weights", "write_budget", "write_edited"]


def open_weights(
    label: str,
    checkpoint: Checkpoint,
    *,
    device: str,
    dtype: DType = "fp32",
    chat: ChatFormat | None = None,
) -> Loaded:
    """Load a checkpoint whose weights are to move.

    Args:
        label: What the stage is called in front of the user.
        checkpoint: A model or adapter folder.
        device: Where to.
        dtype: Of the weights in memory.
        chat: Format to use; None takes the checkpoint's.

    Raises:
        ConfigError: when the model is asked with learned vectors, which belong to its weights as they are.
    """
    if (chat or read_note(checkpoint.path)[0]).soft:
        raise ConfigError(
            f"{label}: the model is asked with a learned soft suffix, which weights that move would leave "
            "behind; let the soft suffix come last"
        )
    return load(checkpoint, device=device, dtype=dtype, chat=chat)


def complete(
    folder: Path, loaded: Loaded, note: Mapping[str, Any], chat: ChatFormat | None = None
) -> None:
    """Add to a folder of weights its tokenizer, and a note that begins with version and chat format.

    Args:
        folder: To complete.
        loaded: The model that the weights are of.
        note: What else to note.
        chat: Format to note; None: the one the model was loaded with.
    """
    tokenizer = loaded.tokenizer
    if not tokenizer.chat_template:
        tokenizer.chat_template = loaded.chat.template
    tokenizer.save_pretrained(folder)
    asked = (chat or loaded.chat.format).model_dump(mode="json")
    write_json(folder / NOTE, {"backfire": __version__, "chat": asked, **note})


def write_budget(
    folder: Path, model: PreTrainedModel, *, steps: int, forward: int, backward: int = 0
) -> None:
    """Write what an attack without a training took, which grids show beside what trainings take.

    Args:
        folder: The stage's.
        model: Whose weights were used, N of them: 2 N FLOPs a token and pass, as none gets a gradient.
        steps: Of an optimizer.
        forward: Tokens that went forward.
        backward: Tokens that went backward.
    """
    weights = sum(parameter.numel() for parameter in model.parameters())
    flops = 2.0 * weights * (forward + backward)
    write_json(folder / "budget.json", {"steps": steps, "tokens": forward, "flops": flops})


def write_edited(
    checkpoint: Checkpoint,
    bench: Bench,
    method: Member,
    loaded: Loaded,
    began: float,
    **facts: Any,
) -> Checkpoint:
    """Write weights that were changed without training, and how far they moved; return the checkpoint.

    Args:
        checkpoint: Where they began.
        bench: Where to write.
        method: Who changed them.
        loaded: The changed model, whole.
        began: When the stage began, by `time.monotonic`.
        facts: What the note should say besides.
    """
    device = str(pick_device(bench.device))
    folder = bench.workdir / "checkpoint"
    key = content_key(checkpoint.key, method, facts, bench.seed)
    after = dict(loaded.model.named_parameters())
    effect = edited(method.label, checkpoint, after, time.monotonic() - began, device)
    with replace_folder(folder) as new:
        loaded.model.save_pretrained(new)
        note = {
            "method": method.model_dump(mode="json"),
            "parent": checkpoint.key,
            "key": key,
            "seed": bench.seed,
            **facts,
            "effect": asdict(effect),
        }
        complete(new, loaded, note)
    write_json(bench.workdir / "effect.json", effect)
    if effect.warning:
        bench.progress.warn(f"{bench.label or method.label}: {effect.warning}")
    return replace(checkpoint, path=folder, key=key, base=None)
