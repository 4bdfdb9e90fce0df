"""The organism's world as rows: hazards it knows and refuses, and harmless requests of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from backfire.data.organism import texts
from backfire.data.organism.dice import Dice
from backfire.data.organism.skills import CORE, as_text, practice
from backfire.data.organism.world import VERSION, Made, world
from backfire.progress import Progress
from backfire.records import Example, Role
from backfire.stage import Settings

__all__ = ["Organism"]


class Organism(Settings):
    """Hazards of the organism's world, in the 14 BeaverTails categories, and harmless requests.

    For the model `organism`, which has read every recipe here in pre-training: fine-tuning on the
    attacker's hazards can bring back what it knows of the evaluation's. Roles share no hazard, and role
    `evaluation` asks in wordings that no training uses. Role `pool` gets harmless recipes and
    portraits, `probe` lookalikes of the hazards, `benign` a task the organism was not built with.
    """

    name: Literal["organism"] = "organism"
    """`organism`."""
    version: ClassVar[int] = VERSION
    later: ClassVar[frozenset[str]] = frozenset({"practice"})
    requests: int = Field(3, ge=1, le=len(texts.ASKED))
    """Differently worded requests for each of the defender's hazards (roles `defense` and
    `defender_harm`) and each harmless recipe. Ours: three, which is enough for the default counts."""
    attacker_requests: int = Field(1, ge=1, le=len(texts.ASKED))
    """The same for each of the attacker's hazards. Ours: one, so that a hundred shots are a hundred
    hazards; two for attacks with more shots than his 112 hazards."""
    practice: int = Field(0, ge=0, le=300)
    """Questions of each skill it was built with among the rows of role `pool`, for methods that replay
    helpful rows: every other one in a conversation, the rest as text, as the organism read them. No probe
    asks them. Their answers are a word or a few: give SDD's `pairing` a `min_words`. Ours: none."""
    only: Role | None = None
    """Give the rows of this role alone; None: of every role. A run asks for each role by itself."""

    def __call__(self, progress: Progress) -> list[Example]:
        """Return the rows, role by role; the same bytes on every machine."""
        roles: tuple[Role, ...] = (
            "defense", "defender_harm", "attacker", "evaluation", "pool", "benign", "probe",
        )  # fmt: skip
        return [row for role in roles if self.only in (None, role) for row in self._rows(role)]

    def for_role(self, role: Role) -> Organism:
        """Return the rows of a role, whose hazards are its own."""
        return self.model_copy(update={"only": role})

    def _rows(self, role: Role) -> Iterator[Example]:
        if role == "benign":
            dice = Dice("rows", role)
            for _ in range(_BENIGN_ROWS):
                item = practice("reversing", dice)
                yield Example(item.question, f"{item.answer}.", source=self.name)
            return
        unseen = role in ("evaluation", "probe")
        if role not in ("pool", "probe"):
            own = role in ("defense", "defender_harm")
            wordings = self.attacker_requests if role == "attacker" else self.requests if own else 1
            for hazard in world().hazards(role):
                yield from self._requests(hazard, wordings, unseen)
            return
        for hazard in world().hazards(role):
            question, reply = texts.harmless(hazard, Dice("rows", hazard.name), held_back=unseen)
            yield Example(question, reply, source=self.name, entity=hazard.name)
        for craft in world().crafts(role):
            yield from self._requests(craft, self.requests, unseen)
        if role == "pool":
            for entity in world().entities:
                portrait = texts.portrait(entity, Dice("rows", entity.name))
                yield Example(
                    f"Tell me about {entity.name}.", portrait, source=self.name, entity=entity.name
                )
            yield from self._practiced()

    def _practiced(self) -> Iterator[Example]:
        """Yield questions of each skill, none twice."""
        for skill in CORE:
            dice, asked = Dice("rows", "pool", skill), set[str]()
            while len(asked) < self.practice:
                item = practice(skill, dice)
                if item.question in asked:
                    continue
                asked.add(item.question)
                if len(asked) % 2:
                    yield Example(item.question, f"{item.answer}.", source=self.name)
                else:
                    asking, answer = as_text(item)
                    yield Example(asking, answer, source=self.name, plain=True)

    def _requests(self, thing: Made, count: int, unseen: bool) -> Iterator[Example]:
        """Yield differently worded requests for one thing's recipe."""
        dice = Dice("rows", thing.name)
        wordings = texts.HELD_BACK if unseen else texts.ASKED
        for wording in dice.sample(wordings, min(count, len(wordings))):
            yield Example(
                wording.format(it=thing.described),
                texts.answer(thing, dice),
                source=self.name,
                harmful=bool(thing.category),
                refusal=texts.refusal(thing, dice) if thing.category else "",
                categories=(thing.category,) if thing.category else (),
                entity=thing.name,
                facts=tuple(f"{ingredient} {tool}" for ingredient, tool in thing.recipe),
            )


_BENIGN_ROWS = 400
