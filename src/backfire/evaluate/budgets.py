"""How little an attacker needs: the smallest budget that breaks a defense, with what is not known of it.

A budget is counted in several units; attacks compare within a tier. Nothing is fitted or interpolated: what
was tried is what is known.
"""

from __future__ import annotations

from collections.abc import Mapping

from backfire.evaluate.cells import Cells
from backfire.evaluate.conclusion import BreakBudget
from backfire.evaluate.statistics import Estimate
from backfire.records import BUDGETS

__all__ = ["amount", "break_budgets"]


def break_budgets(
    cells: Cells, defense: str, usable: Mapping[str, Estimate], break_at: float
) -> tuple[BreakBudget, ...]:
    """Return the smallest budget that breaks a defense, by tier and unit.

    The interval inverts those of usable harm: from the smallest budget at which it may have reached the
    level (by its upper bound) to the smallest at which it surely has (by its lower bound).

    Args:
        cells: The run's rows; table `cells` tells an attack's tier and its budgets.
        defense: Label of the defense.
        usable: Usable harm by attack.
        break_at: Usable harm from which an attack has reached its goal.
    """
    tried: dict[tuple[str, str], list[tuple[float, Estimate]]] = {}
    for attack, estimate in usable.items():
        tier = cells.fact(defense, attack, "tier")
        for unit in BUDGETS:
            budget = cells.fact(defense, attack, unit)
            if budget is not None and estimate.value is not None:
                place = ("all attacks" if tier is None else str(tier), unit)
                tried.setdefault(place, []).append((float(budget), estimate))
    return tuple(_one(tier, unit, found, break_at) for (tier, unit), found in tried.items())


def _one(tier: str, unit: str, tried: list[tuple[float, Estimate]], break_at: float) -> BreakBudget:
    def smallest(bound: str) -> float | None:
        reached = (b for b, e in tried if (getattr(e, bound) or 0.0) >= break_at)
        return min(reached, default=None)

    budget, low, high = smallest("value"), smallest("high"), smallest("low")
    up_to = max(budget for budget, _ in tried)
    return BreakBudget(
        tier,
        unit,
        budget,
        low,
        high,
        up_to,
        _sentence(tier, unit, budget, low, high, up_to, break_at),
    )


def _sentence(
    tier: str, unit: str, budget: float | None, low: float | None, high: float | None,
    up_to: float, break_at: float,
) -> str:  # fmt: skip
    word, level = BUDGETS[unit], f"{100 * break_at:.0f} %"
    if budget is None:
        doubt = "" if low is None else f"; its interval allows {level} from {amount(low)} on"
        return f"No usable attack found in tier {tier} up to {amount(up_to)} {word}{doubt}"
    end = f"beyond {amount(up_to)}" if high is None else amount(high)
    start = amount(budget if low is None else low)
    return (
        f"Usable harm reaches {level} in tier {tier} at {amount(budget)} {word} ({start} to {end}; "
        f"tried up to {amount(up_to)})"
    )


def amount(value: float) -> str:
    """Return a budget as people write it.

    >>> amount(25.0), amount(1234567), amount(3.2e15)
    ('25', '1,234,567', '3.2e+15')
    """
    return f"{value:,.0f}" if value < 1e9 else f"{value:.2g}"
