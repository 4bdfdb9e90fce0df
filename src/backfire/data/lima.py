"""LIMA: 1,030 curated conversations (Zhou et al. 2023; gated, CC-BY-NC-SA-4.0 or stricter)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from backfire.data.files import locate, read
from backfire.data.turns import examples_of
from backfire.progress import Progress
from backfire.records import Example
from backfire.stage import Settings

__all__ = ["Lima"]

_TERMS = "https://huggingface.co/datasets/GAIR/lima"


class Lima(Settings):
    """Benign instructions with high-quality answers; half of SDD's response pool in the paper."""

    name: Literal["lima"] = "lima"
    """`lima`."""
    version: ClassVar[int] = 1
    path: Path | None = None
    """A local file or a folder with `train.*`; None fetches the asset `lima`, which needs access."""
    turns: Literal["first", "all"] = "first"
    """`first` takes each conversation's first question and answer; `all` takes every one as a row of
    its own, without what was said before. Ours: only the first can be read by itself."""

    def __call__(self, progress: Progress) -> list[Example]:
        """Return questions with the answer that follows; test rows without an answer are dropped.

        Raises:
            DataError: when the file is wrong.
            PrerequisiteError: when it cannot be fetched; says how to get access.
        """
        rows = read(locate(self.path, "lima", progress, terms=_TERMS))
        conversations = []
        for row in rows:
            texts = row.value("conversations")
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise row.wrong(("conversations",), texts, "a list of texts")
            # Questions stand at even places, counted from zero, answers at odd ones.
            conversations.append(list(zip(texts[::2], texts[1::2], strict=False)))
        return examples_of(conversations, "lima", self.turns, progress)
