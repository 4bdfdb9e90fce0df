"""HEx-PHI: harmful instructions by policy category (Qi et al. 2023; gated, its own license).

The paper speaks of 11 categories of 30; the public release has 10, the second one is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from backfire.data.files import Row, locate, read
from backfire.errors import DataError
from backfire.progress import Progress
from backfire.records import Example
from backfire.stage import Settings

__all__ = ["HExPHI"]

_TERMS = "https://huggingface.co/datasets/LLM-Tuning-Safety/HEx-PHI"

_CATEGORIES = {
    "1": "illegal activity",
    "2": "child abuse content",
    "3": "hate/harass/violence",
    "4": "malware",
    "5": "physical harm",
    "6": "economic harm",
    "7": "fraud/deception",
    "8": "adult content",
    "9": "political campaigning",
    "10": "privacy violation activity",
    "11": "tailored financial advice",
}


class HExPHI(Settings):
    """Harmful instructions without answers; for evaluation, or as prompts of a defense."""

    name: Literal["hexphi"] = "hexphi"
    """`hexphi`."""
    version: ClassVar[int] = 1
    path: Path | None = None
    """A folder of the release's `category_<n>.csv` files, or of a `test.*` file with the columns
    prompt and category, or such a file; None fetches the asset `hex-phi`, which needs access."""

    def __call__(self, progress: Progress) -> list[Example]:
        """Return the instructions, category by category.

        Raises:
            DataError: when the files are wrong.
            PrerequisiteError: when it cannot be fetched; says how to get access.
        """
        place = locate(self.path, "hex-phi", progress, terms=_TERMS)
        released = [
            (number, path)
            for number in _CATEGORIES
            if (path := place / f"category_{number}.csv").is_file()
        ]
        if not released:
            return [_example(row, row.text("category")) for row in read(place, "test")]
        return [
            _example(row, number)
            for number, path in released
            for row in read(path, headless=("prompt",), marks=("prompt",))
        ]


def _example(row: Row, category: str) -> Example:
    name = _CATEGORIES.get(category.removeprefix("category_"), category)
    if name not in _CATEGORIES.values():
        raise DataError(
            f"reading {row.where}: the category must be a number from 1 to 11 or a name of HEx-PHI; "
            f"met {category!r}. Read other files with the source `table`"
        )
    return Example(row.text("prompt").strip(), source="hexphi", harmful=True, categories=(name,))
