"""The card's figures: one function each, the same rows in the same order as the main table.

Every figure shows intervals where there are any, the undefended control, and the metric's whole range.
A figure that cannot be drawn is a `Blank` with its reason, which the page prints in its place.
"""

from __future__ import annotations

from backfire.report.figures.budgets import budgets
from backfire.report.figures.lines import curve, similarity, trajectories
from backfire.report.figures.plane import heat_map, plane
from backfire.report.figures.rows import harm, tasks, taxonomy
from backfire.report.figures.search import searches
from backfire.report.figures.words import Blank
from backfire.report.grid import Grid
from backfire.report.svg import Picture

__all__ = ["Blank", "all_figures"]


def all_figures(grid: Grid) -> list[Picture | Blank]:
    """Return every figure in the card's order."""
    figures = [
        plane(grid),
        harm(grid),
        taxonomy(grid),
        tasks(grid),
        curve(grid),
        budgets(grid),
        trajectories(grid),
        similarity(grid),
    ]
    if len(grid.attacks) >= 4 and len(grid.defenses) >= 4:
        figures.insert(2, heat_map(grid))
    if (search := searches(grid)) is not None:
        figures.append(search)
    return figures
