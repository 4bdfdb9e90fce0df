"""From an experiment to a run folder: the only module that knows all stages.

prepare model and rows -> plan -> train and measure, step by step -> tables -> conclusion -> report

Every step is kept under its content key, so an interrupted run goes on where it stopped, a finished
one recomputes nothing, and changed settings redo only what they touch.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backfire.config import Experiment, resolved_yaml
from backfire.errors import (
    CheckpointError,
    DataError,
    PrerequisiteError,
    TrainingError,
)
from backfire.evaluate.verdict import conclude
from backfire.gather import gather
from backfire.judges.rubric import rubric_judges
from backfire.ledger import Ledger
from backfire.plan import Plan, Step, make_plan
from backfire.prepare import Rows, prepare_model
from backfire.pricing import Pace, disk_bytes, size_of
from backfire.progress import Progress, Silent, duration
from backfire.provenance import device_facts, git_state, host_facts, versions
from backfire.records import Example, Role
from backfire.report import build
from backfire.report.coverage import coverage
from backfire.stage import Bench
from backfire.store import (
    SCHEMA_VERSION,
    content_key,
    disk_guard,
    read_json,
    write_json,
    write_table,
    write_text,
)

__all__ = ["Outcome", "open_run", "run", "run_folder"]

_LIBRARIES = (
    "torch", "transformers", "accelerate", "peft", "tokenizers", "datasets", "lm-eval",
    "sentence-transformers", "numpy", "pyarrow", "pydantic",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    folder: Path
    report: Path
    conclusion: dict[str, Any]
    computed: int
    """Steps that were worked on; 0 when everything was there already."""
    failed: tuple[str, ...]
    """A sentence for each step that could not be done."""
    came_to: tuple[str, ...] = ()
    """A sentence for each attack that came to something else than a model (diverged, found nothing)."""


def run_folder(experiment: Experiment, out: Path | None = None) -> Path:
    """Return where a run lives: `out`, or `runs/<name>-<digest>` under the current folder."""
    return out or Path("runs") / f"{experiment.name}-{experiment.digest}"


def run(
    experiment: Experiment,
    out: Path | None = None,
    *,
    fresh: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
    passed: Any = None,
) -> Outcome:
    """Do what an experiment says that has not been done yet, and conclude.

    Args:
        experiment: The settings.
        out: Run folder. One that holds other settings keeps its finished steps, and those with
            equal keys are used again.
        fresh: Throw the folder's earlier results away first.
        device: Where to compute.
        progress: Where to report.
        passed: What the user gave, for the manifest.

    Raises:
        PrerequisiteError: when another process works in the folder, or the disk is or would be full.
        CheckpointError: when the folder was written by a newer version.
        DataError: when a member needs rows that no source gives.
        TrainingError: when the safety training of the undefended model cannot go on. A defense or
            attack that cannot is recorded, and the run goes on without it.
        KeyboardInterrupt: after Ctrl-C; everything finished is kept.
    """
    folder = run_folder(experiment, out)
    with open_run(folder):
        if fresh:
            for name in ("stages", "tables", "report"):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in ("manifest.json", "conclusion.json", "events.jsonl"):
                (folder / name).unlink(missing_ok=True)
        return _Run(experiment, folder, device, progress or Silent(), passed).result()


@contextmanager
def open_run(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process alone.

    Raises:
        PrerequisiteError: when another process holds it.
        CheckpointError: when it was written by a newer version of the program.
    """
    from filelock import FileLock, Timeout

    with disk_guard(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise PrerequisiteError(
            f"opening the run folder {folder}: another process is working in it; wait for it, or give "
            "this run a folder of its own with --out"
        ) from None
    try:
        manifest = folder / "manifest.json"
        if manifest.is_file():
            written = read_json(manifest).get("schema_version", 0)
            if written > SCHEMA_VERSION:
                raise CheckpointError(
                    f"opening the run folder {folder}: its layout is version {written}, this program "
                    f"knows up to {SCHEMA_VERSION}; upgrade backfire, or choose another folder with "
                    "--out. Nothing was changed"
                )
        yield
    finally:
        lock.release()


class _Run:
    """One call of `run`, in the order it happens."""

    def __init__(
        self, experiment: Experiment, folder: Path, device: str, progress: Progress, passed: Any
    ) -> None:
        self.experiment, self.folder, self.device = experiment, folder, device
        self.progress, self.stages = progress, folder / "stages"
        self.computed = 0
        self.second_round: dict[str, tuple[Experiment, Plan]] = {}
        self.device_facts: dict[str, Any] = {}
        self.manifest: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "name": experiment.name,
            "question": experiment.question,
            "digest": experiment.digest,
            "status": "running",
            "started": _started(folder, experiment.digest),
            "passed": passed,
            "settings": experiment.model_dump(mode="json"),
            "versions": versions(_LIBRARIES),
            "source": git_state(),
            "host": host_facts(),
        }

    def result(self) -> Outcome:
        with disk_guard(self.folder):
            write_text(self.folder / "experiment.yaml", resolved_yaml(self.experiment))
            self.progress.record_to(self.folder / "events.jsonl")
            self._prepare()
            status = "failed"
            try:
                self._steps()
                self._second_round()
                status = self.ledger.status
                return self._conclude()
            except KeyboardInterrupt:
                status = "interrupted"
                raise
            finally:
                self._write_manifest(status)

    # ---------------------------------------------------------------------------------- preparation

    def _prepare(self) -> None:
        experiment, progress = self.experiment, self.progress
        base = prepare_model(
            experiment.model, experiment.chat, self.stages, progress,
            trust_remote_code=experiment.trust_remote_code,
        )  # fmt: skip
        self.rows = Rows(experiment.data, self.stages, progress)
        plan = make_plan(experiment, base.key, self.rows.keys)
        self.ledger = Ledger(self.stages, plan, base, keep_attacked=experiment.keep_attacked)
        self.pace = Pace(size_of(base.path), self.rows.counts)
        self.rows.require([step.member for step in self.ledger.plan.steps])
        self.ledger.plan.check_points(self.rows.counts)
        self.rows.refuse_overlap(step.member for step in self.ledger.unfinished)
        self._check_kept_back()
        if any(step.kind == "evaluation" for step in self.ledger.unfinished):
            for judge in rubric_judges(experiment.evaluations):
                judge.endpoint.key()  # a missing key is found now, not after hours of training
        self._check_disk()
        if self.ledger.unfinished:
            for line in coverage(self.manifest["settings"]["attacks"]).sentences():
                self.progress.say(line)

    def _check_kept_back(self) -> None:
        """Refuse to keep back every hazard."""
        confirm, have = self.experiment.confirm, self.rows.counts.get("evaluation", 0)
        if confirm is not None and have <= confirm.prompts:
            raise DataError(
                f"preparing the rows: the second round keeps back {confirm.prompts} rows of role "
                f"`evaluation`, and there are {have}; raise `data.counts.evaluation`, or lower "
                "`confirm.prompts`"
            )

    def _check_disk(self) -> None:
        """Refuse to begin what the disk cannot hold."""
        todo = self.ledger.unfinished
        if not todo:
            return
        left = replace(self.ledger.plan, steps=tuple(todo))
        need = disk_bytes(left.most_models(keep_all=self.experiment.keep_attacked), self.pace.size)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise PrerequisiteError(
                f"starting the run in {self.folder}: its models need about {need / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free; free some space, or choose another disk with --out"
            )

    # ---------------------------------------------------------------------------------------- steps

    def _steps(self) -> None:
        """Work through the plan; what is there already is passed over."""
        steps = self.ledger.plan.steps
        self._write_manifest("running")
        with self.progress.task("stages", len(steps), "stages", steady=False) as bar:
            for number, step in enumerate(steps, 1):
                if not self.ledger.wanted(step):
                    bar.skip(1)
                    continue
                left = self.pace.seconds_left(
                    [s for s in steps[number - 1 :] if self.ledger.wanted(s)]
                )
                about = "" if left is None else f", about {duration(left)} left in all"
                self.progress.say(f"stage {number} of {len(steps)}: {step.label}{about}")
                self._work(step)
                self.ledger.release(step.parent)
                self._write_manifest("running")
                bar.advance(1)
        for step in steps:
            if step.kind == "attack":
                self.ledger.release(step.key)

    def _work(self, step: Step) -> None:
        """Do one step and mark it done."""
        from backfire.engine.effect import peak_memory

        folder = self.ledger.folder(step)
        if not self.device_facts:
            self.device_facts = device_facts(self.device)
        with folder.open() as workdir:
            if self.ledger.known.pop(step.key, None) is not None and step.kind == "attack":
                _empty(workdir)  # an attack whose weights were deleted is made again from nothing
            started = time.time()
            bench = Bench(
                workdir=workdir,
                state=self.ledger.state(step),
                seed=step.seed,
                device=self.device,
                data=self._rows_for(step),
                progress=self.progress,
                label=step.label,
            )
            facts: dict[str, Any] = {"label": step.label, "device": self.device_facts}
            try:
                if step.kind == "evaluation":
                    tables = step.member(self.ledger.model(step.parent), bench)
                    for name, rows in tables.items():
                        write_table(workdir / f"{name}.parquet", rows)
                    facts["unjudged"] = sum(v.transient for v in tables.get("verdicts", ()))
                else:
                    made = replace(step.member(self.ledger.model(step.parent), bench), key=step.key)
                    facts["checkpoint"] = self.ledger.relative(made.path)
                    facts["base"] = self.ledger.relative(made.base) if made.base else ""
                facts["peak_memory_bytes"] = peak_memory()
            except TrainingError as error:
                if step.kind == "align" or (
                    step.kind == "evaluation" and not self.ledger.attacked(step)
                ):
                    raise
                facts |= {"failed": str(error), "outcome": error.outcome}
                self.ledger.note_failed(step, str(error), error.outcome)
                if step.kind == "attack":
                    shutil.rmtree(
                        workdir / "state", ignore_errors=True
                    )  # they are attacked weights
                word = "failed" if step.key not in self.ledger.results else "came to no model"
                self.progress.warn(f"{step.label} {word}, the run goes on without it: {error}")
            done = self.ledger.finish(step, started, **facts)
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

    # ---------------------------------------------------------------------------------- second round

    def _second_round(self) -> None:
        """Find the worst attack on each defense and work through its repetition."""
        if self.experiment.confirm is None or not self.experiment.active_defenses:
            return
        facts = [self.ledger.done(step) for step in self.ledger.plan.steps]
        key = content_key(self.experiment.verdict, [f["key"] for f in facts if f])
        chosen = self.folder / "second-round.json"
        if not chosen.is_file() or read_json(chosen)["key"] != key:
            with self.progress.task("find the worst attacks"):
                tables = gather(
                    self.folder,
                    self.experiment,
                    self.ledger.plan,
                    self.ledger.failed,
                    self.pace.size.weights,
                )
                found = conclude(tables, self.experiment.verdict)
            worst = {v.defense: v.worst_attack for v in found.defenses if v.worst_attack}
            write_json(chosen, {"key": key, "worst": worst})
        for defense, attack in read_json(chosen)["worst"].items():
            again = self.experiment.confirming(defense, attack)
            plan = make_plan(again, self.ledger.plan.base, self.rows.keys, kept_back=True)
            self.second_round[defense] = (again, plan)
            self.ledger.plan = self.ledger.plan.joined(plan)
        self._check_disk()
        self._steps()

    # --------------------------------------------------------------------------------------- results

    def _conclude(self) -> Outcome:
        """Gather the tables, draw the conclusion and write the report, unless all are there."""
        facts = [self.ledger.done(step) for step in self.ledger.plan.steps]
        key = content_key(self.experiment.verdict, [[f["key"], f["seconds"]] for f in facts if f])
        stamp = self.folder / "tables" / "key.json"
        report = self.folder / "report" / "report.html"
        if not (stamp.is_file() and read_json(stamp) == key and report.is_file()):
            stamp.unlink(missing_ok=True)
            with self.progress.task("conclude"):
                tables = gather(
                    self.folder,
                    self.experiment,
                    self.ledger.plan,
                    self.ledger.failed,
                    self.pace.size.weights,
                )
                again = {
                    defense: gather(
                        self.folder,
                        experiment,
                        plan,
                        self.ledger.failed,
                        self.pace.size.weights,
                        f"second-{number}",
                    )
                    for number, (defense, (experiment, plan)) in enumerate(
                        self.second_round.items(), 1
                    )
                }
                conclusion = conclude(tables, self.experiment.verdict, again)
                write_json(self.folder / "conclusion.json", conclusion)
                write_table(
                    self.folder / "tables" / "measurements.parquet", conclusion.measurements
                )
            self._write_manifest(self.ledger.status)
            with self.progress.task("report"):
                report = build(self.folder)
            write_json(stamp, key)
        return Outcome(
            self.folder, report, read_json(self.folder / "conclusion.json"), self.computed,
            self.ledger.failures, self.ledger.came_to,
        )  # fmt: skip

    def _write_manifest(self, status: str) -> None:
        experiment, stages = self.experiment, []
        for step in self.ledger.plan.steps:
            done = self.ledger.done(step) or {}
            state = "done" if done else "to do"
            if step.key in self.ledger.failed:
                state = str(done.get("outcome", "failed")) if done else "skipped"
            stages.append(
                {
                    "key": step.key,
                    "kind": step.kind,
                    "label": step.label,
                    "cells": [str(cell) for cell in step.cells],
                    "status": state,
                    "weights": "deleted after evaluation" if done.get("released") else "",
                    "seconds": done.get("seconds"),
                    "peak_memory_bytes": done.get("peak_memory_bytes"),
                    "note": self.ledger.failed.get(step.key, ""),
                }
            )
        self.manifest |= {
            "status": status,
            "updated": _now(),
            "model_key": self.ledger.plan.base,
            "data": self.rows.roles,
            "reads": [
                {"kind": kind, "label": label, "rows": self.rows.read_by_all(members)}
                for kind, label, members in (
                    *(("align", a.label, [a]) for a in [experiment.align] if a is not None),
                    *(("defense", d.label, [d]) for d in experiment.active_defenses),
                    *(("attack", c.label, c.parts) for c in experiment.attack_courses),
                )
            ],
            "stages": stages,
        }
        # Every step keeps what it ran on; the run shows the latest.
        ran = [f for f in map(self.ledger.done, self.ledger.plan.steps) if f and "device" in f]
        if ran:
            self.manifest["device"] = ran[-1]["device"]
        write_json(self.folder / "manifest.json", self.manifest)


def _started(folder: Path, digest: str) -> str:
    """Return when the run in this folder began: now, unless it is going on with the same settings."""
    path = folder / "manifest.json"
    before = read_json(path) if path.is_file() else {}
    return str(before["started"]) if before.get("digest") == digest else _now()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
