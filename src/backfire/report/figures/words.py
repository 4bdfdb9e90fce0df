"""What every figure shares: its width, how it names cells and numbers, and what stands in its absence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backfire.records import Measurement
from backfire.report.grid import Grid
from backfire.report.tables import counted
from backfire.report.untrusted import inert

__all__ = ["WIDTH", "Blank", "cell_name", "n_of", "said", "seeds_of", "short"]

WIDTH = 7.4
"""Inches; shown at about 710 CSS pixels, so that 8.5 points of text are read as 11."""


@dataclass(frozen=True)
class Blank:
    """A figure that is not there, and why."""

    title: str
    reason: str


def short(label: str, longest: int = 26) -> str:
    """Return a label on one line, cut to `longest` characters."""
    text = "undefended" if label == "none" else " ".join(inert(label).split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def cell_name(defense: str, attack: str) -> str:
    """Return a cell as a sentence names it."""
    what = "as released" if attack == "none" else f"after {inert(attack)}"
    return f"{'undefended' if defense == 'none' else inert(defense)}, {what}"


def said(m: Measurement, scale: float = 100) -> str:
    """Return a measurement with its interval and n, as tooltips say it."""
    value = "not measured" if m.value is None else f"{m.value * scale:.1f}"
    interval = (
        "" if m.low is None or m.high is None else f" [{m.low * scale:.1f}, {m.high * scale:.1f}]"
    )
    return f"{value}{interval}, n = {m.n}"


def n_of(measurements: Sequence[Measurement | None]) -> str:
    """Return the observations behind each pooled value, as a caption says it."""
    counts = {m.n for m in measurements if m is not None and m.value is not None}
    if not counts:
        return "n = 0"
    low, high = min(counts), max(counts)
    return f"n = {low:,} per cell" if low == high else f"n = {low:,} to {high:,} per cell"


def seeds_of(grid: Grid) -> str:
    """Return how many seeds the grid has, as a caption says it."""
    return counted(len(grid.seeds), "seed")
