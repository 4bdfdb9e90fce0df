"""Models that come with the package."""

from __future__ import annotations

import functools
from pathlib import Path

from backfire.errors import CheckpointError
from backfire.store import file_sha256

__all__ = ["SHIPPED", "shipped_model"]

SHIPPED = {
    "organism": {
        "model.safetensors": "",
        "tokenizer.json": "",
    },
}
"""Pinned SHA-256 of each model's large files."""


@functools.cache
def shipped_model(name: str) -> Path:
    """Return a shipped model's folder, its pinned files read whole.

    Raises:
        CheckpointError: when a file is missing or not the one that was shipped.
    """
    folder = Path(__file__).parent / name
    for file, wanted in SHIPPED[name].items():
        met = file_sha256(folder / file) if (folder / file).is_file() else "missing"
        if met != wanted:
            raise CheckpointError(
                f"opening the shipped model {name!r}: {folder / file} has SHA-256 {met}, pinned is "
                f"{wanted}; install backfire again"
            )
    return folder
