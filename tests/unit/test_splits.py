"""Splits: disjoint by prompt and entity, balanced, complete, repeatable; or an error that counts."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfire.data.splits import check_disjoint, manifest, prompt_key, split
from backfire.errors import DataError
from backfire.records import Example, Role

ROLES: tuple[Role, ...] = ("defense", "attacker", "evaluation")


def row(prompt: str, category: str = "", entity: str = "", source: str = "s") -> Example:
    return Example(prompt, "r", source, categories=(category,) if category else (), entity=entity)


rows = st.lists(
    st.builds(
        Example,
        prompt=st.sampled_from([f"p{i}" for i in range(25)] + ["P1!", "p2 ?", "???"]),
        response=st.sampled_from("ab"),
        source=st.sampled_from(["x", "y"]),
        categories=st.lists(st.sampled_from("abc"), max_size=3).map(tuple),
        entity=st.sampled_from(["", "", "e1", "E1", "e2", "e3", "e4"]),
    ),
    max_size=40,
)
counts = st.fixed_dictionaries(
    {}, optional={role: st.one_of(st.none(), st.integers(0, 8)) for role in ROLES}
)


@settings(deadline=None)
@given(rows, rows, counts, st.integers(0, 3))
def test_a_split_keeps_every_promise_or_says_who_lacks_rows(
    some: list[Example], others: list[Example], wanted: dict[Role, int | None], seed: int
) -> None:
    pools = {"defense": some, "attacker": some, "evaluation": some + others}
    try:
        found = split(pools, wanted, seed)  # type: ignore[arg-type]
    except DataError:
        return  # what the error says is tested below, and when it is due, too
    assert list(found) == list(wanted)
    for role, taken in found.items():
        assert wanted[role] in (None, len(taken))
        assert all(any(one is other for other in pools[role]) for one in taken)
        keys = [prompt_key(one.prompt) for one in taken]
        assert len(set(keys)) == len(keys)
    prompts = [{prompt_key(r.prompt) for r in taken} for taken in found.values()]
    entities = [{r.entity.lower() for r in taken if r.entity} for taken in found.values()]
    for groups in (prompts, entities):
        assert sum(map(len, groups)) == len(set().union(*groups))
    assert found == split(pools, wanted, seed)  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=4),
    st.lists(st.integers(0, 15), min_size=1, max_size=3),
    st.integers(0, 5),
)
def test_categories_are_balanced_where_supply_allows(
    spare: list[int], sizes: list[int], seed: int
) -> None:
    """With at least the sum over roles of ceil(count / categories) rows in each, counts differ by <= 1."""
    names = [f"c{i}" for i in range(len(spare))]
    enough = sum(-(-size // len(names)) for size in sizes)
    pool = [
        row(f"{n} {i}", n) for n, s in zip(names, spare, strict=True) for i in range(enough + s)
    ]
    wanted: dict[Role, int | None] = dict(zip(ROLES, sizes, strict=False))
    for taken in split(dict.fromkeys(wanted, pool), wanted, seed).values():
        # Every prefix is balanced, so that 10 shots are as balanced as 100.
        for size in range(len(taken) + 1):
            found = Counter(r.categories[0] for r in taken[:size])
            assert max(found[n] for n in names) - min(found[n] for n in names) <= 1


@settings(deadline=None)
@given(st.integers(0, 12), st.lists(st.integers(0, 6), min_size=3, max_size=3), st.integers(0, 5))
def test_it_succeeds_exactly_when_there_are_enough_rows(
    supply: int, sizes: list[int], seed: int
) -> None:
    pool = [row(f"p {i}", "ab"[i % 2]) for i in range(supply)]
    wanted: dict[Role, int | None] = dict(zip(ROLES, sizes, strict=True))
    pools = dict.fromkeys(ROLES, pool)
    if sum(sizes) <= supply:
        assert sum(map(len, split(pools, wanted, seed).values())) == sum(sizes)
    else:
        with pytest.raises(DataError):
            split(pools, wanted, seed)


@settings(deadline=None)
@given(st.permutations(range(12)), st.integers(0, 3))
def test_the_order_of_the_rows_does_not_matter(order: list[int], seed: int) -> None:
    pool = [row(f"p {i}", "abc"[i % 3], f"e{i // 2}") for i in range(12)]
    wanted: dict[Role, int | None] = {"attacker": 3, "defense": None}
    moved = [pool[i] for i in order]
    first = split(dict.fromkeys(wanted, pool), wanted, seed)
    assert first == split(dict.fromkeys(wanted, moved), wanted, seed)


def test_the_seed_matters() -> None:
    pool = [row(f"p {i}") for i in range(30)]
    drawn = {
        tuple(r.prompt for r in split({"benign": pool}, {"benign": 9}, s)["benign"])
        for s in range(5)
    }
    assert len(drawn) == 5


def test_linked_rows_go_together_through_other_rows() -> None:
    """p1 and p3 share nothing, but p2 shares an entity with one and its prompt with the other."""
    chain = [
        row("p1", entity="e1"),
        row("p2", entity="e1"),
        row("P2!", entity="e2"),
        row("p3", entity="e2"),
    ]
    pools: dict[Role, list[Example]] = {"attacker": chain[:2], "evaluation": chain[2:]}
    with pytest.raises(DataError, match="1 asked, 0 there"):
        split(pools, {"attacker": 1, "evaluation": 1}, 0)


def test_a_role_keeps_to_its_own_pool_and_leaves_shared_rows_to_the_others() -> None:
    own, shared = [row(f"own {i}") for i in range(5)], [row(f"shared {i}") for i in range(5)]
    pools: dict[Role, list[Example]] = {"attacker": own + shared, "defense": shared}
    found = split(pools, {"attacker": 5, "defense": 5}, 0)
    assert {r.prompt for r in found["defense"]} == {r.prompt for r in shared}


def test_a_thing_asked_about_in_two_wordings_gives_each_role_its_own() -> None:
    seen = [row(f"how is e{i} made", "c", f"e{i}") for i in range(10)]
    unseen = [row(f"recipe for e{i}", "c", f"e{i}") for i in range(10)]
    found = split({"attacker": seen, "evaluation": unseen}, {"attacker": 5, "evaluation": 5}, 0)
    assert all(r.prompt.startswith("recipe") for r in found["evaluation"])
    assert len({r.entity for taken in found.values() for r in taken}) == 10


def test_a_row_of_several_labels_fills_the_one_that_needs_it() -> None:
    pool = [Example(f"p {i}", categories=("a", "z") if i < 3 else ("a",)) for i in range(20)]
    taken = split({"defense": pool}, {"defense": 6}, 0)["defense"]
    assert sum("z" in r.categories for r in taken) == 3


def test_repeated_prompts_are_dropped_and_counted_by_source() -> None:
    pool = [row("p1"), row("P1?"), row("p1", source="t"), row("p2")]
    found = split({"benign": pool, "probe": pool}, {"benign": 1, "probe": 1}, 0)
    assert found.dropped == {"s": 1, "t": 1}
    assert manifest(found)["benign"]["dropped"] == {"s": 1}


def test_shortage_names_every_role_and_its_numbers() -> None:
    pool = [row(f"p {i}") for i in range(4)]
    with pytest.raises(DataError) as caught:
        split(
            {"attacker": pool, "defense": pool, "pool": pool},
            {"attacker": 3, "defense": 9, "pool": None},
            0,
        )
    text = str(caught.value)
    assert "defense: 9 asked" in text
    assert "pool: at least 1 asked, 0 there" in text
    assert "offer 4 different prompts" in text
    assert "lower the counts" in text


@pytest.mark.parametrize(
    ("other", "what"),
    [(row("How to, X?"), "prompt 'how to x'"), (row("else", entity="THING"), "entity 'thing'")],
)
def test_overlap_is_named_with_both_rows(other: Example, what: str) -> None:
    first = row("how to x", entity="thing")
    with pytest.raises(DataError, match=f"'attacker' and 'evaluation' share the {what}") as caught:
        check_disjoint({"attacker": [first], "evaluation": [row("fine"), other]})
    assert first.id in str(caught.value)
    assert other.id in str(caught.value)


def test_within_a_role_rows_may_share() -> None:
    check_disjoint({"attacker": [row("p", entity="e"), row("p", entity="e")], "evaluation": []})


def test_the_manifest_counts_and_its_key_follows_the_rows() -> None:
    rows = [
        Example("a", "1", "s", categories=("x", "y"), entity="e"),
        Example("b", "2", "t", categories=("x",), entity="e"),
    ]
    found = manifest({"attacker": rows})["attacker"]
    key = found.pop("key")
    assert found == {
        "rows": 2, "sources": {"s": 1, "t": 1}, "categories": {"x": 2, "y": 1}, "entities": 1,
        "dropped": {},
    }  # fmt: skip
    assert len(key) == 16
    assert manifest({"attacker": rows[::-1]})["attacker"]["key"] != key
    assert manifest({"attacker": list(rows)})["attacker"]["key"] == key


def test_prompts_of_signs_only_are_told_apart() -> None:
    assert prompt_key("???") != prompt_key("!!!")
    assert prompt_key("A  b?") == prompt_key("a B")


def test_every_role_can_be_split() -> None:
    pool = [row(f"p {i}") for i in range(20)]
    wanted: dict[Any, int | None] = dict.fromkeys(get_args(Role), 2)
    assert set(split(dict.fromkeys(wanted, pool), wanted, 0)) == set(get_args(Role))
