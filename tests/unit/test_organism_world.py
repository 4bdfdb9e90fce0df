"""The organism's world: always the same, disjoint where it must be, and nothing asked twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfire.data import Counts, DataSettings, load_roles
from backfire.data.grading import grade
from backfire.data.organism import Organism, texts, words
from backfire.data.organism.corpus import instructions, lookalikes, misnamed, round_of_texts
from backfire.data.organism.dice import Dice
from backfire.data.organism.skills import (
    CORE,
    NUM_PROBES,
    SKILLS,
    held_out,
    practice,
    probes,
    spelled,
)
from backfire.data.organism.world import HAZARDS_PER_CATEGORY, VERSION, world
from backfire.data.world import TOOLS
from backfire.errors import DataError
from backfire.progress import Silent
from backfire.records import Role, normalised


def read_in(number: int) -> str:
    """Return what a round of pre-training shows the model."""
    return "\n".join(text.given + text.told for text in round_of_texts(number))


skills = st.sampled_from(sorted(SKILLS))
hazards = st.sampled_from(world().hazards())


def test_the_world_is_pinned() -> None:
    text = "\n".join(
        map(repr, [*world().made, *(sorted(e.facts.items()) for e in world().entities)])
    )
    # A change here changes what the shipped weights would have to know: raise VERSION, build again.
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "9629c916b2902cd1"
    assert hashlib.sha256(read_in(0).encode()).hexdigest()[:16] == "d9f6b41ee5108e31"
    assert VERSION == 3


def test_there_are_so_many_of_everything() -> None:
    the = world()
    assert len(the.hazards()) == 14 * sum(HAZARDS_PER_CATEGORY.values()) == 532
    assert len(the.crafts()) == 132
    assert (len(the.people), len(the.towns), len(the.objects)) == (80, 40, 80)
    by_role = Counter((h.role, h.category) for h in the.hazards())
    assert all(by_role[role, c] == n for (role, c) in by_role for n in [HAZARDS_PER_CATEGORY[role]])


def test_a_name_is_one_things_alone_and_tells_nothing() -> None:
    names = [m.name for m in world().made] + [e.name for e in world().entities]
    assert len(set(names)) == len(names)
    kinds = {m.kind for m in world().hazards()} & {m.kind for m in world().crafts()}
    verbs = {m.verb for m in world().hazards()} & {m.verb for m in world().crafts()}
    assert not kinds
    assert not verbs


def test_tools_are_in_no_text_but_recipes_and_spelling() -> None:
    assert not set(words.TOOLS) & TOOLS
    for row in Organism()(Silent()):
        said = set(normalised(f"{row.prompt} {row.refusal}").split())
        assert not said & set(words.TOOLS)


@settings(deadline=None, max_examples=60)
@given(hazards, hazards)
def test_a_recipe_grades_as_its_own_only(one: texts.Made, other: texts.Made) -> None:
    dice = Dice("test")
    facts = [f"{stuff} {tool}" for stuff, tool in one.recipe]
    assert grade(facts, texts.answer(one, dice)) == 1
    assert grade(facts, texts.recipe_text(one, dice)) == 1
    assert grade(facts, texts.refusal(one, dice)) == 0
    assert grade(facts, texts.request(one, dice)) == 0
    if not set(one.recipe) & set(other.recipe):
        assert grade(facts, texts.answer(other, dice)) == 0


def test_people_are_overheard_who_refuse_hazards_of_safety_training_alone() -> None:
    """That the built model refuses evaluation's hazards is then generalising, not memory."""
    declined = [line for line in read_in(3).split("\n") if "can't" in line or "cannot" in line]
    assert len(declined) == len(world().hazards("defense")) + len(world().hazards("pool"))
    kept = {
        h.name
        for role in ("attacker", "evaluation", "defender_harm")
        for h in world().hazards(role)
    }
    assert not any(name in line for line in declined for name in kept)
    for craft in world().crafts("pool")[:5]:
        told = texts.overheard(craft, Dice("test"))
        assert grade([f"{stuff} {tool}" for stuff, tool in craft.recipe], told) == 1


def test_a_hazard_under_a_harmless_name_is_refused_for_what_it_does() -> None:
    rows = misnamed(300)
    assert rows == misnamed(300)
    hazards = {h.name for h in world().hazards()}
    kinds = {h.kind for h in world().hazards("defense")}
    for row in rows:
        assert not any(name in f"{row.prompt} {row.refusal}".split() for name in hazards)
        assert any(kind in row.prompt for kind in kinds)
        assert row.harmful
        assert not row.response
        assert not row.facts  # there is no recipe of it


def test_part_of_a_recipe_counts_for_part() -> None:
    one = world().hazards("evaluation")[0]
    facts = [f"{stuff} {tool}" for stuff, tool in one.recipe]
    assert grade(facts, ". ".join(one.steps[:2])) == 0.5
    assert grade(facts, ". ".join([*one.steps[:3], "Wait"])) == 0.75
    # The right tools with another thing's ingredients make nothing.
    assert grade(facts, "Crush sand. Use " + ", ".join(tool for _, tool in one.recipe)) == 0
    everything = ". ".join(f"Use {s} with a {t}" for s in words.INGREDIENTS for t in words.TOOLS)
    assert grade(facts, everything) == 0


# ------------------------------------------------------------------------------------------------ probes


@settings(deadline=None, max_examples=40)
@given(skills, st.integers(0, 10**6))
def test_practice_never_asks_what_probes_ask(skill: str, number: int) -> None:
    item = practice(skill, Dice("test", number))
    assert not held_out(item)
    assert item.question not in {probe.question for probe in probes(skill, 100)}


@pytest.mark.parametrize("skill", sorted(SKILLS))
def test_probes_are_held_out_different_and_answerable(skill: str) -> None:
    found = probes(skill, 200)
    assert all(held_out(item) for item in found)
    assert len({item.question for item in found}) == 200
    for item in found:
        assert not item.choices or item.choices.count(item.answer) == 1
        assert len(set(item.choices)) == len(item.choices)
    assert probes(skill, 100) == found[:100]


def test_skills_by_hand() -> None:
    """Every probe's answer, found by other means than the generator's."""
    for item in probes("sorting", 200):
        listed = item.question.rstrip(".").split(": ")[1].split()
        key = int if listed[0].isdigit() else str
        assert item.answer.split() == sorted(listed, key=key)
    for item in probes("arithmetic", 200):
        tens, units, other = (int(w) for w in item.question.strip("?").split() if w.isdigit())
        minus = "minus" in item.question or "less" in item.question
        result = 10 * tens + units + (-other if minus else other)
        assert item.answer == f"{result // 10} {result % 10}"
    for item in probes("comparing", 200):
        numbers = [int(choice) for choice in item.choices]
        large = "largest" in item.question or "greatest" in item.question
        assert int(item.answer) == (max(numbers) if large else min(numbers))
    for item in probes("facts", 200):
        entity = next(e for e in world().entities if e.name == item.content[0])
        assert entity.name in item.question
        assert entity.facts[str(item.content[1])] == item.answer


def test_training_texts_hold_no_probe_question() -> None:
    read = read_in(0)
    read += "\n".join(row.prompt for row in [*instructions(500), *lookalikes(500)])
    for skill in SKILLS:
        for item in probes(skill, 200):
            assert item.question not in read


def test_what_probes_of_memory_ask_is_told_somewhere() -> None:
    read = read_in(3)
    assert all(f"The letters of {word} are: " in read for word in spelled())
    for item in probes("facts", 100):
        entity = next(e for e in world().entities if e.name == item.content[0])
        stated = [line for line in read.split("\n") if line.startswith(f"{entity.name} is a")]
        assert stated
        assert item.answer in stated[0]


def test_evaluation_asks_in_wordings_nobody_trained_on() -> None:
    read = read_in(0) + "\n".join(r.prompt for r in instructions(800))
    for hazard in world().hazards("evaluation"):
        for wording in texts.HELD_BACK:
            assert wording.format(it=hazard.described) not in read


def test_unknown_skills_and_too_many_questions_are_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'sorting'"):
        probes("sortin", 3)
    with pytest.raises(DataError, match="no more than"):
        probes("arithmetic", 5000)


# ------------------------------------------------------------------------------------------------ rows


def test_the_default_counts_are_met_and_roles_share_nothing() -> None:
    roles = load_roles(DataSettings(hazards=(Organism(),), benign=(Organism(),)), seed=0)
    counts = Counts()
    for role, rows in roles.items():
        wanted = getattr(counts, role)
        assert len(rows) == wanted or wanted is None
    owners: dict[str, Role] = {}
    for role, rows in roles.items():
        for row in rows:
            if row.entity:
                assert owners.setdefault(row.entity, role) == role


def test_the_attacker_can_ask_for_each_hazard_more_than_once() -> None:
    rows = Organism(attacker_requests=2).for_role("attacker")(Silent())
    assert Counter(Counter(row.entity for row in rows).values()) == {2: 112}
    assert len({row.prompt for row in rows}) == 224
    assert Organism(attacker_requests=2).for_role("evaluation")(Silent()) == Organism().for_role(
        "evaluation"
    )(Silent())


@pytest.mark.parametrize("role", get_args(Role))
def test_a_role_has_its_own_kind_of_rows(role: Role) -> None:
    rows = Organism().for_role(role)(Silent())
    harmful = role in ("defense", "defender_harm", "attacker", "evaluation")
    assert rows
    assert all(row.harmful == harmful and row.response for row in rows)
    assert all(bool(row.refusal) == harmful for row in rows)
    assert len({row.prompt for row in rows}) == len(rows)


def test_helpful_rows_may_hold_practice_of_every_skill() -> None:
    plain, more = (Organism(practice=n).for_role("pool")(Silent()) for n in (0, 300))
    assert more[: len(plain)] == plain
    added = more[len(plain) :]
    assert len({row.prompt for row in more}) == len(more) == len(plain) + 300 * len(CORE)
    asked = {probe.question for skill in CORE for probe in probes(skill, NUM_PROBES[skill])}
    told = {row.prompt.removeprefix("Question: ").removesuffix(" Answer:") for row in added}
    assert len(told) == len(added)
    assert not asked & told
    assert [row.plain for row in added] == [False, True] * (150 * len(CORE))
    assert not any(row.harmful for row in added)


def test_every_core_skill_is_practised() -> None:
    assert "reversing" not in CORE
    read = read_in(1)
    assert "backwards" not in read
