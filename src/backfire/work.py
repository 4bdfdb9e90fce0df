"""Doing the steps of plans: the one place where defenses, attacks and evaluations are called.

>>> shop = Workshop(experiment, folder, "auto", progress)                     # doctest: +SKIP
>>> ledger = shop.ledger(shop.plan(experiment))                               # doctest: +SKIP
>>> shop.do(ledger)                                                           # doctest: +SKIP
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backfire.config import Experiment
from backfire.errors import DataError, PrerequisiteError, TrainingError
from backfire.judges.rubric import rubric_judges
from backfire.ledger import Ledger
from backfire.plan import Plan, Step, make_plan
from backfire.prepare import Rows, prepare_model
from backfire.pricing import Pace, disk_bytes, size_of
from backfire.progress import Progress, duration
from backfire.provenance import device_facts
from backfire.records import Example, Role
from backfire.stage import Bench
from backfire.store import write_table

__all__ = ["Workshop"]


class Workshop:
    """A model and rows that are ready, and a folder in which steps are done.

    Several processes may work in one folder, each with a workshop of its own: a step that two of them
    want is done by the first, and the other finds it done.
    """

    def __init__(
        self, experiment: Experiment, folder: Path, device: str, progress: Progress
    ) -> None:
        """Prepare model and rows.

        Args:
            experiment: Whose model, rows and evaluations these are; plans of others that have the same may
                be done here, too.
            folder: The run folder.
            device: Where to compute.
            progress: Where to report.

        Raises:
            DataError: when a source is missing, unreadable or empty.
            CheckpointError: when the folder is no model.
        """
        self.experiment, self.folder, self.device = experiment, folder, device
        self.progress, self.stages = progress, folder / "stages"
        self.computed = 0
        """Steps that were worked on."""
        self._device_facts: dict[str, Any] = {}
        self.base = prepare_model(
            experiment.model, experiment.chat, self.stages, progress,
            trust_remote_code=experiment.trust_remote_code,
        )  # fmt: skip
        self.rows = Rows(experiment.data, self.stages, progress)
        self.pace = Pace(size_of(self.base.path), self.rows.counts)

    def plan(self, experiment: Experiment, *, kept_back: bool = False) -> Plan:
        """Return an experiment's plan; see `make_plan`."""
        return make_plan(experiment, self.base.key, self.rows.keys, kept_back=kept_back)

    def ledger(self, plan: Plan) -> Ledger:
        """Return the books of a plan."""
        return Ledger(self.stages, plan, self.base, keep_attacked=self.experiment.keep_attacked)

    def check(self, ledger: Ledger) -> None:
        """Check, before anything is trained, that a plan can be done.

        Raises:
            DataError: when a member lacks rows, or brings some that are asked or defended with.
            ConfigError: when an attack has a point that is not on its way.
            PrerequisiteError: when a judge has no key, or the disk cannot hold the models.
        """
        self.rows.require([step.member for step in ledger.plan.steps])
        ledger.plan.check_points(self.rows.counts)
        self.rows.refuse_overlap(step.member for step in ledger.unfinished)
        self._check_kept_back()
        if any(step.kind == "evaluation" for step in ledger.unfinished):
            for judge in rubric_judges(self.experiment.evaluations):
                judge.endpoint.key()  # a missing key is found now, not after hours of training
        self._check_disk(ledger)

    def _check_kept_back(self) -> None:
        """Refuse to keep back every hazard."""
        confirm, have = self.experiment.confirm, self.rows.counts.get("evaluation", 0)
        if confirm is not None and have <= confirm.prompts:
            raise DataError(
                f"preparing the rows: the second round keeps back {confirm.prompts} rows of role "
                f"`evaluation`, and there are {have}; raise `data.counts.evaluation`, or lower "
                "`confirm.prompts`"
            )

    def _check_disk(self, ledger: Ledger) -> None:
        """Refuse to begin what the disk cannot hold."""
        todo = ledger.unfinished
        if not todo:
            return
        left = replace(ledger.plan, steps=tuple(todo))
        need = disk_bytes(left.most_models(keep_all=self.experiment.keep_attacked), self.pace.size)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise PrerequisiteError(
                f"starting the run in {self.folder}: its models need about {need / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free; free some space, or choose another disk with --out"
            )

    def do(
        self, ledger: Ledger, each: Callable[[], None] = lambda: None, only: Plan | None = None
    ) -> None:
        """Work through a plan; what is there already is passed over.

        Args:
            ledger: Its books.
            each: Called after each step that was worked on.
            only: A part of the plan, when the rest has to wait; None: all of it.

        Raises:
            TrainingError: when the safety training of the undefended model cannot go on. A defense or
                attack that cannot is noted in the books, and the work goes on without it.
        """
        steps = (only or ledger.plan).steps
        with self.progress.task("stages", len(steps), "stages", steady=False) as bar:
            for number, step in enumerate(steps, 1):
                if not ledger.wanted(step):
                    bar.skip(1)
                    continue
                left = self.pace.seconds_left([s for s in steps[number - 1 :] if ledger.wanted(s)])
                about = "" if left is None else f", about {duration(left)} left in all"
                self.progress.say(f"stage {number} of {len(steps)}: {step.label}{about}")
                self._work(ledger, step)
                ledger.release(step.parent)
                each()
                bar.advance(1)
        for step in steps:
            if step.kind == "attack":
                ledger.release(step.key)

    def _work(self, ledger: Ledger, step: Step) -> None:
        """Do one step and mark it done."""
        from backfire.engine.effect import peak_memory

        folder = ledger.folder(step)
        if not self._device_facts:
            self._device_facts = device_facts(self.device)
        with folder.open() as workdir:
            if step.key not in ledger.known and not ledger.wanted(step):
                return  # another process was at it when this one came to it
            if ledger.known.pop(step.key, None) is not None and step.kind == "attack":
                _empty(workdir)  # an attack whose weights were deleted is made again from nothing
            started = time.time()
            bench = Bench(
                workdir=workdir,
                state=ledger.state(step),
                seed=step.seed,
                device=self.device,
                data=self._rows_for(step),
                progress=self.progress,
                label=step.label,
            )
            facts: dict[str, Any] = {"label": step.label, "device": self._device_facts}
            try:
                if step.kind == "evaluation":
                    tables = step.member(ledger.model(step.parent), bench)
                    for name, rows in tables.items():
                        write_table(workdir / f"{name}.parquet", rows)
                    facts["unjudged"] = sum(v.transient for v in tables.get("verdicts", ()))
                else:
                    made = replace(step.member(ledger.model(step.parent), bench), key=step.key)
                    facts["checkpoint"] = ledger.relative(made.path)
                    facts["base"] = ledger.relative(made.base) if made.base else ""
                facts["peak_memory_bytes"] = peak_memory()
            except TrainingError as error:
                if step.kind == "align" or (
                    step.kind == "evaluation" and not ledger.attacked(step)
                ):
                    raise
                facts |= {"failed": str(error), "outcome": error.outcome}
                ledger.note_failed(step, str(error), error.outcome)
                if step.kind == "attack":
                    shutil.rmtree(
                        workdir / "state", ignore_errors=True
                    )  # they are attacked weights
                word = "failed" if step.key not in ledger.results else "came to no model"
                self.progress.warn(f"{step.label} {word}, the run goes on without it: {error}")
            done = ledger.finish(step, started, **facts)
        if done.get("unjudged"):
            self.progress.warn(
                f"{step.label}: {done['unjudged']} verdicts are absent for now; run the same command again "
                "and the judge is asked for these alone"
            )
        self.computed += 1
        self.pace.measured(step, done["seconds"])

    def _rows_for(self, step: Step) -> dict[Role, Sequence[Example]]:
        """Return the rows a step may read; some hazards may be kept back for the second round."""
        data = self.rows.of(step.member.roles, step.label)
        if self.experiment.confirm is not None and "evaluation" in data:
            rows = data["evaluation"]
            seam = len(rows) - self.experiment.confirm.prompts
            data["evaluation"] = rows[seam:] if step.kept_back else rows[:seam]
        return data


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
