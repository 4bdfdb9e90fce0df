"""ShareGPT-form files: `{"conversations": [{"from": "human", "value": ...}, ...]}`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

from backfire.data.files import Row, read
from backfire.data.turns import examples_of
from backfire.errors import DataError
from backfire.progress import Progress
from backfire.records import Example
from backfire.stage import Settings

__all__ = ["ShareGPT"]

_SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "system": "system",
}  # fmt: skip


class ShareGPT(Settings):
    """Benign conversations of a local file in ShareGPT's form; the SDD paper's benign fine-tuning."""

    name: Literal["sharegpt"] = "sharegpt"
    """`sharegpt`."""
    version: ClassVar[int] = 1
    path: Path
    """A local `.jsonl`, `.json` or `.parquet` file; the collection has no official copy to fetch."""
    turns: Literal["first", "all"] = "first"
    """`first` takes each conversation's first question and answer; `all` takes every one as a row of
    its own, without what was said before. Ours: only the first can be read by itself."""

    def __call__(self, progress: Progress) -> list[Example]:
        """Return questions with the answer that follows; a system turn in front is kept.

        Conversations that do not begin with a question and its answer (fragments) are dropped and
        counted.

        Raises:
            DataError: when the file is wrong, or nothing is left.
        """
        systems: list[str | None] = []
        conversations = []
        for row in read(self.path):
            said = _said(row)
            has_system = bool(said) and said[0][0] == "system"
            systems.append(said[0][1] if has_system else None)
            said = said[has_system:]
            starts_well = [who for who, _ in said[:2]] == ["user", "assistant"]
            conversations.append(
                [
                    (text, answer)
                    for (who, text), (next_who, answer) in pairwise(said)
                    if (who, next_who) == ("user", "assistant")
                ]
                if starts_well
                else []
            )
        return examples_of(conversations, "sharegpt", self.turns, progress, systems)


def _said(row: Row) -> list[tuple[str, str]]:
    turns = row.value("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise row.wrong(("conversations",), turns, "a list of {from, value} objects")
    said = []
    for number, turn in enumerate(turns, 1):
        speaker, text = turn.get("from"), turn.get("value")
        if speaker not in _SPEAKERS or not isinstance(text, str):
            raise DataError(
                f"reading {row.where}: turn {number} must hold `from` (one of "
                f"{', '.join(_SPEAKERS)}) and a text `value`; met {turn!s:.60}"
            )
        said.append((_SPEAKERS[speaker], text))
    return said
