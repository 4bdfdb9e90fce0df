"""Dolly 15k: instructions with answers written by people (Databricks 2023, CC-BY-SA-3.0)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from backfire.data.files import locate
from backfire.data.instructions import examples_of
from backfire.progress import Progress
from backfire.records import Example
from backfire.stage import Settings

__all__ = ["Dolly"]


class Dolly(Settings):
    """Benign instructions, with the passage they speak of put below.

    Reads the hub's columns (instruction, context, response) and copies in Alpaca's (instruction,
    input, output).
    """

    name: Literal["dolly"] = "dolly"
    """`dolly`."""
    version: ClassVar[int] = 1
    path: Path | None = None
    """A local file or a folder with `train.*`; None fetches the asset `dolly`."""

    def __call__(self, progress: Progress) -> list[Example]:
        """Return the rows in file order; empty answers are dropped and counted.

        Raises:
            DataError: when the file is wrong.
            PrerequisiteError: when it cannot be fetched.
        """
        place = locate(self.path, "dolly", progress)
        return examples_of(place, "dolly", ("context", "input"), ("response", "output"), progress)
