"""A search on every model of a run: each trial an attack step like any other, in the run's own store.

control and defenses x strategies -> trials -> the best of each -> again on fresh seeds and prompts
-> an ordinary run with what was found among its attacks -> report
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from backfire.attack.search import Search, Strategy, Value
from backfire.config import CONTROL, Experiment
from backfire.engine.settings import Trained
from backfire.errors import CheckpointError, ConfigError
from backfire.evaluate.verdict import score
from backfire.gather import collect
from backfire.ledger import Ledger
from backfire.pipeline import Outcome, run, run_folder
from backfire.plan import Plan
from backfire.pricing import cost
from backfire.progress import Progress
from backfire.search.lengths import Lengths
from backfire.search.study import GoOn, Study
from backfire.search.trials import Found, Trial, agreement, best, front, spent
from backfire.store import content_key, disk_guard, read_json, write_json
from backfire.work import Workshop

__all__ = ["RECORD", "search"]

RECORD = "search.json"
"""File in the run folder that holds what the searches came to."""

_TRIAL = "trial"
"""Label of the attack under trial, in tables that nobody keeps."""


def search(
    experiment: Experiment,
    out: Path | None,
    *,
    device: str,
    progress: Progress,
    passed: Any = None,
) -> Outcome:
    """Search on every model of an experiment, score what was found anew, and run it with the rest.

    Several processes may be given the same folder: they share the trials, and each comes to the end.

    Args:
        experiment: With a `search`.
        out: Run folder; None: `runs/<name>-<digest>`.
        device: Where to compute.
        progress: Where to report.
        passed: What the user gave, for the manifest.

    Raises:
        ConfigError: when there is no search, when its budget does not buy one trial, when it has a proxy
            and nothing that asks hazards, or when the former search has no such settings.
        PrerequisiteError, DataError, CheckpointError, TrainingError: see `backfire.pipeline.run`.
        KeyboardInterrupt: after Ctrl-C; the same command goes on with the same trials.
    """
    settings = experiment.search
    if settings is None:
        raise ConfigError(
            f"searching with {experiment.name}: the run file has no `search`; add e.g.\n"
            "  search: {attack: {name: harmful, shots: 100}, flops: 1.0e+15}"
        )
    if settings.proxy is not None and not _asking(experiment):
        raise ConfigError(
            "searching: `search.proxy` asks hazards, and no evaluation does; add `harmfulness`, or give "
            "`search.proxy: null`"
        )
    folder = run_folder(experiment, out)
    with disk_guard(folder):
        warm = _former(Path(settings.warm_start), settings) if settings.warm_start else ()
        shop = Workshop(experiment, folder, device, progress)
        lengths = Lengths(shop.base, shop.rows)
        searches = [
            _Search(shop, lengths, settings, target, strategy, warm)
            for target in (CONTROL, *(d.label for d in experiment.active_defenses))
            for strategy in settings.strategies
        ]
        for one in searches:
            one.work()
        with FileLock(folder / "search" / ".end.lock"):
            _keep(folder, {"settings": settings, "searches": [one.record() for one in searches]})
            winners = tuple(w for one in searches if (w := one.winner) is not None)
            whole = {"attacks": (*experiment.attacks, *winners), "search": None}
            return run(
                experiment.model_copy(update=whole), folder, device=device, progress=progress,
                passed=passed,
            )  # fmt: skip


class _Search:
    """One strategy on one model of the run."""

    def __init__(
        self, shop: Workshop, lengths: Lengths, settings: Search, target: str, strategy: Strategy,
        warm: Sequence[Mapping[str, Value]],
    ) -> None:  # fmt: skip
        self.shop, self.settings, self.target, self.strategy = shop, settings, target, strategy
        self.lengths = lengths
        experiment = shop.experiment
        self.run = experiment.model_copy(
            update={
                "defenses": tuple(d for d in experiment.defenses if d.label == target),
                "seeds": experiment.seeds[:1],
                "search": None,
            }
        )
        # All that a trial's number depends on; a larger budget goes on with the same trials.
        budget = {"flops": 1.0, "trials": 1, "strategies": (strategy,)}
        steps = [step.key for step in self._plan(self._with(())).steps]
        key = content_key(
            settings.model_copy(update=budget), experiment.verdict, steps, shop.rows.keys
        )
        place = shop.folder / "search" / f"{target}-{strategy}-{key}"
        self.study = Study(place, settings, strategy, experiment.verdict.rho, warm)
        self._locks = shop.folder / "search"

    def work(self) -> None:
        """Run trials until the budget is spent."""
        self._do(self._plan(self._with(())))  # the model itself, and what it is compared with
        self.study.work(self._price, self._measure, self._say)

    def _say(self, line: str) -> None:
        self.shop.progress.say(f"search on {_named(self.target)}, {line}")

    @property
    def winner(self) -> Any | None:
        """Return the attack that got the most usable harm; None when none got any."""
        found = best(self.study.trials)
        if found is None:
            return None
        attack = self.settings.with_values(found.values)
        return attack.model_copy(update={"label": f"search-{self.strategy}-{_named(self.target)}"})

    # -------------------------------------------------------------------------------------- one trial

    def _price(self, attack: Any) -> float:
        """Return the FLOPs of an attack's trainings; what it does beside them is seen afterwards."""
        size, counts = self.shop.pace.size, self.shop.rows.counts
        parts = [p for p in getattr(attack, "parts", (attack,)) if isinstance(p, Trained)]
        return sum(cost(part, size, counts, self.lengths.mean(part)).flops for part in parts)

    def _measure(self, attack: Any, go_on: GoOn) -> Found:
        """Train and measure; with a proxy, stop on the way to look."""
        attack = attack.model_copy(update={"label": _TRIAL})
        whole = self._with((attack,))
        plan = self._plan(whole)
        started, before, proxy, audited = time.time(), self.shop.computed, None, False
        # Two processes can come to the same settings; the second finds all done.
        with FileLock(self._locks / f".{plan.models[whole.cells[-1]]}.lock"):
            glimpse = self.settings.glimpse(attack)
            if glimpse is not None:
                look = self._with((glimpse,), _asking(self.run, self.settings))
                on_the_way = self._plan(look)
                # Both in the books, so that the training's state is kept for what is still to come.
                ledger = self.shop.ledger(on_the_way.joined(plan))
                self.shop.check(ledger)
                self.shop.do(ledger, only=on_the_way)
                found = self._found(look, on_the_way, ledger, started, before)
                if found.status != "measured" or found.harm is None:
                    ledger.abandon(plan)
                    return replace(found, harm=None)
                proxy = found.harm
                goes, audited = go_on(proxy)
                if not goes:
                    ledger.abandon(plan)
                    return replace(found, status="stopped", harm=None, retention=None, usable=None,
                                   proxy=proxy, reason="")  # fmt: skip
                ledger = self._do(ledger.plan)
            else:
                ledger = self._do(plan)
            found = self._found(whole, plan, ledger, started, before)
        return replace(found, proxy=proxy, audited=audited)

    def _found(
        self, run: Experiment, plan: Plan, ledger: Ledger, started: float, before: int
    ) -> Found:
        """Return what the last cell of a plan came to."""
        weights = self.shop.pace.size.weights
        tables = collect(self.shop.folder, run, plan, ledger.failed, weights)
        cell = run.cells[-1]
        row = next(
            r for r in tables["cells"] if (r["defense"], r["attack"]) == (cell.defense, _TRIAL)
        )
        seconds = time.time() - started if self.shop.computed > before else 0.0
        # What diverged has no count of its own; its whole price is charged.
        attack = run.attack_courses[-1].member
        flops = self._price(attack) if row["flops"] is None else float(row["flops"])
        if row["status"] != "done":
            failed = row["status"] == "failed"
            return Found(
                "failed" if failed else "diverged", flops, seconds, reason=str(row["reason"])
            )
        got = score(tables, run.verdict, cell.defense, _TRIAL)
        why = got.verified.note if got.verified.value is None else got.usable.note
        return Found(
            "failed" if got.verified.value is None else "measured",
            flops,
            seconds,
            got.verified.value,
            got.retention.value,
            got.usable.value,
            reason=why if None in (got.verified.value, got.usable.value) else "",
        )

    def _with(self, attacks: Sequence[Any], evaluations: Sequence[Any] | None = None) -> Experiment:
        """Return the run with these attacks alone; its cells end with the last one on our model."""
        changes: dict[str, Any] = {"attacks": tuple(attacks)}
        if evaluations is not None:
            changes["evaluations"] = tuple(evaluations)
        return self.run.model_copy(update=changes)

    def _plan(self, run: Experiment) -> Plan:
        """Return the steps for our model alone, and for the clean one it is compared with."""
        clean = (CONTROL, CONTROL)
        mine = [c for c in run.cells if c.defense == self.target or (c.defense, c.attack) == clean]
        return self.shop.plan(run).only(mine)

    def _do(self, plan: Plan) -> Ledger:
        ledger = self.shop.ledger(plan)
        self.shop.check(ledger)
        self.shop.do(ledger)
        return ledger

    # ---------------------------------------------------------------------------------------- results

    def record(self) -> dict[str, Any]:
        """Return what the search came to, the best settings scored once more on fresh seeds and prompts."""
        trials, winner = self.study.trials, best(self.study.trials)
        proxy = self.settings.proxy
        return {
            "model": self.target,
            "strategy": self.strategy,
            "budget": self.settings.flops,
            "spent": spent(trials),
            "trials": [self._row(trial) for trial in trials],
            "best": None if winner is None else winner.number,
            "front": [t.number for t in front(trials)],
            "label": None if self.winner is None else self.winner.label,
            "again": self._again(),
            "proxy": None if proxy is None else asdict(agreement(trials, self.strategy, proxy)),
        }

    @staticmethod
    def _row(trial: Trial) -> dict[str, Any]:
        found = {} if trial.found is None else asdict(trial.found)
        return {
            "number": trial.number,
            "values": trial.values,
            "repeats": trial.repeats,
            "warm": trial.warm,
            **found,
        }

    def _again(self) -> dict[str, Any] | None:
        """Return the second round of the best settings; the run's own finds it done."""
        winner = self.winner
        if winner is None:
            return None
        found = self.shop.experiment.model_copy(update={"attacks": (winner,), "search": None})
        again = found.confirming(self.target, winner.label)
        plan = self.shop.plan(again, kept_back=True)
        ledger = self._do(plan)
        weights = self.shop.pace.size.weights
        tables = collect(self.shop.folder, again, plan, ledger.failed, weights)
        got = score(tables, again.verdict, self.target, winner.label)
        prompts = again.confirm.prompts if again.confirm else 0
        return {"seeds": again.seeds, "prompts": prompts, **got._asdict()}


def _keep(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record; a report of an earlier one is made again."""
    path = folder / RECORD
    before = path.read_bytes() if path.is_file() else b""
    write_json(path, record)
    if path.read_bytes() != before:
        (folder / "tables" / "key.json").unlink(missing_ok=True)


def _named(target: str) -> str:
    return "undefended" if target == CONTROL else target


def _asking(experiment: Experiment, settings: Search | None = None) -> list[Any]:
    """Return the evaluations that ask hazards, cut to what the proxy asks."""
    found = [e for e in experiment.evaluations if e.name == "harmfulness"]
    if settings is None or settings.proxy is None:
        return list(found)
    prompts = settings.proxy.prompts
    return [
        e.model_copy(
            update={"num_prompts": min(e.num_prompts or prompts, prompts), "num_benign": 0}
        )
        for e in found
    ]


def _former(folder: Path, settings: Search) -> list[dict[str, Value]]:
    """Return the settings that won in a former search, best first, as far as the space has them.

    Raises:
        CheckpointError: when the folder holds no search.
        ConfigError: when none of its settings lie in the space.
    """
    if not (folder / RECORD).is_file():
        raise CheckpointError(
            f"reading the former search {folder}: there is no {RECORD} in it; give the folder that "
            "`backfire search` printed, or leave `search.warm_start` out"
        )
    rows = [row for one in read_json(folder / RECORD)["searches"] for row in one["trials"]]
    rows = sorted((row for row in rows if row.get("usable")), key=lambda row: -row["usable"])
    found: list[dict[str, Value]] = []
    for row in rows:
        inside = {p: v for p, v in row["values"].items() if settings.holds(p, v)}
        if inside and inside not in found:
            found.append(inside)
    if not found:
        raise ConfigError(
            f"starting from the former search {folder}: of its {len(rows)} trials with usable harm none "
            "has a setting that lies in this space; widen `search.space`, or leave `search.warm_start` out"
        )
    return found[: settings.warm_trials]
