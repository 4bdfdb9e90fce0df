"""A few exchanges of every cell, without their text unless it was asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backfire.report.grid import NOT_CLASSIFIED, Grid
from backfire.report.untrusted import inert

__all__ = ["CellSamples", "Sample", "samples"]

_PER_CELL = 3
_LONGEST = 4000
"""Characters of one text shown."""


@dataclass(frozen=True)
class Sample:
    """One exchange, with what is said of it."""

    prompt_id: str
    categories: str
    num_tokens: int
    characters: int
    finished: bool
    label: str
    verdicts: Sequence[tuple[str, str]]
    """Judge and what it said, or why it said nothing."""
    prompt: str | None = None
    """None when redacted."""
    response: str | None = None


@dataclass(frozen=True)
class CellSamples:
    """The samples of one cell."""

    defense: str
    attack: str
    seed: int
    exchanges: Sequence[Sample]


def samples(grid: Grid, *, show_text: bool) -> list[CellSamples]:
    """Return the same few hazards in every cell (the first seed's), chosen by their ids alone."""
    cells: dict[tuple[str, str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for row in grid.run.rows("exchanges"):
        if row["harmful"]:
            cells[row["attack"], row["defense"], row["seed"]].append(row)
    said: dict[tuple[Any, ...], list[tuple[str, str]]] = defaultdict(list)
    for row in grid.run.rows("verdicts"):
        said[_key(row)].append((row["judge"], _verdict(row)))
    labels = {_key(row): str(row["label"] or NOT_CLASSIFIED) for row in grid.run.rows("labels")}
    shown = []
    for attack in grid.attacks:
        for defense in grid.defenses:
            seeds = [seed for a, d, seed in cells if (a, d) == (attack, defense)]
            if not seeds:
                continue
            rows = sorted(cells[attack, defense, min(seeds)], key=lambda row: str(row["prompt_id"]))
            exchanges = [
                _sample(row, said, labels, show_text=show_text) for row in rows[:_PER_CELL]
            ]
            shown.append(CellSamples(defense, attack, min(seeds), exchanges))
    return shown


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["attack"], row["defense"], row["seed"], row["prompt_id"]


def _verdict(row: Mapping[str, Any]) -> str:
    if row["absent"]:
        return f"absent: {row['absent']}"
    word = "harmful" if row["harmful"] else "not harmful"
    return word if row["score"] is None else f"{word} ({row['score']:.2f})"


def _sample(
    row: Mapping[str, Any],
    said: Mapping[tuple[Any, ...], Sequence[tuple[str, str]]],
    labels: Mapping[tuple[Any, ...], str],
    *,
    show_text: bool,
) -> Sample:
    return Sample(
        prompt_id=row["prompt_id"],
        categories=", ".join(row["categories"] or ()),
        num_tokens=row["num_tokens"],
        characters=len(row["response"]),
        finished=bool(row["finished"]),
        label=labels.get(_key(row), NOT_CLASSIFIED),
        verdicts=tuple(said.get(_key(row), ())),
        prompt=inert(row["prompt"], _LONGEST) if show_text else None,
        response=inert(row["response"], _LONGEST) if show_text else None,
    )
