"""The benign instruction-answer pairs that come with the package, written for it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from backfire.data.files import read
from backfire.progress import Progress
from backfire.records import Example
from backfire.stage import Settings

__all__ = ["Pool"]

_FILE = Path(__file__).parent / "pool" / "benign.jsonl"


class Pool(Settings):
    """About 300 benign instructions with good answers of 25 to 70 words, on two dozen topics."""

    name: Literal["pool"] = "pool"
    """`pool`."""
    version: ClassVar[int] = 1

    def __call__(self, progress: Progress) -> list[Example]:
        """Return the pairs in file order."""
        return [
            Example(row.text("prompt"), row.text("response"), source="pool") for row in read(_FILE)
        ]
