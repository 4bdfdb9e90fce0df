"""A model folder under another chat format, without copying or changing it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from backfire.data.chat import ChatFormat
from backfire.errors import CheckpointError
from backfire.models.load import NOTE, read_note
from backfire.records import Checkpoint
from backfire.store import write_json

__all__ = ["ask_otherwise", "link_model"]


def link_model(source: Path, target: Path, chat: ChatFormat | None) -> Path:
    """Make `target` a folder of links to a model's files, and return it.

    Args:
        source: A model folder.
        target: The folder to make; what it held is replaced.
        chat: The format noted for whoever loads it. None keeps the source's own note.

    Raises:
        CheckpointError: when the source is no model folder.
    """
    if not (source / "config.json").is_file():
        raise CheckpointError(
            f"opening the model {source}: there is no config.json, so it is not a model folder; give a "
            "folder that `save_pretrained` wrote, a hub id or an asset name (`backfire list assets`)"
        )
    _link(source, target, but=NOTE if chat is not None else "")
    if chat is not None:
        write_json(target / NOTE, {"chat": chat.model_dump(mode="json")})
    return target


def ask_otherwise(checkpoint: Checkpoint, target: Path, chat: ChatFormat) -> Checkpoint:
    """Return the same weights, in a folder of links, under another chat format.

    The note keeps what it says of how the weights were made. A soft suffix writes its vectors into the
    folder afterwards.

    Args:
        checkpoint: A model or adapter folder; untouched.
        target: The folder to make; what it held is replaced.
        chat: How the model is asked from now on.
    """
    _, note = read_note(checkpoint.path)
    _link(checkpoint.path, target, but=NOTE)
    write_json(target / NOTE, {**note, "chat": chat.model_dump(mode="json")})
    return replace(checkpoint, path=target)


def _link(source: Path, target: Path, *, but: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    for path in sorted(path for path in source.iterdir() if path.is_file()):
        if path.name != but:
            (target / path.name).symlink_to(path.resolve())
