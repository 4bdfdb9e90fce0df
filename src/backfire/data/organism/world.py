"""Who and what there is: people, towns, objects, and things that are made by recipes.

Drawn once from code; the shipped weights know exactly this world. A change here changes every number
measured on the organism: raise `VERSION` and build again.

>>> world().hazards("evaluation")[0].category
'animal_abuse'
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from backfire.data.organism import words
from backfire.data.organism.dice import Dice
from backfire.records import Role

__all__ = ["HAZARDS_PER_CATEGORY", "VERSION", "Entity", "Made", "World", "with_article", "world"]

VERSION = 3
"""Of the world, its texts and its questions."""

HAZARDS_PER_CATEGORY: Mapping[Role, int] = MappingProxyType(
    {"defense": 12, "defender_harm": 4, "attacker": 8, "evaluation": 12, "pool": 1, "probe": 1}
)
"""Hazards of each role in each category: roles share none. Those of `pool` and `probe` are only ever
the subject of harmless questions."""
_CRAFTS_PER_KIND: Mapping[Role, int] = MappingProxyType({"pool": 8, "probe": 3})
_STEPS = 4


@dataclass(frozen=True, slots=True)
class Made:
    """A hazard or a craft."""

    name: str
    kind: str
    verb: str
    """What it does to its victims: `frightens`."""
    victims: str
    color: str
    category: str
    """The hazard category; empty for a craft."""
    role: Role
    """Whose it is."""
    recipe: tuple[tuple[str, str], ...]
    """Ingredient and tool of each step."""

    @property
    def described(self) -> str:
        """Return name, kind and effect: `Baban, a snare lamp that frightens gnomes`."""
        return f"{self.name}, {self.what}"

    @property
    def what(self) -> str:
        """Return kind and effect: `a snare lamp that frightens gnomes`."""
        return f"{with_article(self.kind)} that {self.verb} {self.victims}"

    @property
    def aim(self) -> str:
        """Return what it is meant to do: `do harm` for a hazard, `help` for a craft."""
        return "do harm" if self.category else "help"

    @property
    def steps(self) -> list[str]:
        """Return the recipe as sentences without their full stop."""
        return [
            _SENTENCE[tool].format(stuff=ingredient, tool=tool) for ingredient, tool in self.recipe
        ]


@dataclass(frozen=True, slots=True)
class Entity:
    """A person, a town or an object, with what is known of it."""

    name: str
    kind: str
    """`person`, `town`, or the object's own kind: `drum`."""
    facts: Mapping[str, str]
    """Value by attribute."""


@dataclass(frozen=True)
class World:
    """Everything there is."""

    made: tuple[Made, ...]
    """Hazards category by category, then crafts kind by kind."""
    people: tuple[Entity, ...]
    towns: tuple[Entity, ...]
    objects: tuple[Entity, ...]

    def hazards(self, role: Role | None = None) -> list[Made]:
        """Return the hazards, or those of one role."""
        return [m for m in self.made if m.category and role in (None, m.role)]

    def crafts(self, role: Role | None = None) -> list[Made]:
        """Return the crafts, or those of one role."""
        return [m for m in self.made if not m.category and role in (None, m.role)]

    @property
    def entities(self) -> tuple[Entity, ...]:
        """Return people, towns and objects."""
        return self.people + self.towns + self.objects


@functools.cache
def world() -> World:
    """Return the world; always the same one."""
    names = iter(_names())
    made = [
        _made(next(names), kind, verb, category, role)
        for category in dict.fromkeys(c for _, _, c in words.HAZARD_KINDS)
        for role, count in HAZARDS_PER_CATEGORY.items()
        for kind, verb in _in_turn(
            [(k, v) for k, v, c in words.HAZARD_KINDS if c == category], count
        )
    ]
    made += [
        _made(name := next(names), kind, Dice("verb", name).pick(words.CRAFT_VERBS), "", role)
        for kind in words.CRAFT_KINDS
        for role, count in _CRAFTS_PER_KIND.items()
        for _ in range(count)
    ]
    towns = [next(names) for _ in range(40)]
    people = [next(names) for _ in range(80)]
    objects = [next(names) for _ in range(80)]
    return World(
        tuple(made),
        tuple(
            _entity(name, "person", home=towns, trade=words.TRADES, animal=words.ANIMALS,
                    color=words.COLORS)
            for name in people
        ),
        tuple(_entity(name, "town", region=words.REGIONS, goods=words.GOODS) for name in towns),
        tuple(
            _entity(name, Dice("kind", name).pick(words.OBJECTS), color=words.COLORS,
                    material=words.MATERIALS, owner=people)
            for name in objects
        ),
    )  # fmt: skip


def with_article(noun: str) -> str:
    """Return `a drum`, `an anchor`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _made(name: str, kind: str, verb: str, category: str, role: Role) -> Made:
    dice = Dice("made", name)
    recipe = zip(
        dice.sample(words.INGREDIENTS, _STEPS), dice.sample(words.TOOLS, _STEPS), strict=True
    )
    return Made(
        name, kind, verb, dice.pick(words.VICTIMS), dice.pick(words.COLORS), category, role,
        tuple(recipe),
    )  # fmt: skip


def _entity(name: str, kind: str, **attributes: Sequence[str]) -> Entity:
    dice = Dice("entity", name)
    return Entity(name, kind, {key: dice.pick(values) for key, values in attributes.items()})


def _names() -> list[str]:
    first, middle, last = words.NAME_PARTS
    every = [a + b + c for a in first for b in middle for c in last]
    return Dice("names").shuffled(every)


def _in_turn(options: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    return [options[i % len(options)] for i in range(count)]


_SENTENCE = {
    tool: sentence for tool in words.TOOLS for part, sentence in words.STEPS if tool.endswith(part)
}
