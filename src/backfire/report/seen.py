"""Which data each method saw: in words, and where that makes a comparison unfair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backfire.report.grid import Grid
from backfire.report.tables import listed

__all__ = ["seen", "unequal"]

_HARMFUL_ANSWERS = "defender_harm"
"""The role whose rows show a defense how a hazard is complied with."""

_WORDS = {
    "defense": "harmful prompts",
    _HARMFUL_ANSWERS: "harmful answers",
    "attacker": "harmful answers",
    "pool": "benign pairs",
    "benign": "benign pairs",
}


def seen(grid: Grid, kind: str, label: str) -> str:
    """Return what a method of the run saw, e.g. `350 harmful prompts, 112 harmful answers`.

    Args:
        grid: The run.
        kind: `align`, `defense` or `attack`.
        label: The method's.
    """
    rows = _read(grid, kind).get(label)
    if rows is None:
        return "not recorded"
    if rows == {}:
        return "not known" if kind == "defense" else ""
    return ", ".join(f"{n:,} {_WORDS.get(role, role)}" for role, n in rows.items() if n)


def unequal(grid: Grid) -> str:
    """Return a warning when some defenses saw harmful answers and others did not; empty otherwise."""
    read = {label: rows for label, rows in _read(grid, "defense").items() if rows}
    answers = [label for label, rows in read.items() if rows.get(_HARMFUL_ANSWERS)]
    prompts = [label for label in read if label not in answers]
    if not answers or not prompts:
        return ""
    return (
        f"Unequal data: {listed(answers)} trained on harmful answers, {listed(prompts)} did not. A "
        "difference between the two groups may be that of their data, not of their methods; only "
        "defenses within a group compare fairly."
    )


def _read(grid: Grid, kind: str) -> dict[str, Mapping[str, Any]]:
    """Return rows by role of each method of a kind, by label."""
    found = grid.run.manifest.get("reads") or ()
    return {str(row["label"]): row["rows"] for row in found if row["kind"] == kind}
