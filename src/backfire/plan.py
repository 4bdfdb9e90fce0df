"""What an experiment has to do, as a list of steps with content keys: pure, and made in an instant.

A step's key says everything its result depends on: its settings and their version, the key of the
model it starts from, the rows it may read, its seed, and the versions of the libraries that do the
arithmetic. Steps with equal keys are one step, which is how one defense serves every attack and one
evaluation every seed that cannot change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backfire.config import ALIGN, CONTROL, Experiment
from backfire.prepare import files_in, fingerprint
from backfire.provenance import EVALUATION_LIBRARIES, TRAINING_LIBRARIES, versions
from backfire.records import Cell
from backfire.store import content_key

__all__ = ["ALIGNED", "Plan", "Step", "make_plan"]

ALIGNED = Cell(ALIGN, CONTROL, 0)
"""The cell under which the safety training that makes the undefended model is recorded."""

Kind = Literal["align", "defense", "attack", "evaluation"]


@dataclass(frozen=True)
class Step:
    """One piece of work: a training or a measurement."""

    kind: Kind
    key: str
    member: Any
    """The settings object that is called: a `Transform` or an `Evaluation`."""
    parent: str
    """Key of the model it starts from."""
    seed: int
    cells: tuple[Cell, ...]
    """Where in the grid its result stands; several where they cannot differ."""
    kept_back: bool = False
    """Whether it asks the hazards that are kept back for the second round."""

    @property
    def label(self) -> str:
        """Return what to call the step in front of the user."""
        cell = self.cells[0]
        if self.kind == "align":
            return f"align with {self.member.label}"
        if self.kind == "defense":
            return f"defend with {cell.defense}, seed {cell.seed}"
        if self.kind == "attack":
            return f"attack {cell.defense} with {cell.attack}, seed {cell.seed}"
        everywhere = " (all seeds)" if len(self.cells) > 1 else f", seed {cell.seed}"
        return f"{self.member.name} of {cell.defense}/{cell.attack}{everywhere}"


@dataclass(frozen=True)
class Plan:
    """The steps in an order in which each finds its model ready."""

    base: str
    """Key of the model the experiment starts from."""
    steps: tuple[Step, ...]
    models: Mapping[Cell, str]
    """Key of each cell's model."""

    def joined(self, later: Plan) -> Plan:
        """Return this plan with the steps of another that are not in it, and the cells of both."""
        known = {step.key for step in self.steps}
        new = tuple(step for step in later.steps if step.key not in known)
        return Plan(self.base, (*self.steps, *new), {**self.models, **later.models})

    def evaluations_of(self, key: str) -> tuple[Step, ...]:
        """Return the evaluations of the model with this key."""
        return tuple(s for s in self.steps if s.kind == "evaluation" and s.parent == key)


def make_plan(
    experiment: Experiment, base: str, rows: Mapping[str, str], *, kept_back: bool = False
) -> Plan:
    """Return the steps of an experiment.

    Args:
        experiment: The settings.
        base: Content key of the model it starts from.
        rows: Content key of the rows of each role.
        kept_back: Ask the hazards that are kept back for the second round, not the others.
    """
    if experiment.confirm is not None:
        part = [experiment.confirm.prompts, kept_back]
        rows = {**rows, "evaluation": content_key(rows.get("evaluation", ""), part)}
    steps: dict[str, Step] = {}
    models: dict[Cell, str] = {}
    found = versions({*TRAINING_LIBRARIES, *EVALUATION_LIBRARIES})

    def add(kind: Kind, member: Any, parent: str, seed: int, cell: Cell) -> str:
        names = EVALUATION_LIBRARIES if kind == "evaluation" else TRAINING_LIBRARIES
        libraries = {name: found[name] for name in names}
        seen = {role: rows.get(role, "") for role in member.roles}
        files = {name: fingerprint(Path(name)) for name in files_in(member.model_dump(mode="json"))}
        key = content_key(kind, _unlabelled(member), parent, seed, seen, files, libraries)
        old = steps.get(key)
        cells = (*old.cells, cell) if old else (cell,)
        steps[key] = Step(kind, key, member, parent, seed, cells, kept_back)
        return key

    def measure(model: str, cell: Cell) -> None:
        models[cell] = model
        for member in experiment.evaluations:
            # Every cell is measured with the same draw of prompts and items, so that cells pair.
            add("evaluation", member, model, 0, cell)

    undefended = base
    if experiment.align is not None and experiment.align.name != CONTROL:
        # One aligned model for all seeds: it is the subject, not a repetition.
        undefended = add("align", experiment.align, base, 0, ALIGNED)
    for seed in experiment.seeds:
        defended = {CONTROL: undefended}
        for cell_defense in (None, *experiment.active_defenses):
            label = CONTROL if cell_defense is None else cell_defense.label
            clean = Cell(label, CONTROL, seed)
            if cell_defense is not None:
                defended[label] = add("defense", cell_defense, undefended, seed, clean)
            measure(defended[label], clean)
            for attack in experiment.active_attacks:
                cell = Cell(label, attack.label, seed)
                measure(add("attack", attack, defended[label], seed, cell), cell)
    return Plan(base, tuple(steps.values()), models)


def _unlabelled(member: Any) -> Any:
    """Return the settings without their label, which names a result and cannot change it."""
    return member.model_copy(update={"label": ""}) if hasattr(member, "label") else member
