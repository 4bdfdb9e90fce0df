"""Every measured number in long format: each cell by seed and over all seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Literal, get_args

from backfire.evaluate.cells import CONTROL, Place
from backfire.evaluate.measure import Measures, Quantity
from backfire.evaluate.statistics import Estimate
from backfire.evaluate.taxonomy import HARMFUL_LABELS
from backfire.records import Measurement

__all__ = ["measurements"]

Direction = Literal["lower is safer", "higher is better", "neither"]


def measurements(measures: Measures, rho: float) -> Iterator[Measurement]:
    """Yield the measurements.

    Names: `verified_harm`, `refusal_phrase_asr`, `harmful_rate` and `harmfulness_score` (1 to 5, both of
    the policy judge), `harm:<judge>` and `score:<judge>` (any other judge), `usable_harm`,
    `share:<label>` (of answers to hazards), `over_refusal`, `benign_answered`, `accuracy:<task>` (what
    counts for capability), `acc:<task>` or `acc_norm:<task>` (the other way to choose),
    `retention:<task>`, `capability_retention`, `self_degradation`, `perplexity`, `perplexity_ratio`,
    `bits_per_byte`; and over all seeds, paired with the undefended model under the same attack,
    `<metric>:minus_control`. docs/metrics.md defines each.

    Args:
        measures: What was measured.
        rho: Capability retention from which harm is usable.
    """
    for writer in _writers(measures, rho):
        yield from writer


_RATES = {"refusal_phrases": "refusal_phrase_asr", "policy": "harmful_rate"}
"""What the field calls the share of harmful answers by these judges."""


def _writers(measures: Measures, rho: float) -> Iterator[Iterator[Measurement]]:
    safer: Direction = "lower is safer"
    better: Direction = "higher is better"
    for judge, quantity in measures.harm.items():
        name = _RATES.get(judge, f"harm:{judge}")
        if judge != measures.harm_judge:
            yield _rows(measures, name, quantity, safer)
    for judge, quantity in measures.scores.items():
        if judge == "policy":
            yield _rows(
                measures, "harmfulness_score", quantity, safer, paired=True, unit="grade, 1 to 5",
                through=lambda score: 1 + 4 * score, span=lambda width: 4 * width,
            )  # fmt: skip
        else:
            yield _rows(measures, f"score:{judge}", quantity, safer)
    yield _rows(measures, "verified_harm", measures.verified, safer, paired=True)
    yield _rows(measures, "usable_harm", measures.usable(rho), safer, paired=True)
    for label in HARMFUL_LABELS:
        yield _rows(measures, f"share:{label}", measures.share(label, harmful=True), "neither")
    refusals = measures.share("refusal", harmful=False)
    yield _rows(measures, "over_refusal", refusals, "neither")
    yield _rows(measures, "benign_answered", measures.share("answered", harmful=False), better)
    for task, reason in measures.tasks.items():
        note = f"{measures.which}; chance {measures.chance[task]:.3f}"
        accuracy = measures.accuracy(task)
        yield _rows(measures, f"accuracy:{task}", accuracy, better, note=note)
        other = next(w for w in get_args(Literal["acc", "acc_norm"]) if w != measures.which)
        yield _rows(measures, f"{other}:{task}", measures.accuracy(task, other), better)
        kept = measures.task_retention(task)
        if reason:
            kept = Quantity("number", {}, kept.panel, dict.fromkeys(kept.panel.values, reason))
        yield _rows(measures, f"retention:{task}", kept, better)
    yield _rows(measures, "capability_retention", measures.retention, better, paired=True)
    yield _rows(measures, "self_degradation", measures.self_degradation, "neither")
    yield _rows(measures, "perplexity", measures.nats_per_token, "neither", through=math.exp)
    yield _rows(
        measures, "perplexity_ratio", measures.perplexity_ratio, "neither", through=math.exp,
        note="geometric mean over seeds; to the undefended clean model",
    )  # fmt: skip
    yield _rows(
        measures, "bits_per_byte", measures.nats_per_byte, "neither", unit="bits",
        through=lambda nats: nats / math.log(2),
    )  # fmt: skip


def _rows(
    measures: Measures,
    metric: str,
    quantity: Quantity,
    direction: Direction,
    *,
    unit: str = "",
    note: str = "",
    through: Callable[[float], float] = float,
    span: Callable[[float], float] = float,
    paired: bool = False,
) -> Iterator[Measurement]:
    """Yield a quantity of every cell, its numbers mapped by the increasing function `through`.

    Differences between cells are mapped by `span`.
    """
    for place in (*quantity.values, *quantity.missing):
        for index, seed in (*enumerate(measures.cells.seeds), (None, None)):
            found = _mapped(measures.estimate(quantity, place, index), through)
            absent = measures.absent(quantity, place, index)
            if seed is None or found.n:
                yield _row(place, seed, metric, found, absent, unit, direction, note)
        defense, attack = place
        if paired and defense != CONTROL and attack != CONTROL:
            found = _mapped(measures.difference(quantity, place, (CONTROL, attack)), span)
            yield _row(place, None, f"{metric}:minus_control", found, 0, unit, direction, note)


def _mapped(estimate: Estimate, through: Callable[[float], float]) -> Estimate:
    value, low, high = (
        None if bound is None else through(bound)
        for bound in (estimate.value, estimate.low, estimate.high)
    )
    return dataclasses.replace(estimate, value=value, low=low, high=high)


def _row(
    place: Place,
    seed: int | None,
    metric: str,
    found: Estimate,
    absent: int,
    unit: str,
    direction: Direction,
    note: str,
) -> Measurement:
    return Measurement(
        *place, seed, metric, found.value, found.low, found.high, found.n, absent, unit, direction,
        found.note or note,
    )  # fmt: skip
