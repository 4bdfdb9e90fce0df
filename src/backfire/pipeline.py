"""From an experiment to a run folder: the only module that knows all stages.

prepare model and rows -> plan -> train and measure, step by step -> tables -> conclusion -> report

Every step is kept under its content key, so an interrupted run goes on where it stopped, a finished
one recomputes nothing, and changed settings redo only what they touch.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backfire.config import Experiment, resolved_yaml
from backfire.errors import (
    CheckpointError,
    ConfigError,
    PrerequisiteError,
)
from backfire.evaluate.verdict import conclude
from backfire.gather import gather
from backfire.plan import Plan
from backfire.progress import Progress, Silent
from backfire.provenance import git_state, host_facts, versions
from backfire.report import build
from backfire.report.coverage import coverage
from backfire.store import (
    SCHEMA_VERSION,
    content_key,
    disk_guard,
    read_json,
    write_json,
    write_table,
    write_text,
)
from backfire.work import Workshop

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
        ConfigError: when the experiment has a search, which is not what a run does.
        PrerequisiteError: when another process works in the folder, or the disk is or would be full.
        CheckpointError: when the folder was written by a newer version.
        DataError: when a member needs rows that no source gives.
        TrainingError: when the safety training of the undefended model cannot go on. A defense or
            attack that cannot is recorded, and the run goes on without it.
        KeyboardInterrupt: after Ctrl-C; everything finished is kept.
    """
    if experiment.search is not None:
        raise ConfigError(
            f"running {experiment.name}: the run file has a `search`; give it to `backfire search`, or "
            "take the section out to run the rest alone"
        )
    folder = run_folder(experiment, out)
    with open_run(folder):
        if fresh:
            for name in ("stages", "tables", "report", "search"):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in ("manifest.json", "conclusion.json", "events.jsonl", "search.json"):
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
        self.progress = progress
        self.second_round: dict[str, tuple[Experiment, Plan]] = {}
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
            self.shop = Workshop(self.experiment, self.folder, self.device, self.progress)
            self.ledger = self.shop.ledger(self.shop.plan(self.experiment))
            self.shop.check(self.ledger)
            if self.ledger.unfinished:
                for line in coverage(self.manifest["settings"]["attacks"]).sentences():
                    self.progress.say(line)
            status = "failed"
            try:
                self._work()
                self._second_round()
                status = self.ledger.status
                return self._conclude()
            except KeyboardInterrupt:
                status = "interrupted"
                raise
            finally:
                self._write_manifest(status)

    def _work(self) -> None:
        """Work through the plan; the manifest is at all times true."""
        self._write_manifest("running")
        self.shop.do(self.ledger, lambda: self._write_manifest("running"))

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
                    self.shop.pace.size.weights,
                )
                found = conclude(tables, self.experiment.verdict)
            worst = {v.defense: v.worst_attack for v in found.defenses if v.worst_attack}
            write_json(chosen, {"key": key, "worst": worst})
        for defense, attack in read_json(chosen)["worst"].items():
            again = self.experiment.confirming(defense, attack)
            plan = self.shop.plan(again, kept_back=True)
            self.second_round[defense] = (again, plan)
            self.ledger.plan = self.ledger.plan.joined(plan)
        self.shop.check(self.ledger)
        self._work()

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
                    self.shop.pace.size.weights,
                )
                again = {
                    defense: gather(
                        self.folder,
                        experiment,
                        plan,
                        self.ledger.failed,
                        self.shop.pace.size.weights,
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
            self.folder, report, read_json(self.folder / "conclusion.json"), self.shop.computed,
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
            "data": self.shop.rows.roles,
            "reads": [
                {"kind": kind, "label": label, "rows": self.shop.rows.read_by_all(members)}
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
