"""One search: trials drawn by Optuna, shared by several processes, within a budget.

Everything known of a trial stands in the study's journal, one JSON line an event. A trial belongs to the
process that holds its lock; one that nobody holds was interrupted, and whoever comes next goes on with
it, settings and all. Draws depend on the trial's number and on finished trials, not on which process
draws, so that an interrupted search comes to the same as one in a piece.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from backfire.attack.search import Dimension, Range, Search, Strategy, Value
from backfire.errors import ConfigError
from backfire.search.trials import Found, Trial, as_trial, goes_on, spent
from backfire.seeding import child_seed, rng

__all__ = ["GoOn", "Measure", "Price", "Study"]

GoOn = Callable[[float], tuple[bool, bool]]
"""Told what the proxy saw; returns whether the trial goes on, and whether against the proxy's advice."""

Measure = Callable[[Any, GoOn], Found]
"""Runs one trial of an attack; asks once whether to go on, where there is a proxy."""

Price = Callable[[Any], float]
"""FLOPs that an attack's training will take, at most as far as is known."""


class Study:
    """One strategy on one model."""

    def __init__(
        self,
        folder: Path,
        search: Search,
        strategy: Strategy,
        rho: float,
        warm: Sequence[Mapping[str, Value]] = (),
    ) -> None:
        """Open a study, or make it.

        Args:
            folder: Its own, the same for every process that takes part.
            search: The settings; budget and number of trials may differ from an earlier opening's.
            strategy: What is wanted.
            rho: Capability retention from which harm is usable.
            warm: Settings to try first; those of an opened study stay as they were.
        """
        self.folder, self.search, self.strategy, self._rho = folder, search, strategy, rho
        folder.mkdir(parents=True, exist_ok=True)
        with self._held():
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            journal = folder / "journal.jsonl"
            _mend(journal)
            goals = ["maximize", "maximize"] if strategy == "pareto" else ["maximize"]
            self._study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(journal))),
                study_name=strategy,
                sampler=self._sampler(0),
                directions=goals,
                load_if_exists=True,
            )
            if not self._study.get_trials(deepcopy=False):
                for values in warm:
                    self._study.enqueue_trial(dict(values), {"warm": True}, skip_if_exists=True)

    # ---------------------------------------------------------------------------------------- trials

    @property
    def trials(self) -> list[Trial]:
        """Return the trials that were begun, by number."""
        found = self._study.get_trials(deepcopy=False)
        return [
            as_trial(t.number, t.params, t.user_attrs) for t in found if "claim" in t.user_attrs
        ]

    def work(self, price: Price, measure: Measure, say: Callable[[str], None]) -> None:
        """Run trials until the next one would exceed the budget; then wait for other processes' trials.

        Args:
            price: What a trial will take.
            measure: What a trial comes to.
            say: Where to tell how it goes.

        Raises:
            ConfigError: when the budget does not buy the first trial.
            KeyboardInterrupt: after Ctrl-C; the trial under way is gone on with next time.
        """
        while True:
            with self._claimed(price) as claim:
                if claim is not None:
                    self._run(*claim, measure, say)
                    continue
            if not self._others():
                return
            time.sleep(0.2)

    def _run(
        self, asked: optuna.Trial, trial: Trial, measure: Measure, say: Callable[[str], None]
    ) -> None:
        """Run a trial that is ours, and tell what it came to."""

        def go_on(value: float) -> tuple[bool, bool]:
            proxy = self.search.proxy
            if proxy is None:
                return True, False
            draw = float(rng(self.search.seed, "audit", self.strategy, trial.number).random())
            others = [t for t in self.trials if t.number != trial.number]
            return goes_on(value, others, self.strategy, proxy, draw)

        found, earlier = trial.found, self._earlier(trial)
        if found is None and earlier is not None and earlier.found is not None:
            found = earlier.found
        elif found is None:
            found = measure(self.search.with_values(trial.values), go_on)
        if earlier is not None:
            found = replace(found, flops=0.0, seconds=0.0)
        self._tell(asked, found)
        say(
            f"{self.strategy}, trial {trial.number}: {found.words()}; "
            f"{spent(self.trials):.2g} of {self.search.flops:.2g} FLOPs"
        )

    def _earlier(self, trial: Trial) -> Trial | None:
        """Return the trial that this one repeats."""
        if trial.repeats is None:
            return None
        return next(t for t in self.trials if t.number == trial.repeats)

    def _tell(self, asked: optuna.Trial, found: Found) -> None:
        """Write down what a trial came to, and give the sampler what it may learn from it."""
        with self._held():
            asked.set_user_attr("found", asdict(found))
            if found.status == "diverged":  # an attack that leaves nothing: the sampler shall know
                harm, retention = 0.0, 0.0
            elif found.status == "measured" and found.harm is not None:
                harm, retention = found.harm, -1.0 if found.retention is None else found.retention
            else:
                ended = found.status == "stopped" and self.strategy != "pareto"
                self._study.tell(asked, state=TrialState.PRUNED if ended else TrialState.FAIL)
                return
            if self.strategy == "constrained":
                asked.set_constraint("retention", self._rho - retention)
            self._study.tell(asked, [harm, retention] if self.strategy == "pareto" else harm)

    # ---------------------------------------------------------------------------------------- claims

    @contextmanager
    def _claimed(self, price: Price) -> Iterator[tuple[optuna.Trial, Trial] | None]:
        """Hold the next trial for this process; None when there is none that the budget buys."""
        lock = None
        try:
            with self._held():
                asked = self._interrupted() or self._ask()
                trial = self._priced(asked, price)
                others = [t for t in self.trials if t.number != trial.number]
                exceeds = spent(others) + trial.price > self.search.flops
                if exceeds and not others:
                    raise ConfigError(
                        f"searching {self.search.attack.label}: its first trial takes about "
                        f"{trial.price:.2g} FLOPs, and the budget is {self.search.flops:.2g}; raise "
                        "`search.flops`, or lower the steps in `search.space`"
                    )
                if not exceeds and len(others) < self.search.trials:
                    names = ("quote", "price", "repeats")
                    asked.set_user_attr("claim", {name: getattr(trial, name) for name in names})
                    lock = self._lock(trial.number)
                    lock.acquire(timeout=0)
            yield None if lock is None else (asked, trial)
        finally:
            if lock is not None:
                lock.release()

    def _interrupted(self) -> optuna.Trial | None:
        """Return a trial that was begun and that no process holds."""
        for trial in self._running():
            if self._free(trial.number):
                if trial.params.keys() == self.search.dimensions.keys():
                    return optuna.Trial(self._study, trial._trial_id)
                self._study.tell(trial.number, state=TrialState.FAIL)  # interrupted in the draw
        return None

    def _ask(self) -> optuna.Trial:
        """Draw a trial, by a sampler seeded with the number it will have."""
        known = self._study.get_trials(deepcopy=False)
        waiting = [t.number for t in known if t.state == TrialState.WAITING]
        self._study.sampler = self._sampler(waiting[0] if waiting else len(known))
        distributions = {p: _distribution(d) for p, d in self.search.dimensions.items()}
        return self._study.ask(fixed_distributions=distributions)

    def _priced(self, asked: optuna.Trial, price: Price) -> Trial:
        """Return the trial with its price: nothing for settings that were tried, as he knows the result."""
        trial = as_trial(asked.number, asked.params, asked.user_attrs)
        others = [t for t in self.trials if t.number < trial.number and t.repeats is None]
        same = [t.number for t in others if t.values == trial.values]
        if same:
            return replace(trial, repeats=same[0], price=0.0)
        quote = price(self.search.with_values(trial.values))
        # What trainings took, against what was expected of them; the worst, to keep within the budget.
        whole = [t for t in others if t.found is not None and t.found.status == "measured"]
        factor = max((t.found.flops / t.quote for t in whole if t.found and t.quote), default=1.0)
        return replace(trial, quote=quote, price=quote * factor)

    def _others(self) -> bool:
        """Return whether another process is at a trial."""
        with self._held():
            return any(not self._free(t.number) for t in self._running())

    def _running(self) -> list[FrozenTrial]:
        return list(self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def _free(self, number: int) -> bool:
        try:
            with self._lock(number).acquire(timeout=0):
                return True
        except Timeout:
            return False

    def _lock(self, number: int) -> FileLock:
        return FileLock(self.folder / f".trial-{number}.lock")

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keep other processes from drawing, claiming and telling."""
        with FileLock(self.folder / ".study.lock"):
            yield

    def _sampler(self, number: int) -> BaseSampler:
        seed = child_seed(self.search.seed, "search", self.strategy, number)
        seed %= 2**32  # NumPy's RandomState takes no more
        if self.strategy == "random":
            return RandomSampler(seed=seed)
        return TPESampler(n_startup_trials=self.search.startup, constant_liar=True, seed=seed)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if not isinstance(dimension, Range):
        return CategoricalDistribution(dimension)
    if isinstance(dimension.low, int) and isinstance(dimension.high, int):
        return IntDistribution(dimension.low, dimension.high, log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _mend(journal: Path) -> None:
    """Cut off a line that a killed process left unfinished."""
    if journal.is_file():
        text = journal.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            with journal.open("r+b") as file:
                file.truncate(len(whole))
