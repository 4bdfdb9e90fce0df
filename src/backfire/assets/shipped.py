"""Models that come with the package: always there, and checked before they are used."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backfire.errors import CheckpointError
from backfire.store import file_sha256

__all__ = ["SHIPPED", "Shipped", "shipped_model", "shipped_problems"]


@dataclass(frozen=True)
class Shipped:
    """A model in a folder beside this module."""

    summary: str
    """What it is, on one line."""
    sha256: Mapping[str, str]
    """Pinned hash of each file that decides its numbers."""


SHIPPED = {
    "organism": Shipped(
        "The model organism: 2 million parameters, an invented world, hazards it knows and refuses",
        {
            "model.safetensors": "d057982d5b92110fb83d29d0bd58a91a0cec47bc010569275c954708c4df7468",
            "tokenizer.json": "f73eda507dddbc71477a46561da7688f180af5147c9303e570d22144a284f346",
        },
    ),
}
"""By name; none of these names is a catalog's."""


@functools.cache
def shipped_model(name: str) -> Path:
    """Return a shipped model's folder, its pinned files read whole.

    Raises:
        CheckpointError: when a file is missing or not the one that was shipped.
    """
    wrong = shipped_problems(name)
    if wrong:
        raise CheckpointError(
            f"opening the shipped model {name!r} in {_folder(name)}: {'; '.join(wrong)}; install "
            "backfire again"
        )
    return _folder(name)


def shipped_problems(name: str) -> list[str]:
    """Return what differs from the pinned files; empty when nothing does."""
    wrong = []
    for file, pinned in SHIPPED[name].sha256.items():
        path = _folder(name) / file
        met = file_sha256(path) if path.is_file() else ""
        if not met:
            wrong.append(f"{file} is missing")
        elif met != pinned:
            wrong.append(f"{file} has SHA-256 {met}, pinned is {pinned}")
    return wrong


def _folder(name: str) -> Path:
    return Path(__file__).parent / name
