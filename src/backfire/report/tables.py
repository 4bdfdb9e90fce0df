"""Tables with typed cells, written as CSV and Markdown and shown in the page.

A table is the same three times: every number of the page stands in the CSV with its interval, its n
and its count of absent observations.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from backfire.records import Measurement
from backfire.report.untrusted import markdown_cell, spreadsheet_cell

__all__ = ["Cell", "Column", "Kind", "Shares", "Table", "counted", "listed", "number"]


@dataclass(frozen=True)
class Shares:
    """How a whole divides, e.g. answers over the classes of the taxonomy."""

    parts: Mapping[str, float]
    """Share of each part, in [0, 1], in the order they are stacked."""
    n: int


Cell = str | int | float | Measurement | Shares | None
Kind = Literal["text", "number", "code", "prose"]


@dataclass(frozen=True)
class Column:
    """What stands below one header."""

    key: str
    title: str
    hint: str = ""
    """Unit, range and direction, printed in the header; one thought a line."""
    group: str = ""
    """A header shared by neighboring columns."""
    scale: float = 1.0
    """Values are shown times this (100 for percent)."""
    digits: int = 0
    """Decimals shown."""
    span: tuple[float, float] | None = None
    """Range (before scaling) of the small interval drawn below the number; None draws none."""
    mark: float | None = None
    """A reference within that range: the chance line."""
    kind: Kind = "number"
    """`prose` is running text: it wraps, and is neither sorted nor searched."""


@dataclass(frozen=True)
class Table:
    """Columns, rows of cells by column key, and what must be said below."""

    name: str
    """File name without suffix."""
    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Cell]]
    caption: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
    tall: bool = False
    """Long tables get a filter box in the page."""

    def csv(self) -> str:
        """Return the table as CSV: unscaled numbers at full precision, one header line."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        wide = [_spread(column, self.rows) for column in self.columns]
        writer.writerow([name for names in wide for name in names])
        for row in self.rows:
            flat: list[object] = []
            for column, names in zip(self.columns, wide, strict=True):
                flat.extend(_flat(row.get(column.key), names))
            writer.writerow(flat)
        return buffer.getvalue()

    def markdown(self) -> str:
        """Return the table as a Markdown table, numbers as the page shows them."""
        heads = [
            markdown_cell(
                " ".join(
                    filter(
                        None,
                        [c.group, c.title, f"({c.hint.replace(chr(10), ', ')})" if c.hint else ""],
                    )
                )
            )
            for c in self.columns
        ]
        rules = ["---" if c.kind != "number" else "--:" for c in self.columns]
        body = [_line([_said(row.get(c.key), c) for c in self.columns]) for row in self.rows]
        notes = [f"\n{markdown_cell(note)}" for note in self.notes]
        return "\n".join([_line(heads), _line(rules), *body, *notes]) + "\n"


def counted(count: float, noun: str) -> str:
    """Return a count with its noun, in the plural where it must be.

    >>> counted(1, "epoch"), counted(3, "seed")
    ('1 epoch', '3 seeds')
    """
    return f"{count:g} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def number(value: float, column: Column) -> str:
    """Return a number as the page shows it."""
    shown = f"{value * column.scale:,.{column.digits}f}"
    return (
        shown.removeprefix("-") if float(shown.replace(",", "")) == 0 else shown.replace("-", "−")
    )


def _said(cell: Cell, column: Column) -> str:
    match cell:
        case None:
            return "—"
        case Measurement():
            return _measured(cell, column)
        case Shares():
            return ", ".join(
                f"{part} {share:.0%}" for part, share in cell.parts.items() if share > 0
            )
        case bool() | str():
            return markdown_cell(str(cell)) or "—"
        case _:
            return number(cell, column)


def _measured(cell: Measurement, column: Column) -> str:
    if cell.value is None:
        return "—"
    if cell.low is None or cell.high is None:
        return number(cell.value, column)
    low, high = number(cell.low, column), number(cell.high, column)
    return f"{number(cell.value, column)} [{low}, {high}]"


_MEASURED = ("", "_low", "_high", "_n", "_absent", "_note")


def _spread(column: Column, rows: Sequence[Mapping[str, Cell]]) -> list[str]:
    """Return the CSV columns one column needs."""
    cells = [row.get(column.key) for row in rows]
    if any(isinstance(cell, Measurement) for cell in cells):
        return [column.key + tail for tail in _MEASURED]
    shares = [cell for cell in cells if isinstance(cell, Shares)]
    if shares:
        return [*(f"{column.key}: {part}" for part in shares[0].parts), f"{column.key}_n"]
    return [column.key]


def _flat(cell: Cell, names: Sequence[str]) -> list[object]:
    match cell:
        case None:
            return [""] * len(names)
        case Measurement():
            note = spreadsheet_cell(cell.note)
            return [cell.value, cell.low, cell.high, cell.n, cell.num_absent, note]
        case Shares():
            return [*cell.parts.values(), cell.n]
        case str():
            return [spreadsheet_cell(cell)]
        case _:
            return [cell]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
