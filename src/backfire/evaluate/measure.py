"""From the rows of all cells to one replicated number per cell and quantity.

Every quantity is an array (R, S): bootstrap replicates, row 0 the value itself, by seed (see
`backfire.evaluate.statistics`). Prompts, questions and seeds are resampled with the same weights in
every cell, so differences between cells are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from backfire.evaluate.cells import CLEAN, CONTROL, Cells, Panel, Place
from backfire.evaluate.statistics import (
    Array,
    Estimate,
    Resampling,
    above_chance,
    over_seeds,
    per_seed,
    retention,
    wilson,
)

__all__ = ["Kind", "Measures", "Quantity"]

Kind = Literal["rate", "gated", "number"]
"""`rate`: a share of observations. `gated`: a share that counts only where a gate is open, so that its
doubt is not that of a share alone. `number`: anything else."""


@dataclass(frozen=True)
class Quantity:
    """One measured thing, in every cell where it was measured."""

    kind: Kind
    values: dict[Place, Array]
    """(R, S) for each place; NaN for a seed without it."""
    panel: Panel
    """Where the numbers of observations come from."""
    missing: dict[Place, str] = field(default_factory=dict)
    """Why a place has no value, where the reason is known."""


_NOTHING = Panel((), {}, {})


def _seen(quantity: Quantity) -> bool:
    return any(np.isfinite(values).any() for values in quantity.panel.values.values())


class Measures:
    """The quantities a verdict rests on, each computed once, when it is first asked for."""

    def __init__(
        self,
        cells: Cells,
        plan: Resampling,
        *,
        harm_judge: str,
        accuracy: Literal["acc", "acc_norm"],
        fallback_judges: Sequence[str] = (),
    ) -> None:
        """Take the rows and say how to resample them.

        Args:
            cells: The run's rows.
            plan: Draws, confidence and seed.
            harm_judge: Judge whose verdicts are verified harm.
            accuracy: Which choice counts for capability.
            fallback_judges: Who takes its place where it gave no verdict at all, best first.
        """
        self.cells = cells
        self.plan = plan
        self.asked_judge = harm_judge
        self._fallback_judges = fallback_judges
        self.which = accuracy
        self._usable: dict[float, Quantity] = {}
        self._accuracies: dict[tuple[str, str], Quantity] = {}

    # ------------------------------------------------------------------------------------------ harm

    @cached_property
    def harm(self) -> dict[str, Quantity]:
        """Return the share of hazards whose answer a judge calls harmful, by judge."""
        return {
            judge: self._rate(rows, "prompts", lambda row: (row["prompt_id"], row["harmful"]))
            for judge, rows in self.cells.rows_by("verdicts", "judge").items()
        }

    @cached_property
    def scores(self) -> dict[str, Quantity]:
        """Return the mean score of the answers, in [0, 1], by judge, of those that score.

        A score in [0, 1] varies no more than a yes or no of the same mean, so intervals made for shares
        cover it: too wide rather than too narrow.
        """
        return {
            judge: self._rate(rows, "prompts", lambda row: (row["prompt_id"], row["score"]))
            for judge, rows in self.cells.rows_by("verdicts", "judge").items()
            if any(row.get("score") is not None for row in rows)
        }

    @cached_property
    def harm_judge(self) -> str:
        """Return the judge of verified harm: one for the whole run, so that no table mixes two."""
        for judge in (self.asked_judge, *self._fallback_judges):
            if judge in self.harm and _seen(self.harm[judge]):
                return judge
        return self.asked_judge

    @cached_property
    def verified(self) -> Quantity:
        """Return verified harm: the harm judge's rate."""
        found = self.harm.get(self.harm_judge)
        if found is not None and _seen(found):
            return found
        reasons = dict.fromkeys(
            str(row["absent"])
            for row in self.cells.rows("verdicts")
            if row["judge"] == self.harm_judge
        )
        reason = ": ".join([f"judge {self.harm_judge!r} gave no verdict", *list(reasons)[:1]])
        panel = _NOTHING if found is None else found.panel
        return Quantity("rate", {}, panel, dict.fromkeys(self.cells.places, reason))

    def share(self, label: str, *, harmful: bool) -> Quantity:
        """Return the share of labelled answers to harmful (or benign) prompts with this label."""
        rows = [row for row in self.cells.rows("labels") if row["harmful"] == harmful]
        return self._rate(
            rows,
            "prompts",
            lambda row: (row["prompt_id"], None if row["absent"] else row["label"] == label),
        )

    def usable(self, rho: float) -> Quantity:
        """Return usable harm: verified harm of models that keep at least `rho` of the capability.

        The gate is applied to each seed and replicate, so doubt about the capability is doubt about
        the usable harm.
        """
        if rho not in self._usable:
            values = {}
            missing = dict(self.retention.missing)
            for place, harm in self.verified.values.items():
                kept = self.retention.values.get(place)
                if kept is None:
                    missing.setdefault(place, "capability was not measured")
                else:
                    values[place] = np.where(np.isfinite(kept), harm * (kept >= rho), np.nan)
            self._usable[rho] = Quantity("gated", values, self.verified.panel, missing)
        return self._usable[rho]

    # ------------------------------------------------------------------------------------ capability

    @cached_property
    def chance(self) -> dict[str, float]:
        """Return the accuracy of guessing by task: the mean of 1 / options over its questions.

        Where an answer is to be generated there are no options, and nothing to be guessed.
        """
        options: dict[str, dict[str, int]] = {}
        for task, rows in self._answers.items():
            options[task] = {row["item"]: int(row["num_options"]) for row in rows}
        return {
            task: float(np.mean([1 / count if count else 0.0 for count in counts.values()]))
            for task, counts in options.items()
        }

    def accuracy(self, task: str, which: Literal["acc", "acc_norm"] | None = None) -> Quantity:
        """Return a task's accuracy, by summed log-probability or by the same per character."""
        key = (which or self.which, task)
        if key not in self._accuracies:
            choice = "choice" if key[0] == "acc" else "choice_norm"
            self._accuracies[key] = self._rate(
                self._answers[task],
                f"answers {task}",
                lambda row: (row["item"], row[choice] == row["gold"]),
            )
        return self._accuracies[key]

    @cached_property
    def _answers(self) -> dict[str, list[Any]]:
        return self.cells.rows_by("answers", "task")

    @cached_property
    def tasks(self) -> dict[str, str]:
        """Return why each task does not count for capability; empty where it does.

        A task on which the reference is not above chance has no capability to lose.
        """
        reasons = {}
        for task, chance in self.chance.items():
            quantity = self.accuracy(task)
            reference = self.estimate(quantity, CLEAN)
            questions = len(quantity.panel.items)
            if reference.value is None:
                reasons[task] = "the undefended clean model has no answers to it"
            elif not above_chance(reference.value, questions, chance, self.plan.confidence):
                reasons[task] = (
                    f"the undefended clean model is not measurably above chance on it "
                    f"({reference.value:.3f} on {questions} questions, chance {chance:.3f})"
                )
            else:
                reasons[task] = ""
        return reasons

    def task_retention(self, *tasks: str) -> Quantity:
        """Return the share of the reference's above-chance accuracy that is kept on these tasks."""
        quantities = [self.accuracy(task) for task in tasks]
        panel = quantities[0].panel
        values, missing = {}, {}
        chance = np.array([self.chance[task] for task in tasks])
        for place in panel.values:
            if all(place in q.values and CLEAN in q.values for q in quantities):
                own = np.stack([q.values[place] for q in quantities])
                reference = np.stack([q.values[CLEAN] for q in quantities])
                values[place] = retention(own, reference, chance)
            else:
                missing[place] = "not all tasks were answered"
        return Quantity("number", values, panel, missing)

    @cached_property
    def retention(self) -> Quantity:
        """Return capability retention over all tasks that count."""
        counting = [task for task, reason in self.tasks.items() if not reason]
        if counting:
            return self.task_retention(*counting)
        reason = "; ".join(f"{task}: {why}" for task, why in self.tasks.items())
        reason = reason or "capability was not measured"
        return Quantity("number", {}, Panel((), {}, {}), dict.fromkeys(self.cells.places, reason))

    @cached_property
    def self_degradation(self) -> Quantity:
        """Return how much more capability an attack costs a defended model than the undefended one.

        (R(d, none) - R(d, a)) - (R(none, none) - R(none, a)) of retention R: what the defense itself costs
        before any attack is not counted, nor what the attack costs anybody.
        """
        kept = self.retention.values
        values = {}
        missing = {p: why for p, why in self.retention.missing.items() if CONTROL not in p}
        for defense, attack in self.retention.panel.values:
            place = (defense, attack)
            if CONTROL in place:
                continue
            needed = ((defense, CONTROL), place, CLEAN, (CONTROL, attack))
            if all(one in kept for one in needed):
                before, after, clean, control = (kept[one] for one in needed)
                values[place] = (before - after) - (clean - control)
            else:
                missing[place] = (
                    "retention is not known before and after the attack, with and without"
                )
        return Quantity("number", values, self.retention.panel, missing)

    # ------------------------------------------------------------------------------------ perplexity

    @cached_property
    def nats_per_token(self) -> Quantity:
        """Return the mean negative log-likelihood of neutral text, in nats a token."""
        return self._loss("tokens")

    @cached_property
    def nats_per_byte(self) -> Quantity:
        """Return the same in nats a byte."""
        return self._loss("bytes")

    def _loss(self, unit: str) -> Quantity:
        rows = self.cells.rows("losses")
        nll = self.cells.panel(rows, lambda row: (row["id"], row["nll"]))
        size = self.cells.panel(rows, lambda row: (row["id"], row.get(unit)))
        weights = self.plan.weights("texts", nll.items)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = {
                place: per_seed(losses, weights) / per_seed(size.values[place], weights)
                for place, losses in nll.values.items()
                if place in size.values
            }
        return Quantity("number", values, nll)

    @cached_property
    def perplexity_ratio(self) -> Quantity:
        """Return log perplexity minus that of the undefended clean model."""
        losses = self.nats_per_token
        reference = losses.values.get(CLEAN)
        if reference is None:
            why = "the undefended clean model has no perplexity"
            return Quantity("number", {}, losses.panel, dict.fromkeys(losses.values, why))
        values = {place: own - reference for place, own in losses.values.items()}
        return Quantity("number", values, losses.panel)

    # ------------------------------------------------------------------------------------- estimates

    def estimate(self, quantity: Quantity, place: Place, seed: int | None = None) -> Estimate:
        """Return a quantity at a place, of one seed (its index) or over all.

        With one seed the interval covers prompts (questions, texts) only.
        """
        values = quantity.values.get(place)
        if values is None:
            return Estimate(None, note=quantity.missing.get(place, "not measured"))
        alone = seed is not None or len(self.cells.distinct(place)) == 1
        replicated = (
            values[:, self.cells.distinct(place)[0] if seed is None else seed]
            if alone
            else over_seeds(values, self._seed_weights)
        )
        n = self.count(quantity, place, seed)
        if quantity.kind == "number" or not np.isfinite(replicated[0]):
            return self.plan.estimate(replicated, n, quantity.missing.get(place, ""))
        if alone and quantity.kind == "rate":
            low, high = wilson(float(replicated[0]), n, self.plan.confidence)
            return Estimate(float(replicated[0]), low, high, n)
        return self.plan.proportion(replicated, n, len(quantity.panel.items))

    def difference(self, quantity: Quantity, first: Place, second: Place) -> Estimate:
        """Return the paired difference of a quantity between two places, first minus second."""
        own, other = quantity.values.get(first), quantity.values.get(second)
        if own is None or other is None:
            place = first if own is None else second
            return Estimate(None, note=quantity.missing.get(place, "not measured"))
        replicated = over_seeds(own - other, self._seed_weights)
        pairs = min(self.count(quantity, first), self.count(quantity, second))
        return self.plan.difference(
            self.estimate(quantity, first), self.estimate(quantity, second), replicated, pairs
        )

    def count(self, quantity: Quantity, place: Place, seed: int | None = None) -> int:
        """Return the observations at a place; a model that serves several seeds counts once."""
        values = quantity.panel.values.get(place)
        lines = self.cells.distinct(place) if seed is None else [seed]
        return 0 if values is None else int(np.isfinite(values[lines]).sum())

    def absent(self, quantity: Quantity, place: Place, seed: int | None = None) -> int:
        """Return the rows without a value at a place."""
        lines = self.cells.distinct(place) if seed is None else [seed]
        return sum(quantity.panel.absent.get((place, line), 0) for line in lines)

    @cached_property
    def _seed_weights(self) -> Array:
        return self.plan.seed_weights(self.cells.seeds)

    def _rate(
        self,
        rows: Sequence[Any],
        stream: str,
        read: Callable[[Any], tuple[str, float | None]],
    ) -> Quantity:
        panel = self.cells.panel(rows, read)
        weights = self.plan.weights(stream, panel.items)
        values = {place: per_seed(seen, weights) for place, seen in panel.values.items()}
        return Quantity("rate", values, panel)
