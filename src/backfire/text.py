"""Plain text for the terminal: aligned tables, sizes, paragraphs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

__all__ = ["paragraph", "size", "table"]


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows under a header, columns aligned, numbers to the right.

    >>> print(table(["what", "n"], [["a", 1], ["bb", 20]]))
    what   n
    ----  --
    a      1
    bb    20
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = [
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(row, widths, right, strict=True)
        ]
        return "  ".join(parts).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *(line(row) for row in cells)])


def size(count: float | None) -> str:
    """Return bytes as people say them.

    >>> size(1536)
    '1.5 KiB'
    """
    if count is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def paragraph(text: str, indent: str = "") -> str:
    """Return text in lines of at most 96 characters."""
    words = " ".join(text.split())
    return textwrap.fill(words, 96, initial_indent=indent, subsequent_indent=indent)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
