"""What of a plan is done, what is still to be done, and which weights may go.

A step is done when its folder says so. Attacked weights, and the states that trainings go on from, are
deleted as soon as nothing that is still wanted needs them.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from backfire.plan import Plan, Step
from backfire.records import Checkpoint
from backfire.store import StageFolder, write_json

__all__ = ["Ledger"]


class Ledger:
    """The state of a run's steps on disk, for the one process that holds the run."""

    def __init__(
        self, stages: Path, plan: Plan, base: Checkpoint, *, keep_attacked: bool = False
    ) -> None:
        """Open the books.

        Args:
            stages: Folder of all stages.
            plan: The steps; it may be replaced by one that holds it.
            base: The model the plan starts from.
            keep_attacked: Keep attacked weights.
        """
        self.stages, self.plan, self.keep_attacked = stages, plan, keep_attacked
        self._base = base
        self._models = {base.key: base}
        self.known: dict[str, dict[str, Any]] = {}
        """Markers of finished steps that have been read."""
        self.failed: dict[str, str] = {}
        """A sentence for each step that came to nothing."""
        self.results: set[str] = set()
        """Of these the ones that are an attack's own result, and what should have come of them."""

    def folder(self, step: Step) -> StageFolder:
        """Return a step's folder."""
        return StageFolder(self.stages, step.kind, step.key)

    def done(self, step: Step) -> dict[str, Any] | None:
        """Return a finished step's marker; read once, as the folder is ours alone."""
        if step.key not in self.known:
            found = self.folder(step).done()
            if found is None:
                return None
            self.known[step.key] = found
        return self.known[step.key]

    def wanted(self, step: Step) -> bool:
        """Return whether a step must be worked on now."""
        if step.parent in self.failed:
            self.failed.setdefault(step.key, f"{step.label}: its model could not be made")
            if step.parent in self.results:
                self.results.add(step.key)
            return False
        done = self.done(step)
        if done is None:
            return True
        if done.get("failed"):
            self.note_failed(step, str(done["failed"]), str(done.get("outcome", "failed")))
            return False
        if done.get("unjudged"):
            return True  # by a judge that was out of reach; the answers are kept
        if not done.get("released"):
            return False
        # The weights are gone: they are made again only if something is still to be done with them.
        return self.keep_attacked or any(
            self.done(later) is None or (later.kind == "attack" and self.wanted(later))
            for later in self.plan.after(step.key)
            if later.key not in self.failed
        )

    def note_failed(self, step: Step, why: str, outcome: str) -> None:
        """Take note of a step that came to nothing: of an attack that can be its result."""
        self.failed.setdefault(step.key, why)
        if outcome != "failed" and step.kind in ("attack", "evaluation"):
            self.results.add(step.key)

    @property
    def status(self) -> str:
        """Return what the whole run came to, once all steps have been tried."""
        return "failed in part" if self.failures else "complete"

    @property
    def failures(self) -> tuple[str, ...]:
        """Return a sentence for each step that could not be done."""
        return tuple(why for key, why in self.failed.items() if key not in self.results)

    @property
    def came_to(self) -> tuple[str, ...]:
        """Return a sentence for each attack that came to something else than a model."""
        return tuple(
            why for key, why in self.failed.items() if key in self.results and key in self.known
        )

    @property
    def unfinished(self) -> list[Step]:
        """Return the steps that are not done."""
        return [step for step in self.plan.steps if self.done(step) is None]

    def finish(self, step: Step, started: float, **facts: Any) -> dict[str, Any]:
        """Mark a step done, and return its marker.

        Args:
            step: It has been worked on in its folder.
            started: When, in seconds since the epoch.
            facts: What the marker says besides; `checkpoint` and `base` for a model.
        """
        self.known[step.key] = done = self.folder(step).finish(started, **facts)
        self._drop_state(step)
        return done

    def attacked(self, step: Step) -> bool:
        """Return whether a step starts from an attacked model."""
        return any(s.key == step.parent and s.kind == "attack" for s in self.plan.steps)

    def state(self, step: Step) -> Path | None:
        """Return the folder that the steps of one training hand their state on in; None for one alone."""
        return self.stages / f"course-{step.course}" if self.plan.on_course(step) else None

    def _drop_state(self, step: Step) -> None:
        """Delete what no step of the training will go on from any more."""
        state = self.state(step)
        if state is not None and not any(self.wanted(s) for s in self.plan.on_course(step)):
            shutil.rmtree(state, ignore_errors=True)

    def abandon(self, later: Plan) -> None:
        """Give up steps that are not done: nothing is kept for them any more.

        Args:
            later: The plan they are in; what is done of it stays.
        """
        given_up = [step for step in later.steps if self.done(step) is None]
        for step in given_up:
            if (state := self.state(step)) is not None:
                shutil.rmtree(state, ignore_errors=True)
        gone = {step.key for step in given_up}
        steps = tuple(step for step in self.plan.steps if step.key not in gone)
        self.plan = replace(self.plan, steps=steps)
        for step in steps:
            if step.kind == "attack":
                self.release(step.key)

    def model(self, key: str) -> Checkpoint:
        """Return a model that the plan's earlier steps made."""
        if key not in self._models:
            step = next(s for s in self.plan.steps if s.key == key)
            done = self.done(step) or {}
            base = self.stages / done["base"] if done["base"] else None
            self._models[key] = Checkpoint(
                self.stages / done["checkpoint"], key, base, self._base.trust_remote_code
            )
        return self._models[key]

    def relative(self, path: Path) -> str:
        """Return a path as markers hold it: from the folder of stages on, so that a run can be moved."""
        return str(path.relative_to(self.stages)) if path.is_relative_to(self.stages) else str(path)

    def release(self, key: str) -> None:
        """Delete the weights of an attacked model once nothing needs them any more.

        They are needed until all is measured of it and of what later attacks made of it, as an adapter
        or a folder of links is nothing without what it belongs to.
        """
        step = next((s for s in self.plan.steps if s.key == key and s.kind == "attack"), None)
        if step is None or self.keep_attacked or not self._over(step):
            return
        folder = self.folder(step)
        done = self.done(step)
        if done is None or done.get("failed"):
            return
        weights = self.stages / done["checkpoint"]
        if not done.get("released"):
            # The marker first: an interrupt between the two leaves files that the next run removes.
            inside = str(weights.relative_to(folder.path))
            files = {n: size for n, size in done["files"].items() if not n.startswith(f"{inside}/")}
            self.known[key] = {**done, "released": True, "files": files}
            write_json(folder.marker, self.known[key])
        shutil.rmtree(weights, ignore_errors=True)
        self._models.pop(key, None)
        self.release(step.parent)

    def _over(self, step: Step) -> bool:
        """Return whether nothing will be asked of a step's model any more."""
        for later in self.plan.after(step.key):
            done = self.done(later)
            if later.key in self.failed:
                continue
            if done is None or (
                later.kind == "attack" and (not done.get("released") or self.wanted(later))
            ):
                return False
        return True
