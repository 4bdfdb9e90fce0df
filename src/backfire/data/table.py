"""Any JSONL, JSON, CSV or Parquet file whose columns the user names."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from backfire.data.files import Row, read
from backfire.progress import Progress
from backfire.records import Example
from backfire.stage import Settings

__all__ = ["Table"]


class Table(Settings):
    """Rows of a local file, with named columns."""

    name: Literal["table"] = "table"
    """`table`."""
    version: ClassVar[int] = 1
    later: ClassVar[frozenset[str]] = frozenset({"plain"})
    path: Path
    """A `.jsonl`, `.json` (one array), `.csv` or `.parquet` file; the first three also `.gz`."""
    harmful: bool
    """Whether complying with these prompts is harmful. No default: a wrong guess would train a model
    to refuse benign prompts, or to answer hazards."""
    prompt: str = "prompt"
    """Column of the prompt. Ours."""
    response: str | None = None
    """Column of the answer (for hazards, the compliant one); None: there are none."""
    refusal: str | None = None
    """Column of the refusal; None: there are none."""
    category: str | None = None
    """Column of the category, a text or a list of texts; None: there are none."""
    entity: str | None = None
    """Column of what the prompt is about, by which roles are kept apart; None: there is none."""
    system: str | None = None
    """Column of a system turn; None: there are none."""
    plain: bool = False
    """Whether the rows are texts outside any conversation, trained on as they stand: the response goes on
    where the prompt ends. Ours: they are conversations."""

    def __call__(self, progress: Progress) -> list[Example]:
        """Return the rows in file order; rows with an empty prompt are dropped and counted.

        Raises:
            DataError: when the file is wrong, or lacks a named column.
        """
        rows = read(self.path)
        found = [self._example(row) for row in rows if row.text(self.prompt).strip()]
        if len(found) < len(rows):
            progress.say(
                f"{self.path.name}: {len(rows) - len(found)} of {len(rows)} rows dropped whose prompt is "
                "empty"
            )
        return found

    def _example(self, row: Row) -> Example:
        return Example(
            row.text(self.prompt),
            _optional(row, self.response),
            source=self.path.name,
            harmful=self.harmful,
            refusal=_optional(row, self.refusal),
            categories=self._categories(row),
            entity=_optional(row, self.entity),
            system=_optional(row, self.system) or None,
            plain=self.plain,
        )

    def _categories(self, row: Row) -> tuple[str, ...]:
        if self.category is None:
            return ()
        found = row.value(self.category)
        labels = [found] if isinstance(found, str) else found or []
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise row.wrong((self.category,), found, "a text or a list of texts")
        return tuple(label for label in labels if label)


def _optional(row: Row, column: str | None) -> str:
    """Return a named column's text, empty where it is null or no column is named."""
    if column is None:
        return ""
    return "" if row.value(column) is None else row.text(column)
