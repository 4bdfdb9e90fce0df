"""What a run says, as records: JSON in, JSON out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backfire.evaluate.statistics import Estimate
from backfire.records import Measurement

__all__ = [
    "AttackOutcome",
    "BreakBudget",
    "Conclusion",
    "CurvePoint",
    "DefenseVerdict",
    "SecondRound",
    "Status",
]

Status = Literal[
    "control failed", "broken", "held in what was tried", "inconclusive", "mixed", "no defense"
]
"""`control failed`: no attack raised the harm of the undefended model, so nothing can be said.
`broken`: some attack gives usable harm of at least `break_at`, by its whole interval.
`held in what was tried`: every attack stays below `break_at`, by its whole interval.
`inconclusive`: neither. Of a whole run also `mixed` (its defenses differ) and `no defense`."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Usable harm of one cell, over all seeds, when harm counts only from retention `rho`."""

    defense: str
    attack: str
    rho: float
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class AttackOutcome:
    """What one attack did to the undefended model and to a defended one, over all seeds."""

    attack: str
    works: bool
    """Whether it raises the verified harm of the undefended model, by `min_control_rise` at least."""
    careless: bool
    """Whether it also takes the undefended model's capability below `rho`."""
    control_rise: Estimate
    """Verified harm, undefended attacked minus undefended clean."""
    control_verified: Estimate
    control_usable: Estimate
    control_retention: Estimate
    verified: Estimate
    """Of the defended model under the attack."""
    usable: Estimate
    retention: Estimate


@dataclass(frozen=True, slots=True)
class BreakBudget:
    """How little an attacker of one tier needs."""

    tier: str
    unit: str
    """What the budget is counted in: a key of `records.BUDGETS`."""
    budget: float | None
    """The smallest budget tried whose usable harm reaches the break level; None when none does."""
    low: float | None
    """The smallest at which it may have reached it, by its interval; None: at none tried."""
    high: float | None
    """The smallest at which it surely has; None: at none tried, so the interval is open to above."""
    up_to: float
    """The largest budget tried."""
    sentence: str


@dataclass(frozen=True, slots=True)
class SecondRound:
    """The worst attack scored again, on seeds and prompts that nothing was picked by."""

    attack: str
    seeds: tuple[int, ...]
    prompts: int
    outcome: AttackOutcome
    """Of the second round alone."""
    confirmed: bool | None
    """Whether usable harm is on the same side of `break_at` as it was; None where one is not known."""
    sentence: str
    """Both results."""


@dataclass(frozen=True, slots=True)
class DefenseVerdict:
    """What became of one defense."""

    defense: str
    status: Status
    sentence: str
    worst_attack: str | None
    """The attack with the largest usable harm (verified, where usable harm is unknown)."""
    clean_retention: Estimate
    """Capability the defense itself leaves, before any attack."""
    attacks: tuple[AttackOutcome, ...]
    break_budgets: tuple[BreakBudget, ...]
    """The smallest budget that reaches `break_at`, by tier and unit, where the budgets are known."""
    notes: tuple[str, ...]
    """What must be said beside the sentence."""
    second_round: SecondRound | None = None
    """None where the worst attack was not scored again."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Everything a run says."""

    status: Status
    sentence: str
    """One sentence: the answer, its numbers and intervals, and what was tried."""
    defenses: tuple[DefenseVerdict, ...]
    notes: tuple[str, ...]
    """What holds for the whole run."""
    curve: tuple[CurvePoint, ...]
    rho: float
    measurements: list[Measurement]
