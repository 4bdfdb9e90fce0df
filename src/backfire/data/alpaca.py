"""Alpaca: 52,002 instructions with model-written answers (Taori et al. 2023, CC-BY-NC-4.0)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from backfire.data.files import locate
from backfire.data.instructions import examples_of
from backfire.progress import Progress
from backfire.records import Example
from backfire.stage import Settings

__all__ = ["Alpaca"]


class Alpaca(Settings):
    """Benign instructions; the other half of SDD's response pool in the paper.

    The prompt is the instruction, followed by a blank line and the input where there is one. Headings
    such as "### Instruction:" belong to the chat format (`alpaca`), not to the row.
    """

    name: Literal["alpaca"] = "alpaca"
    """`alpaca`."""
    version: ClassVar[int] = 1
    path: Path | None = None
    """A local file or a folder with `train.*`; None fetches the asset `alpaca`."""

    def __call__(self, progress: Progress) -> list[Example]:
        """Return the rows in file order; empty answers are dropped and counted.

        Raises:
            DataError: when the file is wrong.
            PrerequisiteError: when it cannot be fetched.
        """
        place = locate(self.path, "alpaca", progress)
        return examples_of(place, "alpaca", ("input",), ("output",), progress)
