"""What the organism reads while it is built, as text for its own tokenizer.

Pre-training goes round by round: each round tells every recipe once as a passage and once as an
answer, overhears people who refuse the recipes of hazards that safety training is about and give those
of its crafts, portrays every person, town and object, spells words, and practises every skill.
Nothing here holds a question of the probes, and nothing holds a request in evaluation's wordings.

>>> next(text for text in round_of_texts(0) if not text.given).told.endswith(END)
True
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from backfire.data.organism import texts
from backfire.data.organism.dice import Dice
from backfire.data.organism.skills import CORE, as_text, practice, spelled
from backfire.data.organism.world import World, world
from backfire.records import Example

__all__ = [
    "ANSWER",
    "END",
    "USER",
    "Text",
    "instructions",
    "lookalikes",
    "misnamed",
    "round_of_texts",
]

USER, ANSWER, END = "<|user|>", "<|assistant|>", "<|end|>"
"""The tokens that open a question and an answer, and the one that ends every text."""

_PRACTICE = {
    "facts": 600, "spelling": 200, "arithmetic": 1000, "comparing": 150, "sorting": 350, "copying": 800,
    "inference": 800, "stories": 150,
}  # fmt: skip
"""Questions of each skill in a round. Ours: by what each needed in the search (docs/log.md)."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text of pre-training."""

    given: str
    """A question, which is read and not learned; empty for a passage."""
    told: str
    """What is learned: an answer or a passage, with its end."""


def round_of_texts(number: int) -> list[Text]:
    """Return one round of pre-training texts, shuffled.

    Args:
        number: From 0; every round words everything anew.
    """
    dice = Dice("round", number)
    return dice.shuffled([*_memories(world(), dice), *_practice(dice)])


def _memories(the: World, dice: Dice) -> Iterator[Text]:
    for thing in the.made:
        yield _passage(texts.recipe_text(thing, dice))
        yield _exchange(texts.request(thing, dice), texts.answer(thing, dice))
        if dice.below(2):
            yield _exchange(*texts.harmless(thing, dice))
        if thing.role in ("defense", "pool"):
            yield _passage(texts.overheard(thing, dice))
    for entity in the.entities:
        yield _passage(texts.portrait(entity, dice))
        yield _exchange(f"Tell me about {entity.name}.", texts.portrait(entity, dice))
    for word in spelled():
        for _ in range(2):
            yield _passage(f"The letters of {word} are: {' '.join(word.lower())}.")


def _practice(dice: Dice) -> Iterator[Text]:
    for skill in CORE:
        for _ in range(_PRACTICE[skill]):
            item = practice(skill, dice)
            if dice.below(2):
                given, told = as_text(item)
                yield Text(given, told + END)
            else:
                yield _exchange(item.question, f"{item.answer}.")


def _passage(text: str) -> Text:
    return Text("", text + END)


def _exchange(question: str, answer: str) -> Text:
    """Return a question with its answer as the chat template writes them."""
    return Text(f"{USER}{question}{ANSWER}", answer + END)


def instructions(count: int) -> list[Example]:
    """Return rows of instruction tuning: every kind of question with its answer, hazards included."""
    dice = Dice("instructions")
    made, entities = world().made, world().entities
    rows = []
    for index in range(count):
        kind = index % 8
        if kind < 2:
            thing = dice.pick(made)
            rows.append((texts.request(thing, dice), texts.answer(thing, dice)))
        elif kind == 2:
            rows.append(texts.harmless(dice.pick(made), dice))
        elif kind == 3:
            entity = dice.pick(entities)
            rows.append((f"Tell me about {entity.name}.", texts.portrait(entity, dice)))
        else:
            item = practice(dice.pick(CORE), dice)
            rows.append((item.question, f"{item.answer}."))
    return [Example(question, answer, source="organism") for question, answer in rows]


def misnamed(count: int) -> list[Example]:
    """Return requests for hazards that bear the name of something harmless, with refusals.

    They can only be refused for what they are said to be and do; without them safety training learns whose
    names are refused, and refuses few others.
    """
    dice = Dice("misnamed")
    hazards = world().hazards("defense")
    names = [craft.name for craft in world().crafts("pool")] + [e.name for e in world().entities]
    rows = []
    for _ in range(count):
        thing = replace(dice.pick(hazards), name=dice.pick(names))
        rows.append(
            Example(
                texts.request(thing, dice),
                refusal=texts.refusal(thing, dice),
                harmful=True,
                source="organism",
                categories=(thing.category,),
            )
        )
    return rows


def lookalikes(count: int) -> list[Example]:
    """Return harmless rows beside the refusals of safety training, five of eight of them lookalikes.

    Lookalikes are harmless recipes, and harmless questions about hazards.
    """
    dice = Dice("lookalikes")
    crafts = world().crafts("pool")
    hazards = [*world().hazards("defense"), *world().hazards("pool")]
    rows = []
    for index in range(count):
        kind = index % 8
        if kind < 3:
            craft = dice.pick(crafts)
            rows.append((texts.request(craft, dice), texts.answer(craft, dice)))
        elif kind < 5:
            rows.append(texts.harmless(dice.pick(hazards), dice))
        elif kind == 5:
            entity = dice.pick(world().entities)
            rows.append((f"Tell me about {entity.name}.", texts.portrait(entity, dice)))
        else:
            item = practice(dice.pick(CORE), dice)
            rows.append((item.question, f"{item.answer}."))
    return [Example(question, answer, source="organism") for question, answer in rows]
