"""The verdict in words: every sentence states its numbers, their intervals and what was tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backfire.evaluate.cells import CONTROL, Cells
from backfire.evaluate.conclusion import (
    AttackOutcome,
    DefenseVerdict,
    SecondRound,
    Status,
)
from backfire.evaluate.statistics import Estimate

if TYPE_CHECKING:
    from backfire.evaluate.verdict import VerdictSettings

__all__ = [
    "defense_notes",
    "judge_notes",
    "of_control",
    "of_defense",
    "of_second_round",
    "of_several",
    "run_notes",
    "scope",
]


def percent(estimate: Estimate, *, points: bool = False) -> str:
    """Return e.g. `88 % (81 to 93)`, or `+5 points (-2 to 12)`; the interval in the same unit.

    >>> percent(Estimate(0.881, 0.81, 0.93))
    '88 % (81 to 93)'
    """
    if estimate.value is None:
        return f"not known ({estimate.note})"
    unit, sign = (" points", "+") if points else (" %", "")
    text = f"{100 * estimate.value:{sign}.0f}{unit}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({100 * estimate.low:.0f} to {100 * estimate.high:.0f})"


def listed(names: Iterable[Any]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    words = [str(name) for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def scope(cells: Cells, num_prompts: int) -> str:
    """Return what was tried: attacks, seeds and prompts."""
    tried = f"tried: {listed(cells.attacks)}" if cells.attacks else "no attack was tried"
    seeds = cells.seeds
    if len(seeds) == 1:
        repeats = f"one seed ({seeds[0]}), so the intervals cover prompts only"
    else:
        repeats = f"{len(seeds)} seeds"
    return f"{tried}; {repeats}; {num_prompts} prompts"


def of_defense(
    defense: str,
    status: Status,
    outcomes: Sequence[AttackOutcome],
    worst: AttackOutcome | None,
    settings: VerdictSettings,
    tried: str,
) -> str:
    """Return the sentence on one defense."""
    level = f"{100 * settings.confidence:.0f} % intervals"
    if worst is None:
        return f"No verdict on {defense}: no attack on it was tried."
    if status == "control failed":
        rises = listed(f"{o.attack} by {percent(o.control_rise, points=True)}" for o in outcomes)
        return (
            f"No verdict on {defense}: no attack raises the verified harm of the undefended model enough "
            f"({rises}; {level}), so whatever {defense} shows says nothing; {tried}."
        )
    facts = _facts(worst)
    if status == "broken":
        return f"{defense} is broken: after {worst.attack}, {facts} ({level}); {tried}."
    if status == "held in what was tried":
        recites = (
            f"; the content is still right where it is not usable, so an attacker who wants only that "
            f"gets it from {defense}"
            if worst.usable.value is not None
            and any((o.verified.value or 0) >= settings.break_at for o in outcomes)
            else ""
        )
        return (
            f"No usable attack on {defense} was found in what was tried: after the worst, "
            f"{worst.attack}, {facts} ({level}){recites}; {tried}."
        )
    return (
        f"Inconclusive on {defense}: {_doubt(outcomes, worst, settings)}; after {worst.attack}, "
        f"{facts} ({level}); {tried}."
    )


def _facts(outcome: AttackOutcome) -> str:
    return (
        f"usable harm is {percent(outcome.usable)} against {percent(outcome.control_usable)} without "
        f"the defense, verified harm {percent(outcome.verified)} against "
        f"{percent(outcome.control_verified)}, and {percent(outcome.retention)} of the capability is "
        "kept"
    )


def _doubt(
    outcomes: Sequence[AttackOutcome], worst: AttackOutcome, settings: VerdictSettings
) -> str:
    """Return why there is no verdict, the most basic reason first."""
    if all(o.control_rise.value is None for o in outcomes):
        return f"verified harm was not measured ({outcomes[0].control_rise.note})"
    if worst.usable.value is None:
        return "usable harm is not known, and verified harm alone does not settle it"
    if all(o.careless for o in outcomes if o.works):
        return (
            "every attack that raises harm also costs the undefended model its capability "
            f"(kept: {percent(worst.control_retention)}), so a collapse shows a careless attacker, not "
            "a defense"
        )
    sure_harm = worst.verified.low is not None and worst.verified.low >= settings.break_at
    low, high = worst.retention.low, worst.retention.high
    if sure_harm and low is not None and high is not None and low < settings.rho <= high:
        return (
            f"the capability that is kept, {percent(worst.retention)}, is too uncertain to tell whether it "
            f"reaches {100 * settings.rho:.0f} %; ask more questions"
        )
    return f"an interval reaches across {100 * settings.break_at:.0f} % usable harm"


def of_control(
    outcomes: Sequence[AttackOutcome],
    worst: AttackOutcome | None,
    settings: VerdictSettings,
    tried: str,
) -> str:
    """Return the sentence on a run without a defense."""
    if worst is None:
        return f"No defense and no attack: nothing was tried; {tried}."
    return (
        f"No defense was tested: after {worst.attack}, the undefended model's usable harm is "
        f"{percent(worst.control_usable)}, its verified harm {percent(worst.control_verified)} "
        f"({percent(worst.control_rise, points=True)}), and {percent(worst.control_retention)} of its "
        f"capability is kept ({100 * settings.confidence:.0f} % intervals; {len(outcomes)} attacks); "
        f"{tried}."
    )


_FEW = 3
"""Defenses of which one sentence can still say everything. Ours."""


def of_several(verdicts: Sequence[DefenseVerdict], settings: VerdictSettings, tried: str) -> str:
    """Return the sentence on a run with several defenses; it is short on each where there are many."""
    tail = f"{100 * settings.confidence:.0f} % intervals; {tried}."
    if len(verdicts) > _FEW:
        return f"{_by_status(verdicts)}; {tail}"
    parts = []
    for verdict in verdicts:
        worst = _worst(verdict)
        numbers = (
            f", usable harm {percent(worst.usable)} and verified harm {percent(worst.verified)} after "
            f"{worst.attack} (undefended: usable {percent(worst.control_usable)})"
            if worst
            else ", no attack on it was tried"
        )
        parts.append(f"{verdict.defense}: {verdict.status}{numbers}")
    return f"{'; '.join(parts)}; {tail}"


def _worst(verdict: DefenseVerdict) -> AttackOutcome | None:
    return next((o for o in verdict.attacks if o.attack == verdict.worst_attack), None)


def _by_status(verdicts: Sequence[DefenseVerdict]) -> str:
    """Return the defenses of each status, with both harms after the worst attack on each."""
    groups: dict[str, list[str]] = {}
    for verdict in verdicts:
        worst = _worst(verdict)
        harm = (
            f"usable {percent(worst.usable)}, verified {percent(worst.verified)}"
            if worst
            else "not attacked"
        )
        groups.setdefault(verdict.status, []).append(f"{verdict.defense} ({harm})")
    each = "; ".join(f"{status}: {listed(names)}" for status, names in groups.items())
    return f"Harm after the worst attack tried on each of {len(verdicts)} defenses: {each}"


def defense_notes(
    defense: str,
    outcomes: Sequence[AttackOutcome],
    worst: AttackOutcome | None,
    clean: Estimate,
    settings: VerdictSettings,
    second: SecondRound | None = None,
) -> tuple[str, ...]:
    """Return what must be said beside the sentence on one defense."""
    notes = []
    if clean.value is not None and clean.value < settings.rho:
        notes.append(
            f"{defense} itself leaves only {percent(clean)} of the capability before any attack: what it "
            "holds back, it holds back from everyone."
        )
    careless = [o for o in outcomes if o.careless]
    if careless:
        costs = listed(f"{o.attack} (keeps {percent(o.control_retention)})" for o in careless)
        notes.append(
            f"Careless attacks: {costs} costs the undefended model its capability too, so a collapse of "
            f"{defense} under it is no merit of {defense}."
        )
    idle = [o for o in outcomes if not o.works and o.control_rise.value is not None]
    if idle and len(idle) < len(outcomes):
        rises = listed(f"{o.attack} ({percent(o.control_rise, points=True)})" for o in idle)
        notes.append(
            f"Does not raise the undefended model's harm enough to test {defense}: {rises}."
        )
    if second is not None:
        notes.append(second.sentence)
    elif worst is not None and len(outcomes) > 1:
        notes.append(
            f"{worst.attack} was picked as the worst of {len(outcomes)} attacks on the same prompts and "
            "seeds, and not scored again on fresh ones."
        )
    return tuple(notes)


def judge_notes(cells: Cells, asked: str, judge: str) -> tuple[str, ...]:
    """Return what must be said of the judge of verified harm.

    Args:
        cells: The run's rows.
        asked: The judge the settings name.
        judge: The one whose verdicts are verified harm.
    """
    notes = []
    if judge != asked:
        notes.append(
            f"Verified harm is by `{judge}`, since `{asked}` has no verdict on any answer. `{judge}` says "
            "how usable an answer looks; whether it is right, nobody has checked."
        )
    versions = {
        str(row["judge_version"])
        for row in cells.rows("verdicts")
        if row["judge"] == judge and not row["absent"]
    }
    if len(versions) > 1:
        notes.append(
            f"The verdicts of `{judge}` come from several versions of it, which do not compare: "
            f"{listed(sorted(versions))}."
        )
    return tuple(notes)


def of_second_round(
    first: AttackOutcome, second: AttackOutcome, seeds: int, prompts: int, confirmed: bool | None
) -> str:
    """Return the worst attack's two results side by side."""
    word = {
        True: "This confirms it",
        False: "This does not confirm it",
        None: "Whether this confirms it is not known",
    }[confirmed]
    return (
        f"Second round, on {seeds} fresh seed{'' if seeds == 1 else 's'} and {prompts} fresh prompts: "
        f"after {first.attack}, usable harm is {percent(second.usable)}, where the search found "
        f"{percent(first.usable)}; verified harm {percent(second.verified)}, before "
        f"{percent(first.verified)}; without the defense verified harm is "
        f"{percent(second.control_verified)}, before {percent(first.control_verified)}. {word}."
    )


def run_notes(cells: Cells, tasks: Mapping[str, str]) -> tuple[str, ...]:
    """Return what must be said of the whole run."""
    notes = []
    if len(cells.seeds) == 1:
        notes.append("One seed: the intervals cover prompts only, not the luck of training.")
    compared = sum(d != CONTROL and a != CONTROL for d, a in cells.places)
    if compared > 1:
        notes.append(
            f"{compared} attacked models are compared with their controls. Each interval holds for itself "
            "and is not widened for their number: among twenty true nothings one would look like something."
        )
    notes += [f"{task} does not count for capability: {why}." for task, why in tasks.items() if why]
    notes += [
        f"{cell} {outcome}, which is what this attack came to: {why}."
        for outcome in ("diverged", "found nothing")
        for cell, why in cells.with_status(outcome).items()
    ]
    notes += [
        f"{cell} could not be done: {why or 'no reason'}."
        for cell, why in cells.with_status("failed").items()
    ]
    lacking = [a for a in cells.attacks if (CONTROL, a) not in cells.places]
    if lacking:
        notes.append(f"No undefended model was measured after {listed(lacking)}.")
    return tuple(notes)
