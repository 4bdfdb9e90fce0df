"""The grid of defenses, attacks and seeds, with everything measured in it, ready to be looked up."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from backfire.records import BUDGETS, Measurement
from backfire.report.metrics import task_of
from backfire.report.palette import TAXONOMY
from backfire.report.run import Run
from backfire.report.tables import Shares

__all__ = ["CONTROL", "Grid"]

CONTROL = "none"
"""Label of the undefended model and of the state before any attack."""

NOT_CLASSIFIED = "not classified"
"""Shown for an answer whose class is absent."""

_FIELDS = {f.name for f in dataclasses.fields(Measurement)}


class Grid:
    """A run's measurements by metric, defense, attack and seed."""

    def __init__(self, run: Run) -> None:
        """Index the run's measurements."""
        self.run = run
        rows = run.conclusion.get("measurements") or run.rows("measurements")
        self.measurements = [
            Measurement(**{k: v for k, v in row.items() if k in _FIELDS}) for row in rows
        ]
        self._pooled: dict[tuple[str, str, str], Measurement] = {}
        self._single: dict[tuple[str, str, str], list[Measurement]] = defaultdict(list)
        for m in self.measurements:
            if m.seed is None:
                self._pooled[m.metric, m.defense, m.attack] = m
            else:
                self._single[m.metric, m.defense, m.attack].append(m)

    def get(self, metric: str, defense: str, attack: str) -> Measurement | None:
        """Return a metric over all seeds; None when the run has no such row."""
        return self._pooled.get((metric, defense, attack))

    def by_seed(self, metric: str, defense: str, attack: str) -> list[Measurement]:
        """Return a metric seed by seed."""
        return sorted(self._single[metric, defense, attack], key=lambda m: m.seed or 0)

    def measured(self, metric: str) -> bool:
        """Return whether any cell has a value of the metric."""
        return any(m.metric == metric and m.value is not None for m in self._pooled.values())

    def has(self, defense: str, attack: str) -> bool:
        """Return whether the cell is in the grid."""
        return (defense, attack) in self._cells

    @cached_property
    def _cells(self) -> set[tuple[str, str]]:
        return {(str(row["defense"]), str(row["attack"])) for row in self._named()}

    def _named(self) -> Iterable[Mapping[str, Any]]:
        if self.run.rows("cells"):
            return self.run.rows("cells")
        return [dataclasses.asdict(m) for m in self.measurements]

    @cached_property
    def defenses(self) -> list[str]:
        """Return the defenses' labels, the undefended control first."""
        return _control_first(row["defense"] for row in self._named())

    @cached_property
    def attacks(self) -> list[str]:
        """Return the attacks' labels, the released state first."""
        return _control_first(row["attack"] for row in self._named())

    @cached_property
    def seeds(self) -> list[int]:
        """Return the seeds."""
        return sorted({row["seed"] for row in self._named() if row["seed"] is not None})

    @cached_property
    def tasks(self) -> list[str]:
        """Return the metrics that are a task's accuracy, in order of appearance."""
        names = (m.metric for m in self.measurements if task_of(m.metric) is not None)
        return list(dict.fromkeys(names))

    @cached_property
    def chance(self) -> dict[str, float]:
        """Return the accuracy of guessing by task metric, from the number of options of each item."""
        options: dict[str, dict[str, int]] = defaultdict(dict)
        for row in self.run.rows("answers"):
            options[row["task"]][row["item"]] = row["num_options"]
        return {
            metric: sum(1 / n for n in options[task].values() if n) / len(options[task])
            for metric in self.tasks
            if options.get(task := task_of(metric) or "")
        }

    @cached_property
    def shares(self) -> dict[tuple[str, str], Shares]:
        """Return how the answers to hazards divide over the taxonomy, by (defense, attack)."""
        counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for row in self.rows("labels"):
            if row["harmful"]:
                label = str(row["label"]) if row["label"] else NOT_CLASSIFIED
                counts[row["defense"], row["attack"]][label] += 1
        met = {label for counter in counts.values() for label in counter}
        order = [*(c for c in TAXONOMY if c in met), *sorted(met - set(TAXONOMY))]
        return {
            cell: Shares({c: counter[c] / counter.total() for c in order}, counter.total())
            for cell, counter in counts.items()
        }

    def rows(self, table: str) -> list[Mapping[str, Any]]:
        """Return a table's rows, each once: one model, and so its rows, can stand for several seeds."""
        return [
            row
            for row in self.run.rows(table)
            if (row["defense"], row["attack"], row["seed"]) not in self._repeated
        ]

    @cached_property
    def _repeated(self) -> set[tuple[str, str, int]]:
        met: set[tuple[str, str, str]] = set()
        repeated = set()
        for row in self.run.rows("cells"):
            model = (row["defense"], row["attack"], str(row.get("model") or row["seed"]))
            if model in met:
                repeated.add((row["defense"], row["attack"], row["seed"]))
            met.add(model)
        return repeated

    @cached_property
    def failed(self) -> dict[str, str]:
        """Return the reason of every cell that could not be done, by `defense / attack / seed n`."""
        return self._with_status("failed")

    @cached_property
    def came_to_nothing(self) -> dict[str, str]:
        """Return why every cell's attack diverged or found nothing, by `defense / attack / seed n`."""
        return self._with_status("diverged") | self._with_status("found nothing")

    def _with_status(self, status: str) -> dict[str, str]:
        return {
            f"{row['defense']} / {row['attack']} / seed {row['seed']}": str(row.get("reason") or "")
            for row in self.run.rows("cells")
            if row.get("status") == status
        }

    @cached_property
    def spent(self) -> dict[tuple[str, str], tuple[str, dict[str, float]]]:
        """Return an attack's tier and mean budget by unit, by (defense, attack), where they are known."""
        tiers: dict[tuple[str, str], str] = {}
        found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for row in self.run.rows("cells"):
            place = (str(row["defense"]), str(row["attack"]))
            if row.get("tier") is None:
                continue
            tiers[place] = str(row["tier"])
            for unit in BUDGETS:
                if row.get(unit) is not None:
                    found[place][unit].append(float(row[unit]))
        return {
            place: (tier, {u: sum(seen) / len(seen) for u, seen in found[place].items()})
            for place, tier in tiers.items()
        }

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Return the resolved settings of the experiment; empty when the manifest has none."""
        found = self.run.manifest.get("settings") or {}
        return found if isinstance(found, dict) else {}

    @property
    def rho(self) -> float | None:
        """Return the capability retention from which harm counts as usable, in [0, 1]."""
        return self._verdict("rho")

    @property
    def break_at(self) -> float | None:
        """Return the usable harm from which a defense counts as broken, in [0, 1]."""
        return self._verdict("break_at")

    def _verdict(self, name: str) -> float | None:
        value = self.run.conclusion.get(name, (self.settings.get("verdict") or {}).get(name))
        return None if value is None else float(value)

    @cached_property
    def threshold(self) -> float | None:
        """Return the similarity above which pairs were not accepted."""
        found = [d["pairing"].get("threshold") for d in self.settings.get("defenses") or ()
                 if isinstance(d.get("pairing"), dict)]  # fmt: skip
        return float(found[0]) if found and found[0] is not None else None

    @cached_property
    def curves(self) -> dict[tuple[str, str], list[Point]]:
        """Return usable harm over rho by (defense, attack), rho rising."""
        found: dict[tuple[str, str], list[Point]] = defaultdict(list)
        for p in self.run.conclusion.get("curve") or ():
            if p["value"] is not None:
                point = Point(p["rho"], p["value"], p["low"], p["high"])
                found[p["defense"], p["attack"]].append(point)
        return {cell: sorted(points) for cell, points in found.items()}


class Point(NamedTuple):
    """One point of a curve of usable harm, all in [0, 1]."""

    rho: float
    value: float
    low: float | None
    high: float | None


def _control_first(labels: Iterable[Any]) -> list[str]:
    names = list(dict.fromkeys(map(str, labels)))
    return [*(n for n in names if n == CONTROL), *(n for n in names if n != CONTROL)]
