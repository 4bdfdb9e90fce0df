"""What an experiment has to do, as a list of steps with content keys: pure, and made in an instant.

A step's key says everything its result depends on: its settings and their version, the key of the
model it starts from, the rows it may read, its seed, and the versions of the libraries that do the
arithmetic. Steps with equal keys are one step, which is how one defense serves every attack and one
evaluation every seed that cannot change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from backfire.attack.courses import point_text
from backfire.config import ALIGN, CONTROL, Experiment
from backfire.engine.settings import Point, Trained, Training, reached
from backfire.errors import ConfigError
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
    course: str = ""
    """Key of the whole training, of which a step that stops at a point is a part; steps of one course go
    on from each other. Empty: it does not train."""

    @property
    def label(self) -> str:
        """Return what to call the step in front of the user."""
        cell = self.cells[0]
        if self.kind == "align":
            return f"align with {self.member.label}"
        if self.kind == "defense":
            return f"defend with {cell.defense}, seed {cell.seed}"
        if self.kind == "attack":
            point = "" if self.stop is None else f"@{point_text(self.stop)}"
            return f"attack {cell.defense} with {self.member.label}{point}, seed {cell.seed}"
        seeds = {c.seed for c in self.cells}
        everywhere = " (all seeds)" if len(seeds) > 1 else f", seed {cell.seed}"
        return f"{self.member.name} of {cell.defense}/{cell.attack}{everywhere}"

    @property
    def stop(self) -> Point | None:
        """Return where a training stops before its end."""
        training: Training | None = getattr(self.member, "training", None)
        return training.stop if training is not None else None


@dataclass(frozen=True)
class Plan:
    """The steps in an order in which each finds its model ready."""

    base: str
    """Key of the model the experiment starts from."""
    steps: tuple[Step, ...]
    models: Mapping[Cell, str]
    """Key of each cell's model."""
    chains: Mapping[Cell, tuple[str, ...]]
    """Keys of the attacks that make each cell's model, first to last."""

    def joined(self, later: Plan) -> Plan:
        """Return this plan with the steps of another that are not in it, and the cells of both."""
        known = {step.key for step in self.steps}
        new = tuple(step for step in later.steps if step.key not in known)
        return Plan(
            self.base,
            (*self.steps, *new),
            {**self.models, **later.models},
            {**self.chains, **later.chains},
        )

    def only(self, cells: Iterable[Cell]) -> Plan:
        """Return the part that makes and measures these cells; those that they start from are theirs."""
        wanted = {*cells, ALIGNED}
        return Plan(
            self.base,
            tuple(step for step in self.steps if wanted.intersection(step.cells)),
            {cell: model for cell, model in self.models.items() if cell in wanted},
            {cell: chain for cell, chain in self.chains.items() if cell in wanted},
        )

    def after(self, key: str) -> tuple[Step, ...]:
        """Return the steps that start from the model with this key."""
        return self._after.get(key, ())

    @cached_property
    def _after(self) -> dict[str, tuple[Step, ...]]:
        found: dict[str, tuple[Step, ...]] = {}
        for step in self.steps:
            found[step.parent] = (*found.get(step.parent, ()), step)
        return found

    def on_course(self, step: Step) -> tuple[Step, ...]:
        """Return the other steps of a step's training: where it stops on the way, and its end."""
        if not step.course:
            return ()
        return tuple(s for s in self.steps if s.course == step.course and s.key != step.key)

    def check_points(self, counts: Mapping[str, int]) -> None:
        """Check that every point of an attack lies on its way.

        Args:
            counts: Rows of each role.

        Raises:
            ConfigError: naming each point that does not.
        """
        wrong = []
        for step in self.steps:
            stop = step.stop
            if stop is None:
                continue
            steps = step.member.training.num_steps(step.member.epoch_rows(counts))
            if reached(stop, steps) >= steps:
                wrong.append(
                    f"{step.member.label}@{point_text(stop)}: there are {steps} steps in all"
                )
        if wrong:
            listed = "\n".join(f"  {line}" for line in dict.fromkeys(wrong))
            raise ConfigError(
                f"placing the points of the attacks: some are not before the end\n{listed}\ngive earlier "
                "ones; the end is measured anyway"
            )

    def most_models(self, *, keep_all: bool) -> int:
        """Return how many models that the steps make are on the disk at once, at most.

        Args:
            keep_all: Whether attacked weights stay.
        """
        trained = [step for step in self.steps if step.kind != "evaluation"]
        if keep_all:
            return len(trained)
        last = {step.key: index for index, step in enumerate(self.steps)}
        for step in reversed(self.steps):  # a model stays while one that grew from it does
            last[step.parent] = max(last.get(step.parent, 0), last[step.key])
        here = most = 0
        for index, step in enumerate(self.steps):
            here += step.kind != "evaluation"
            most = max(most, here)
            here -= sum(s.kind == "attack" and last[s.key] == index for s in trained)
        return most


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
    chains: dict[Cell, tuple[str, ...]] = {}
    found = versions({*TRAINING_LIBRARIES, *EVALUATION_LIBRARIES})

    def key_of(kind: Kind, member: Any, parent: str, seed: int) -> str:
        names = EVALUATION_LIBRARIES if kind == "evaluation" else TRAINING_LIBRARIES
        libraries = {name: found[name] for name in names}
        seen = {role: rows.get(role, "") for role in member.roles}
        files = {name: fingerprint(Path(name)) for name in files_in(member.model_dump(mode="json"))}
        return content_key(kind, _unlabelled(member), parent, seed, seen, files, libraries)

    def add(kind: Kind, member: Any, parent: str, seed: int, cell: Cell) -> str:
        key = course = key_of(kind, member, parent, seed)
        if not isinstance(member, Trained):
            course = ""
        elif member.training.stop is not None:
            whole = member.training.model_copy(update={"stop": None})
            end = member.model_copy(update={"training": whole})
            course = key_of(kind, end, parent, seed)
        old = steps.get(key)
        cells = (*old.cells, cell) if old else (cell,)
        steps[key] = Step(kind, key, member, parent, seed, cells, kept_back, course)
        return key

    def measure(model: str, cell: Cell, chain: tuple[str, ...] = ()) -> None:
        models[cell], chains[cell] = model, chain
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
            for course in experiment.attack_courses:
                cell = Cell(label, course.label, seed)
                chain: tuple[str, ...] = (defended[label],)
                for part in course.parts:
                    chain = (*chain, add("attack", part, chain[-1], seed, cell))
                measure(chain[-1], cell, chain[1:])
    return Plan(base, tuple(steps.values()), models, chains)


def _unlabelled(member: Any) -> Any:
    """Return the settings without their label, which names a result and cannot change it."""
    return member.model_copy(update={"label": ""}) if hasattr(member, "label") else member
