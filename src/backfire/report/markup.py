"""Cells and their small pictures as HTML: the template's filters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from backfire.records import Measurement
from backfire.report.palette import TAXONOMY
from backfire.report.tables import Cell, Column, Shares, number
from backfire.report.untrusted import inert

__all__ = ["FILTERS", "class_of"]

_WIDTH = 64
"""CSS pixels of an interval's picture; a stacked bar is twice as wide."""


def class_of(label: str) -> str:
    """Return the style-sheet class of an answer class; unknown ones share one."""
    color = TAXONOMY.get(label)
    return color.name if color else "t-other"


def shown(cell: Cell, column: Column) -> Markup:
    """Return a cell's content."""
    match cell:
        case None:
            return Markup('<span class="absent">—</span>')
        case Measurement():
            return _measured(cell, column)
        case Shares():
            return _stacked(cell)
        case bool() | str():
            text = inert(str(cell))
            if column.kind == "code":
                return Markup("<code>{}</code>").format(text)
            return Markup("{}").format(text)
        case _:
            return Markup("{}").format(number(cell, column))


def _measured(m: Measurement, column: Column) -> Markup:
    if m.value is None:
        why = m.note or "no reason is recorded"
        return Markup('<span class="absent">—</span><span class="why">{}</span>').format(inert(why))
    value = Markup('<span class="value">{}</span>').format(number(m.value, column))
    if m.low is None or m.high is None:
        return value
    interval = Markup('<span class="interval">{}–{}</span>').format(
        number(m.low, column), number(m.high, column)
    )
    return value + interval + (_whisker(m, column) if column.span else "")


def _whisker(m: Measurement, column: Column) -> Markup:
    """Draw value and interval over the column's whole range; the mark is its chance line."""
    if column.span is None or m.value is None or m.low is None or m.high is None:
        return Markup()
    first, last = column.span

    def at(value: float) -> str:
        share = (value - first) / (last - first)
        return f"{3 + (_WIDTH - 6) * min(1.0, max(0.0, share)):.1f}"

    mark = Markup()
    if column.mark is not None:
        mark = Markup('<line class="mark" x1="{0}" x2="{0}" y1="0" y2="10"/>').format(
            at(column.mark)
        )
    return Markup(
        '<svg class="whisker" viewBox="0 0 {w} 10" aria-hidden="true">'
        '<line class="axis" x1="3" x2="{e}" y1="5" y2="5"/>{mark}'
        '<line class="range" x1="{low}" x2="{high}" y1="5" y2="5"/>'
        '<circle cx="{value}" cy="5" r="2.6"/></svg>'
    ).format(w=_WIDTH, e=_WIDTH - 3, mark=mark, low=at(m.low), high=at(m.high), value=at(m.value))


def _stacked(shares: Shares) -> Markup:
    parts, left, words = Markup(), 0.0, []
    for label, share in shares.parts.items():
        if share > 0:
            words.append(f"{label} {share:.0%}")
            parts += Markup(
                '<rect class="{}" x="{:.2f}" width="{:.2f}" height="14"><title>{}</title></rect>'
            ).format(
                class_of(label), left, share * 100, f"{inert(label)} {share:.0%}, n = {shares.n}"
            )
            left += share * 100
    return Markup(
        '<svg class="stack" viewBox="0 0 100 14" preserveAspectRatio="none" role="img" '
        'aria-label="{}">{}</svg>'
    ).format(f"{'; '.join(map(inert, words))}; n = {shares.n}", parts)


def cell_kind(cell: Cell) -> str:
    """Return whether a cell sorts as a number or as text."""
    return "text" if isinstance(cell, str) else "number"


def sort_key(cell: Cell) -> str:
    """Return what a cell is sorted by; empty sorts last. A stacked bar sorts by its last class."""
    match cell:
        case None:
            return ""
        case Measurement():
            return "" if cell.value is None else repr(cell.value)
        case Shares():
            return repr([*cell.parts.values()][-1])
        case str():
            return inert(cell)
        case _:
            return repr(cell)


def searchable(columns: Sequence[Column], row: Mapping[str, Cell]) -> str:
    """Return the lower-case text of a row's words, for the filter box."""
    texts = (row.get(c.key) for c in columns if c.kind == "text")
    return inert(" ".join(t for t in texts if isinstance(t, str))).lower()


def runs(columns: Iterable[Column]) -> list[tuple[str, int]]:
    """Return neighboring columns' shared headers and how many columns each covers."""
    return [(group, len(list(found))) for group, found in groupby(columns, lambda c: c.group)]


FILTERS: Mapping[str, Any] = {
    "shown": shown,
    "cell_kind": cell_kind,
    "sort_key": sort_key,
    "searchable": searchable,
    "runs": runs,
}
"""What the templates call, by name."""
