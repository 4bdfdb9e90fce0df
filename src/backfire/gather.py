"""From the steps' own tables to the run's: the same rows, with the columns of their cell in front."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backfire.attack.courses import shots
from backfire.engine.budget import spent
from backfire.engine.settings import Trained
from backfire.plan import ALIGNED, Plan, Step
from backfire.records import Cell
from backfire.store import StageFolder, read_json, read_table, write_table

if TYPE_CHECKING:
    from backfire.attack.courses import Course
    from backfire.config import Experiment

__all__ = ["collect", "gather"]


def gather(
    folder: Path,
    experiment: Experiment,
    plan: Plan,
    failed: Mapping[str, str],
    weights: int,
    part: str = "",
) -> dict[str, list[dict[str, Any]]]:
    """Write `tables/*.parquet` from what the steps left, and return the rows by table name.

    Args:
        folder: The run folder.
        experiment: The settings.
        plan: The steps.
        failed: A sentence for each step, by key, that could not be done.
        weights: How many the model has, for FLOPs.
        part: Folder below `tables` for a part of the run that is not of its own grid.
    """
    tables = collect(folder, experiment, plan, failed, weights)
    for name, rows in tables.items():
        write_table(folder / "tables" / part / f"{name}.parquet", rows)
    return tables


def collect(
    folder: Path, experiment: Experiment, plan: Plan, failed: Mapping[str, str], weights: int
) -> dict[str, list[dict[str, Any]]]:
    """Return what the steps left by table name; see `gather`.

    Every row begins with the columns `defense`, `attack` and `seed` of its cell. A result that
    belongs to several cells stands once for each. Of a part of a plan, its cells alone are collected.
    """
    cells = [cell for cell in experiment.cells if cell in plan.models]
    within = set(cells)
    tables: dict[str, list[dict[str, Any]]] = defaultdict(list)
    tiers = {course.label: _tier(course) for course in experiment.attack_courses}
    needed = {course.label: _shots(course) for course in experiment.attack_courses}
    known = {step.key: step for step in plan.steps}
    for cell in cells:
        model = plan.models[cell]
        chain = [known[key] for key in plan.chains[cell]]
        made = chain or [known[key] for key in (model,) if key in known]
        measured = [step for step in plan.after(model) if step.kind == "evaluation"]
        tables["cells"].append(
            {
                **_columns(cell),
                **_outcome(folder, [*made, *measured], failed),
                "model": model,
                "tier": tiers.get(cell.attack),
                "shots": needed.get(cell.attack),
                **_spent(folder, chain, weights),
            }
        )
    for step in plan.steps:
        stage = StageFolder(folder / "stages", step.kind, step.key)
        if stage.done() is None:
            continue
        for name, rows in _left_by(stage.path, step).items():
            places = [c for c in step.cells if c in within or c == ALIGNED]
            tables[name] += [{**_columns(cell), **row} for cell in places for row in rows]
    return dict(tables)


def _tier(course: Course) -> str:
    """Return which attacks a course's budgets compare with: same methods on the same weights."""
    words = []
    for part in course.parts:
        trains = isinstance(part, Trained)
        where = f", {'adapter' if part.training.lora else 'all weights'}" if trains else ""
        words.append(f"{part.name}{where}")
    return " then ".join(words)


def _shots(course: Course) -> float:
    """Return the harmful rows a course needs: its parts read the same ones first."""
    return float(max(shots(part) for part in course.parts))


def _spent(folder: Path, chain: Sequence[Step], weights: int) -> dict[str, float | None]:
    """Return what the attacks of a cell took together; None where one of them did not say."""
    total = {"steps": 0.0, "tokens": 0.0, "flops": 0.0}
    for step in chain:
        found = _spent_by(StageFolder(folder / "stages", step.kind, step.key).path, step, weights)
        if found is None:
            return dict.fromkeys(total)
        total = {unit: total[unit] + float(found[unit]) for unit in total}
    return dict(total) if chain else dict.fromkeys(total)


def _spent_by(path: Path, step: Step, weights: int) -> Mapping[str, float] | None:
    """Return a step's optimizer steps, tokens and FLOPs: what it says itself, else from its training."""
    own, effect = path / "budget.json", path / "effect.json"
    if own.is_file():
        return dict(read_json(own))
    if effect.is_file():
        return spent(read_json(effect), weights)
    if isinstance(step.member, Trained):
        return None
    return dict.fromkeys(("steps", "tokens", "flops"), 0.0)


def _outcome(folder: Path, steps: Sequence[Step], failed: Mapping[str, str]) -> dict[str, str]:
    """Return what became of a cell, by the steps that make its model and measure it, in order.

    `done`; `diverged` or `found nothing`, which of an attack are results; or `failed`. The reason is
    that of the first step that could not be done.
    """
    for step in steps:
        if step.key in failed:
            done = StageFolder(folder / "stages", step.kind, step.key).done() or {}
            status = str(done.get("outcome", "failed"))
            return {"status": status, "reason": failed[step.key]}
    return {"status": "done", "reason": ""}


def _left_by(folder: Path, step: Step) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {
        path.stem: read_table(path, dict) for path in sorted(folder.glob("*.parquet"))
    }
    effect = folder / "effect.json"
    if step.kind == "attack" and "trajectory" in found:
        # Which of a cell's trainings: a sequence has several.
        found["trajectory"] = [{"part": step.member.label, **row} for row in found["trajectory"]]
    if step.kind != "evaluation" and effect.is_file():
        found["effects"] = [read_json(effect)]
    return found


def _columns(cell: Cell) -> dict[str, Any]:
    return {"defense": cell.defense, "attack": cell.attack, "seed": cell.seed}
