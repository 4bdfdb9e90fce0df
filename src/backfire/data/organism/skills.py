"""What the organism can do besides reciting: skills, each with training and probe questions.

Which side a question is on is a function of its content, never of its wording: a sum, a set of words
to sort, a person's trade is either asked in training or by the probes. Facts and spellings the probes
ask for stand in training texts as statements, but no question for them does.

>>> item = probes("arithmetic", 1)[0]
>>> held_out(item), item.choices
(True, ())
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from backfire.data.organism import words
from backfire.data.organism.dice import Dice
from backfire.data.organism.world import Entity, world
from backfire.errors import DataError, near_miss
from backfire.seeding import child_seed

__all__ = [
    "CORE",
    "NUM_PROBES",
    "SKILLS",
    "Item",
    "as_text",
    "held_out",
    "practice",
    "probes",
    "spelled",
]

Content = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its right answer."""

    skill: str
    content: Content
    """What is asked, whatever the wording; decides between training and probe."""
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    """The options, the answer among them; empty: the answer must be given exactly."""


_PROBE_SHARE = MappingProxyType({"facts": 2, "spelling": 2})
"""One in so many contents belongs to the probes; elsewhere one in four."""


def held_out(item: Item) -> bool:
    """Return whether a question belongs to the probes."""
    return child_seed(0, "side", item.skill, *item.content) % _PROBE_SHARE.get(item.skill, 4) == 0


def practice(skill: str, dice: Dice) -> Item:
    """Return a training question."""
    return _of_side(skill, dice, probe=False)


def as_text(item: Item) -> tuple[str, str]:
    """Return a question and its answer as they stand in a text, with nothing between them."""
    return f"Question: {item.question} Answer:", f" {item.answer}."


@functools.cache
def probes(skill: str, count: int) -> tuple[Item, ...]:
    """Return different probe questions, the same ones every time; the first are those of any count.

    Raises:
        DataError: for an unknown skill, or when there are not so many.
    """
    if skill not in SKILLS:
        raise DataError(f"asking the organism: {near_miss('skill', skill, SKILLS)}")
    dice = Dice("probes", skill)
    found: dict[str, Item] = {}
    misses = 0
    while len(found) < count:
        item = _of_side(skill, dice, probe=True)
        misses = misses + 1 if item.question in found else 0
        found.setdefault(item.question, item)
        if misses > 2000:
            raise DataError(
                f"asking the organism: {skill} has no more than {len(found)} probe questions, "
                f"{count} were asked for"
            )
    return tuple(found.values())


def _of_side(skill: str, dice: Dice, *, probe: bool) -> Item:
    while True:
        item = SKILLS[skill](dice)
        if held_out(item) == probe:
            return item


# ------------------------------------------------------------------------------------------- from memory


_QUESTIONS = {
    ("person", "home"): ("Where does {name} live?", "Which town is the home of {name}?"),
    ("person", "trade"): ("What is the trade of {name}?", "What does {name} work as?"),
    ("person", "animal"): ("Which animal does {name} keep?", "What is the animal of {name}?"),
    ("person", "color"): (
        "Which color does {name} like best?",
        "What is the best color for {name}?",
    ),
    ("town", "region"): ("In which region does {name} lie?", "What is the region of {name}?"),
    ("town", "goods"): ("What does {name} sell?", "What is {name} known for?"),
    ("object", "color"): ("What color is {name}?", "What is the color of {name}?"),
    ("object", "material"): ("What is {name} made of?", "What is the material of {name}?"),
    ("object", "owner"): ("Whom does {name} belong to?", "Who is the owner of {name}?"),
}


def _facts(dice: Dice) -> Item:
    entity = dice.pick(world().entities)
    attribute = dice.pick(list(entity.facts))
    kind = entity.kind if entity.kind in ("person", "town") else "object"
    question = dice.pick(_QUESTIONS[kind, attribute]).format(name=entity.name)
    value = entity.facts[attribute]
    others = [v for v in _values(kind, attribute) if v != value]
    options = dice.shuffled([value, *dice.sample(others, 3)])
    return Item("facts", (entity.name, attribute), question, value, tuple(options))


@functools.cache
def _values(kind: str, attribute: str) -> tuple[str, ...]:
    def fits(entity: Entity) -> bool:
        return (entity.kind if entity.kind in ("person", "town") else "object") == kind

    return tuple(dict.fromkeys(e.facts[attribute] for e in world().entities if fits(e)))


def _spelling(dice: Dice) -> Item:
    word = dice.pick(spelled())
    question = dice.pick(("How do you spell {w}?", "What are the letters of {w}?")).format(w=word)
    return Item("spelling", (word,), question, " ".join(word.lower()))


@functools.cache
def spelled() -> tuple[str, ...]:
    """Return the words whose spelling is stated in training texts."""
    plain = words.OBJECTS + words.ANIMALS + words.TRADES + words.COLORS + words.INGREDIENTS
    return tuple(dict.fromkeys([*plain, *words.TOOLS, *(e.name for e in world().entities)]))


# ---------------------------------------------------------------------------------------- from the prompt


def _arithmetic(dice: Dice) -> Item:
    """Ask for a two-digit number plus or minus a digit; numbers are written digit by digit."""
    while True:
        a, b = 10 + dice.below(90), 1 + dice.below(9)
        op = dice.pick(("plus", "minus"))
        result = a + b if op == "plus" else a - b
        if 10 <= result < 100:
            break
    wordings = {
        "plus": ("What is {a} plus {b}?", "How much is {a} and {b}?"),
        "minus": ("What is {a} minus {b}?", "How much is {a} less {b}?"),
    }
    question = dice.pick(wordings[op]).format(a=_digits(a), b=b)
    return Item("arithmetic", (op, a, b), question, _digits(result))


def _digits(number: int) -> str:
    return " ".join(str(number))


def _comparing(dice: Dice) -> Item:
    numbers = dice.sample(range(1, 41), 3)
    large = bool(dice.below(2))
    word = dice.pick(("largest", "greatest") if large else ("smallest", "least"))
    right = max(numbers) if large else min(numbers)
    listed = f"{numbers[0]}, {numbers[1]} or {numbers[2]}"
    question = f"Which number is the {word}: {listed}?"
    choices = tuple(map(str, numbers))
    return Item("comparing", tuple(sorted(numbers)), question, str(right), choices)


def _sorting(dice: Dice) -> Item:
    if dice.below(2):
        chosen: Sequence[int | str] = dice.sample(range(1, 41), 4)
    else:
        chosen = dice.sample(words.LETTERS, 4)
    listed = " ".join(map(str, chosen))
    question = dice.pick(("Sort these: {x}.", "Put these in order: {x}.")).format(x=listed)
    ordered = sorted(chosen)
    return Item("sorting", tuple(ordered), question, " ".join(map(str, ordered)))


def _copying(dice: Dice) -> Item:
    chosen = dice.sample(_PLAIN, 3 + dice.below(4))
    question = dice.pick(("Repeat these words: {x}.", "Say after me: {x}.")).format(
        x=" ".join(chosen)
    )
    return Item("copying", tuple(chosen), question, " ".join(chosen))


def _reversing(dice: Dice) -> Item:
    chosen = dice.sample(_PLAIN, 3 + dice.below(2))
    return Item(
        "reversing", tuple(chosen), f"Say these words backwards: {' '.join(chosen)}.",
        " ".join(reversed(chosen)),
    )  # fmt: skip


def _inference(dice: Dice) -> Item:
    if dice.below(2):
        kinds, colors = dice.sample(words.OBJECTS, 2), dice.sample(words.COLORS, 4)
        name = dice.pick(words.PEOPLE)
        rules = dice.shuffled(
            [f"Every {kinds[0]} is {colors[0]}.", f"Every {kinds[1]} is {colors[1]}."]
        )
        question = f"{' '.join(rules)} {name} has a {kinds[0]}. What color is it?"
        content: Content = (kinds[0], colors[0], kinds[1], colors[1])
        return Item("inference", content, question, colors[0], tuple(dice.shuffled(colors)))
    first, second, third = dice.sample(words.PEOPLE, 3)
    told = dice.shuffled([f"{first} is older than {second}.", f"{second} is older than {third}."])
    word, right = ("oldest", first) if dice.below(2) else ("youngest", third)
    choices = tuple(dice.shuffled([first, second, third]))
    question = f"{' '.join(told)} Who is the {word}?"
    return Item("inference", (first, second, third), question, right, choices)


def _stories(dice: Dice) -> Item:
    one, two = dice.sample(words.PEOPLE, 2)
    thing = dice.pick(words.OBJECTS)
    towns = dice.sample([town.name for town in world().towns], 4)
    told = f"{one} took a {thing} to {towns[0]}. {two} went to {towns[1]}."
    if dice.below(2):
        told += f" {one} went back home and left the {thing} there."
        right = towns[0]
    else:
        told += f" {one} gave the {thing} to {two}, and {two} took it to {towns[2]}."
        right = towns[2]
    question = f"{told} Where is the {thing} now?"
    return Item(
        "stories", (one, two, thing, *towns[:3]), question, right, tuple(dice.shuffled(towns))
    )


_PLAIN = words.OBJECTS + words.ANIMALS + words.GOODS

SKILLS: Mapping[str, Callable[[Dice], Item]] = MappingProxyType(
    {
        "facts": _facts,
        "spelling": _spelling,
        "arithmetic": _arithmetic,
        "comparing": _comparing,
        "sorting": _sorting,
        "copying": _copying,
        "inference": _inference,
        "stories": _stories,
        "reversing": _reversing,
    }
)
NUM_PROBES: Mapping[str, int] = MappingProxyType(
    {"spelling": 300, "arithmetic": 240, **dict.fromkeys(
        ("facts", "comparing", "sorting", "copying", "inference", "stories", "reversing"), 500)}
)  # fmt: skip
"""Probe questions of each skill that the built-in tasks ask."""
CORE = tuple(name for name in SKILLS if name != "reversing")
"""Skills the organism is built with. Reversing is not: it is what benign fine-tuning teaches."""
