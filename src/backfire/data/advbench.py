"""AdvBench: 520 harmful behaviors with the opening of a compliant answer (Zou et al. 2023, MIT)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from backfire.data.files import Row, locate, read
from backfire.progress import Progress
from backfire.records import Example
from backfire.stage import Settings

__all__ = ["AdvBench"]

_PROMPTS = ("goal", "prompt", "content")
_TARGETS = ("target", "response")


class AdvBench(Settings):
    """Harmful instructions, with the first words of a compliant answer where the copy has them.

    Reads the authors' CSV with or without its header, and mirrors with the columns prompt/target or a
    list `content` whose first item is the prompt.
    """

    name: Literal["advbench"] = "advbench"
    """`advbench`."""
    version: ClassVar[int] = 1
    path: Path | None = None
    """A local file or a folder with `train.*`; None fetches the asset `advbench`."""

    def __call__(self, progress: Progress) -> list[Example]:
        """Return the rows in file order.

        Raises:
            DataError: when the file is wrong.
            PrerequisiteError: when it cannot be fetched.
        """
        folder = locate(self.path, "advbench", progress)
        rows = read(folder, headless=("goal", "target"), marks=(*_PROMPTS, *_TARGETS))
        return [
            Example(
                _prompt(row),
                row.text(*_TARGETS, default=""),
                source="advbench",
                harmful=True,
                categories=tuple(row.values.get("categories") or ()),
            )
            for row in rows
        ]


def _prompt(row: Row) -> str:
    found = row.value(*_PROMPTS)
    first = found[0] if isinstance(found, list) and found else found
    if not isinstance(first, str) or not first.strip():
        raise row.wrong(_PROMPTS, found, "a prompt")
    return first
