"""What an attack comes to in a grid: every way through it that ends in a model to be measured.

A plain attack is one course. Each point of a fine-tuning attack is a course of its own, which stops there;
a sequence has one for each combination of its parts' courses. Courses of one attack stand in such an order
that whatever shares a beginning stands together, the shorter way first.

>>> from backfire.attack import Harmful
>>> [course.label for course in courses(Harmful(shots=10, points=(2, 0.5)))]
['mft-10-full@2', 'mft-10-full@50%', 'mft-10-full']
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from backfire.attack.finetune import FineTuning
from backfire.attack.sequence import AttackSequence
from backfire.engine.settings import Point

__all__ = ["Course", "courses", "point_text", "shots"]


@dataclass(frozen=True)
class Course:
    """One way through an attack."""

    label: str
    """What its cell is called in tables."""
    parts: tuple[Any, ...]
    """The attacks, first to last, none of them a sequence or with points."""

    @property
    def member(self) -> Any:
        """Return the course as an attack of its own."""
        if len(self.parts) == 1:
            return self.parts[0].model_copy(update={"label": self.label})
        return AttackSequence(parts=self.parts, label=self.label)


def courses(attack: Any) -> tuple[Course, ...]:
    """Return the courses of an attack, its whole way last."""
    if isinstance(attack, AttackSequence):
        ways = itertools.product(*(courses(part) for part in attack.parts))
        return tuple(_joined(attack, way) for way in ways)
    if not isinstance(attack, FineTuning):
        return (Course(attack.label, (attack,)),)
    return tuple(
        Course(attack.label + ("" if point is None else f"@{point_text(point)}"), (one,))
        for point, one in attack.stops()
    )


def _joined(attack: AttackSequence, way: tuple[Course, ...]) -> Course:
    parts = tuple(part for course in way for part in course.parts)
    if attack.label == attack.default_label():
        return Course("+".join(course.label for course in way), parts)
    ends = [
        course.label.removeprefix(part.label)
        for course, part in zip(way, attack.parts, strict=True)
    ]
    return Course(attack.label + "".join(ends), parts)


def shots(attack: Any) -> int:
    """Return the harmful rows that an attack needs: the run's, or those it brings itself."""
    return len(attack.own_rows()) + int(attack.rows_used({}).get("attacker", 0))


def point_text(point: Point) -> str:
    """Return a point as labels show it: steps, or a share in per cent.

    >>> point_text(25), point_text(0.125)
    ('25', '12.5%')
    """
    return str(point) if isinstance(point, int) else f"{100 * point:g}%"
