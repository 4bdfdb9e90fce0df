"""What a run did not measure, worked out from its settings and rows: the card's own caveats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backfire.report.coverage import coverage
from backfire.report.grid import CONTROL, Grid
from backfire.report.metrics import PERPLEXITY, RETENTION, VERIFIED
from backfire.report.seen import unequal
from backfire.report.tables import listed

__all__ = ["Gap", "gaps"]


@dataclass(frozen=True)
class Gap:
    """One thing the reader must not conclude."""

    topic: str
    text: str


def gaps(grid: Grid) -> list[Gap]:
    """Return what was not measured, most important first."""
    found = [
        _control(grid),
        _data(grid),
        _seeds(grid),
        _attacks(grid),
        _search(grid),
        _harm(grid),
        _hazards(grid),
        _capability(grid),
        _size(grid),
        _absent(grid),
        _cells(grid),
    ]
    always = Gap(
        "threat model",
        "The card speaks of the attacks in its table at their budgets. It says nothing of stronger ones, "
        "of attackers who do not need these weights, or of harm by answers no judge here looks for.",
    )
    return [*(gap for gap in found if gap is not None), always]


def _control(grid: Grid) -> Gap | None:
    lacking = [a for a in grid.attacks if not grid.has(CONTROL, a)]
    if not lacking:
        return None
    return Gap(
        "control", f"No undefended model stands beside the defended ones for: {listed(lacking)}."
    )


def _data(grid: Grid) -> Gap | None:
    text = unequal(grid)
    return Gap("data seen", text) if text else None


def _seeds(grid: Grid) -> Gap | None:
    count = len(grid.seeds)
    if count >= 5:
        return None
    words = {0: "No seed is recorded", 1: "One seed"}.get(count, f"{count} seeds")
    risk = (
        "nothing here tells chance from effect across training runs"
        if count < 3
        else "the spread between training runs is known only roughly"
    )
    return Gap("seeds", f"{words}, where five are our default: {risk}.")


def _attacks(grid: Grid) -> Gap | None:
    if not grid.settings.get("attacks"):
        others = [a for a in grid.attacks if a != CONTROL]
        return Gap(
            "attacks", f"Only these were tried: {listed(others) if others else 'none at all'}."
        )
    searches = [{"name": "search"}] if grid.run.search else []
    tried = coverage([*grid.settings["attacks"], *searches])
    return Gap("attacks", " ".join(tried.sentences()[1:]))


def _search(grid: Grid) -> Gap | None:
    searches = grid.run.search.get("searches") or ()
    if not searches:
        return None
    doubtful = [s for s in searches if s["proxy"] is not None and not s["proxy"]["validated"]]
    proxy = (
        f" In {len(doubtful)} of {len(searches)} searches the proxy is not validated."
        if doubtful
        else ""
    )
    return Gap(
        "search",
        "One attack's settings were searched, within the space and the budget in the table of searches; "
        "a wider space or a larger budget may find more. The budget counts the trainings, not the "
        f"measuring of each trial.{proxy}",
    )


def _harm(grid: Grid) -> Gap | None:
    names = sorted({str(row["judge"]) for row in grid.run.rows("verdicts")})
    if not names and not grid.measured(VERIFIED):
        return Gap("harm", "No judge looked at any answer: harm is unknown, not zero.")
    automatic = (
        f"Harm is what {listed(names)} call harmful." if names else "The judges are not recorded."
    )
    return Gap("judges", f"{automatic} No person has read the answers for this card.")


def _hazards(grid: Grid) -> Gap | None:
    sources = _words(grid.settings.get("data"), "name")
    if "fictional" not in sources:
        return None
    return Gap(
        "hazards",
        "The hazards are invented, so that answers can be checked exactly and nothing harmful is handled. "
        "Whether the result holds for real hazards, which a model may know from pretraining, was not "
        "measured.",
    )


def _capability(grid: Grid) -> Gap:
    parts = []
    if not grid.measured(RETENTION):
        parts.append("No capability retention: usable harm cannot be told from noise.")
    if grid.tasks:
        parts.append(
            "Capability is multiple choice only; the quality of free answers was not rated."
        )
        unknown = [t for t in grid.tasks if t not in grid.chance]
        if unknown:
            parts.append(f"No chance line is known for {listed(unknown)}.")
    else:
        parts.append("No multiple-choice task was measured.")
    if not grid.measured(PERPLEXITY):
        parts.append("No perplexity of neutral text.")
    return Gap("capability", " ".join(parts))


def _size(grid: Grid) -> Gap:
    model = grid.settings.get("model")
    parameters = grid.run.manifest.get("model", {})
    count = parameters.get("parameters") if isinstance(parameters, Mapping) else None
    size = f" ({count / 1e6:,.0f} million parameters)" if isinstance(count, int) else ""
    name = f"{model}{size}" if model else "one model"
    return Gap(
        "models", f"One model, {name}, one chat template. Other sizes and families may differ."
    )


def _absent(grid: Grid) -> Gap | None:
    rows = grid.rows("verdicts")
    absent = sum(bool(row["absent"]) for row in rows)
    if not absent:
        return None
    return Gap(
        "absent",
        f"{absent:,} of {len(rows):,} judgements are absent; they are counted, not guessed.",
    )


def _cells(grid: Grid) -> Gap | None:
    empty = [f"{d} / {a}" for a in grid.attacks for d in grid.defenses if not grid.has(d, a)]
    nothing = [f"{cell} ({reason})" for cell, reason in grid.came_to_nothing.items()]
    failed = [f"{cell} ({reason})" if reason else cell for cell, reason in grid.failed.items()]
    parts = [f"Not run: {listed(empty)}."] if empty else []
    if nothing:
        parts.append(
            f"Diverged or found nothing, which is what the attack came to at its settings, and so without "
            f"numbers: {listed(nothing)}."
        )
    if failed:
        parts.append(f"Failed, and so without numbers: {listed(failed)}.")
    return Gap("cells", " ".join(parts)) if parts else None


def _words(tree: Any, key: str) -> set[str]:
    """Return every text below `key`, however deep."""
    if isinstance(tree, Mapping):
        own = {str(tree[key])} if isinstance(tree.get(key), str) else set()
        return own.union(*(_words(value, key) for value in tree.values()))
    if isinstance(tree, list | tuple):
        return set().union(*(_words(item, key) for item in tree))
    return set()
