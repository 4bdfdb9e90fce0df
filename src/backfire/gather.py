"""From the steps' own tables to the run's: the same rows, with the columns of their cell in front."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backfire.engine.settings import Trained
from backfire.plan import ALIGNED, Plan, Step
from backfire.records import Cell
from backfire.store import StageFolder, read_table, write_table

if TYPE_CHECKING:
    from backfire.config import Experiment

__all__ = ["gather"]


def gather(
    folder: Path, experiment: Experiment, plan: Plan, failed: Mapping[str, str], part: str = ""
) -> dict[str, list[dict[str, Any]]]:
    """Write `tables/*.parquet` from what the steps left, and return the rows by table name.

    Every row begins with the columns `defense`, `attack` and `seed` of its cell. A result that
    belongs to several cells stands once for each.

    Args:
        folder: The run folder.
        experiment: The settings.
        plan: The steps.
        failed: A sentence for each step, by key, that could not be done.
        part: Folder below `tables` for a part of the run that is not of its own grid.
    """
    within = set(experiment.cells)
    tables: dict[str, list[dict[str, Any]]] = defaultdict(list)
    budgets = {attack.label: _budget(attack) for attack in experiment.active_attacks}
    for cell in experiment.cells:
        model = plan.models[cell]
        tables["cells"].append(
            {
                **_columns(cell),
                "status": "failed" if model in failed else "done",
                "reason": failed.get(model, ""),
                "model": model,
                **budgets.get(cell.attack, {"tier": None, "budget": None}),
            }
        )
    for step in plan.steps:
        stage = StageFolder(folder / "stages", step.kind, step.key)
        if stage.done() is None:
            continue
        for name, rows in _left_by(stage.path, step).items():
            cells = [c for c in step.cells if c in within or c == ALIGNED]
            tables[name] += [{**_columns(cell), **row} for cell in cells for row in rows]
    for name, rows in tables.items():
        write_table(folder / "tables" / part / f"{name}.parquet", rows)
    return dict(tables)


def _budget(attack: Any) -> dict[str, Any]:
    """Return what an attack pays in harmful rows, and the attacks whose budgets compare with it."""
    harmful = attack.rows_used({}).get("attacker") if isinstance(attack, Trained) else None
    if not harmful:
        return {"tier": None, "budget": None}
    weights = "adapter" if attack.training.lora else "all weights"
    return {"tier": f"{attack.name}, {weights}", "budget": float(harmful)}


def _left_by(folder: Path, step: Step) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {
        path.stem: read_table(path, dict) for path in sorted(folder.glob("*.parquet"))
    }
    effect = folder / "effect.json"
    if step.kind != "evaluation" and effect.is_file():
        found["effects"] = [json.loads(effect.read_text(encoding="utf-8"))]
    return found


def _columns(cell: Cell) -> dict[str, Any]:
    return {"defense": cell.defense, "attack": cell.attack, "seed": cell.seed}
