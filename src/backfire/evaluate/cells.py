"""The rows of all cells as arrays: one table a quantity, all cells over the same seeds and items.

>>> cells = Cells({"losses": [{"defense": "none", "attack": "none", "seed": 0, "id": "a", "nll": 2.0}]})
>>> nll = cells.panel(cells.rows("losses"), lambda row: (row["id"], row["nll"]))
>>> nll.values["none", "none"].tolist()
[[2.0]]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from backfire.evaluate.statistics import Array

__all__ = ["CLEAN", "CONTROL", "Cells", "Panel", "Place"]

Place = tuple[str, str]
"""Labels of a defense and an attack."""

CONTROL = "none"
"""Label of the undefended model, and of the state before any attack."""

CLEAN: Place = (CONTROL, CONTROL)
"""The undefended model before any attack: what everything is compared with."""

_MEASURED = ("verdicts", "labels", "answers", "losses")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """One quantity in every cell."""

    items: tuple[str, ...]
    """Prompts, questions or texts, the same of every cell."""
    values: dict[Place, Array]
    """(S, I) for each place; NaN where there is no observation."""
    absent: dict[tuple[Place, int], int]
    """Rows without a value, by place and index of the seed."""


class Cells:
    """The tables of a run, read cell by cell."""

    def __init__(self, tables: Mapping[str, Sequence[Row]]) -> None:
        """Take the rows by table name; each has the columns defense, attack, seed of its cell."""
        self._tables = tables

    def rows(self, table: str) -> Sequence[Row]:
        """Return a table's rows; none when the run has no such table."""
        return self._tables.get(table, ())

    def rows_by(self, table: str, column: str) -> dict[str, list[Row]]:
        """Return a table's rows by a column's values, in order of appearance."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows(table):
            groups.setdefault(str(row[column]), []).append(row)
        return groups

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Return the seeds of the run."""
        return tuple(sorted({seed for _, _, seed in self._measured}))

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Return defenses and attacks, in order of appearance, the control and the clean first."""
        met = dict.fromkeys((defense, attack) for defense, attack, _ in self._measured)
        return tuple(sorted(met, key=lambda place: (place[0] != CONTROL, place[1] != CONTROL)))

    @cached_property
    def defenses(self) -> tuple[str, ...]:
        """Return the defenses' labels without the control."""
        return tuple(dict.fromkeys(d for d, _ in self.places if d != CONTROL))

    @cached_property
    def attacks(self) -> tuple[str, ...]:
        """Return the attacks' labels without the unattacked state."""
        return tuple(dict.fromkeys(a for _, a in self.places if a != CONTROL))

    def with_status(self, status: str) -> dict[str, str]:
        """Return the reason of each cell with a status (`failed`, `diverged`), by `defense/attack/seed`."""
        return {
            f"{row['defense']}/{row['attack']}/seed{row['seed']}": str(row.get("reason") or "")
            for row in self.rows("cells")
            if row.get("status") == status
        }

    def fact(self, defense: str, attack: str, column: str) -> Any:
        """Return a column of table `cells` at a place: of numbers the mean over seeds; None: not given."""
        found = [
            row[column]
            for row in self.rows("cells")
            if (row["defense"], row["attack"]) == (defense, attack) and row.get(column) is not None
        ]
        if not found or isinstance(found[0], str):
            return found[0] if found else None
        return sum(found) / len(found)

    def distinct(self, place: Place) -> list[int]:
        """Return the indices of the seeds whose models differ: one model can serve several seeds."""
        first: dict[str, int] = {}
        for index, seed in enumerate(self.seeds):
            if (*place, seed) in self._measured:
                first.setdefault(self._models.get((*place, seed), str(seed)), index)
        return sorted(first.values())

    @cached_property
    def _measured(self) -> dict[tuple[str, str, int], None]:
        """Return the cells that anything was measured of, in order of appearance."""
        return dict.fromkeys(
            (str(row["defense"]), str(row["attack"]), int(row["seed"]))
            for table in _MEASURED
            for row in self.rows(table)
        )

    @cached_property
    def _models(self) -> dict[tuple[str, str, int], str]:
        return {
            (str(row["defense"]), str(row["attack"]), int(row["seed"])): str(row["model"])
            for row in self.rows("cells")
            if row.get("model")
        }

    def panel(self, rows: Sequence[Row], read: Callable[[Row], tuple[str, float | None]]) -> Panel:
        """Return one quantity in every cell.

        Args:
            rows: Those it is told by.
            read: From a row to the item it is about and the value, None where that is absent.
        """
        found = [(row, *read(row)) for row in rows]
        items = tuple(sorted({item for _, item, _ in found}))
        column = {item: index for index, item in enumerate(items)}
        line = {seed: index for index, seed in enumerate(self.seeds)}
        values: dict[Place, Array] = {}
        absent: dict[tuple[Place, int], int] = {}
        for row, item, value in found:
            place, seed = (str(row["defense"]), str(row["attack"])), line[int(row["seed"])]
            if place not in values:
                values[place] = np.full((len(line), len(items)), np.nan)
            if value is None:
                absent[place, seed] = absent.get((place, seed), 0) + 1
            else:
                values[place][seed, column[item]] = value
        return Panel(items, values, absent)
