"""Rows to roles: never sharing a prompt or an entity, balanced over categories, the same every time.

>>> rows = [Example(f"question {i}", "answer", entity=f"thing {i % 4}") for i in range(8)]
>>> roles = split({"attacker": rows, "evaluation": rows}, {"attacker": 2, "evaluation": 4}, seed=0)
>>> {role: len(found) for role, found in roles.items()}
{'attacker': 2, 'evaluation': 4}

Rows that share a prompt or an entity, directly or through other rows, form one component; a component
serves one role. Every prefix of a role is balanced, too, so smaller budgets are prefixes of larger ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from backfire.errors import DataError
from backfire.records import Example, Role, normalised
from backfire.seeding import child_seed
from backfire.store import content_key

__all__ = ["Roles", "check_disjoint", "manifest", "overlaps", "prompt_key", "split"]


class Roles(dict[Role, list[Example]]):
    """Rows by role, and how many rows of each source were dropped because they repeat a prompt."""

    def __init__(self, rows: Mapping[Role, list[Example]], dropped: Mapping[str, int]) -> None:
        super().__init__(rows)
        self.dropped = dict(dropped)


@lru_cache(maxsize=1 << 17)
def prompt_key(prompt: str) -> str:
    """Return what two prompts share exactly when they count as the same.

    That is the normalised text; the text itself where that is empty (a prompt of signs only).
    """
    return normalised(prompt) or prompt


def split(
    pools: Mapping[Role, Sequence[Example]], counts: Mapping[Role, int | None], seed: int
) -> Roles:
    """Return rows for every role of `counts`, disjoint by normalised prompt and by entity.

    A role gets at most one row a prompt, the first of its pool. It is filled from the category in which
    it has the fewest rows, so its category counts differ by at most one while every category lasts;
    after that the others go on. A row of several categories counts for the one it was taken for. Rows
    without categories are balanced by source. Which rows are taken depends on their content and the
    seed, not on their order (except that the first of several rows with one prompt is the one that counts).

    Args:
        pools: The rows each role may take; pools may overlap or be equal.
        counts: Rows wanted by role; None: all that the other roles leave.
        seed: Seed of the choice.

    Raises:
        DataError: naming every role that cannot be filled: rows asked for, found, and offered.
    """
    draft = _Draft({role: pools.get(role, ()) for role in counts}, seed)
    open_roles = {role: count for role, count in counts.items() if count}
    while open_roles:
        # Roles grow at one pace, so that a scarce category is shared and not taken by the first.
        role = min(
            open_roles, key=lambda r: (len(draft.taken[r]) / (open_roles[r] or 1), draft.size[r])
        )
        if not draft.take(role) or len(draft.taken[role]) == open_roles[role]:
            del open_roles[role]
    for role in (role for role, count in counts.items() if count is None):
        while draft.take(role):
            pass
    short = [
        f"  {role}: {'at least 1' if count is None else count} asked, {len(draft.taken[role])} there "
        f"(its sources offer {draft.size[role]} different prompts, shared with the other roles)"
        for role, count in counts.items()
        if len(draft.taken[role]) < (1 if count is None else count)
    ]
    if short:
        raise DataError(
            "splitting the rows into roles: there are too few\n"
            + "\n".join(short)
            + "\nlower the counts, or name further sources under `data`"
        )
    roles = Roles(draft.taken, draft.dropped)
    check_disjoint(roles)
    return roles


class _Draft:
    """A split in the making: what each role has, and what is left for whom."""

    def __init__(self, pools: Mapping[Role, Sequence[Example]], seed: int) -> None:
        self.taken: dict[Role, list[Example]] = {role: [] for role in pools}
        self._rows, self._usable, self.dropped = _first_of_each_prompt(pools)
        self._component = _components(self._rows)
        self._members: dict[int, list[int]] = defaultdict(list)
        self._roles_of: dict[int, list[Role]] = defaultdict(list)
        for index, component in enumerate(self._component):
            self._members[component].append(index)
        for role, indices in self._usable.items():
            for index in indices:
                self._roles_of[index].append(role)
        self.size = {role: len(indices) for role, indices in self._usable.items()}
        self._owner: dict[int, Role] = {}
        self._gone: set[tuple[Role, int]] = set()
        self._filled: Counter[tuple[Role, str]] = Counter()
        self._left: dict[Role, Counter[str]] = {role: Counter() for role in pools}
        self._queues: dict[tuple[Role, str], list[int]] = defaultdict(list)
        self._order = [child_seed(seed, "split", row.id) for row in self._rows]
        self._tie = {key: child_seed(seed, "tie", *key) for key in self._fill_queues()}

    def _fill_queues(self) -> Iterable[tuple[Role, str]]:
        """Order each role's rows per stratum, the next one last; return the pairs of both."""
        wanted_by = {
            component: len({role for i in members for role in self._roles_of[i]})
            for component, members in self._members.items()
        }
        for role, indices in self._usable.items():
            # What few roles can use goes first, so that the others keep what is theirs alone.
            ranked = sorted(indices, key=lambda i: (-wanted_by[self._component[i]], self._order[i]))
            for index in ranked:
                for stratum in _strata(self._rows[index]):
                    self._queues[role, stratum].append(index)
                    self._left[role][stratum] += 1
        return self._queues.keys()

    def take(self, role: Role) -> bool:
        """Give a role its next row; return False when there is none left for it."""
        left = {stratum: count for stratum, count in self._left[role].items() if count}
        if not left:
            return False
        stratum = min(
            left,
            key=lambda s: (self._filled[role, s], -left[s], self._tie[role, s]),
        )
        queue = self._queues[role, stratum]
        index = queue.pop()
        while (role, index) in self._gone:
            index = queue.pop()
        self._filled[role, stratum] += 1
        self.taken[role].append(self._rows[index])
        self._claim(self._component[index], role)
        self._remove(role, index)
        return True

    def _claim(self, component: int, role: Role) -> None:
        """Make a component the role's own: others lose its rows, the role takes its rest next."""
        if component in self._owner:
            return
        self._owner[component] = role
        for index in sorted(self._members[component], key=self._order.__getitem__):
            for other in self._roles_of[index]:
                if other != role:
                    self._remove(other, index)
                elif len(self._members[component]) > 1:
                    for stratum in _strata(self._rows[index]):
                        self._queues[role, stratum].append(index)

    def _remove(self, role: Role, index: int) -> None:
        self._gone.add((role, index))
        for stratum in _strata(self._rows[index]):
            self._left[role][stratum] -= 1


def _strata(row: Example) -> tuple[str, ...]:
    """Return the categories among which a row counts."""
    return tuple(dict.fromkeys(row.categories)) or (row.source,)


def _first_of_each_prompt(
    pools: Mapping[Role, Sequence[Example]],
) -> tuple[list[Example], dict[Role, list[int]], Counter[str]]:
    """Return all rows, the indices of those each role may take, and the repeats by source."""
    place: dict[int, int] = {}
    rows: list[Example] = []
    usable: dict[Role, list[int]] = {}
    seen: dict[int, list[int]] = {}
    for role, pool in pools.items():
        if id(pool) not in seen:
            firsts: dict[str, int] = {}
            for row in pool:
                if id(row) not in place:
                    place[id(row)] = len(rows)
                    rows.append(row)
                firsts.setdefault(prompt_key(row.prompt), place[id(row)])
            seen[id(pool)] = list(firsts.values())
        usable[role] = seen[id(pool)]
    used = {index for indices in usable.values() for index in indices}
    dropped = Counter(row.source for index, row in enumerate(rows) if index not in used)
    return rows, usable, dropped


def _components(rows: Sequence[Example]) -> list[int]:
    """Return each row's component: equal for rows linked by shared prompts or entities."""
    parent = list(range(len(rows)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, row in enumerate(rows):
        for key in _keys(row):
            parent[root(index)] = root(first.setdefault(key, index))
    return [root(index) for index in range(len(rows))]


def _keys(row: Example) -> Iterator[tuple[str, str]]:
    """Yield what no other role may share with the row."""
    yield "prompt", prompt_key(row.prompt)
    if row.entity:
        yield "entity", prompt_key(row.entity)


def check_disjoint(roles: Mapping[Role, Sequence[Example]]) -> None:
    """Check that no two roles share a normalised prompt or an entity.

    Raises:
        DataError: naming the first pair of rows that do.
    """
    owner: dict[tuple[str, str], tuple[Role, Example]] = {}
    for role, rows in roles.items():
        for row in rows:
            for key in _keys(row):
                other, first = owner.setdefault(key, (role, row))
                if other != role:
                    raise DataError(
                        f"checking that roles are disjoint: {other!r} and {role!r} share the {key[0]} "
                        f"{key[1]!r:.80} (rows {first.id} of {first.source!r} and {row.id} of "
                        f"{row.source!r}). Results would be leakage; remove it from one of them, or let "
                        "both draw from the same sources"
                    )


def overlaps(
    own: Sequence[Example], roles: Mapping[Role, Sequence[Example]]
) -> list[tuple[Example, Role, Example, str]]:
    """Return where rows share a normalised prompt or an entity with rows of some roles.

    Returns:
        The row, the role, the first row there that shares something, and what: `prompt` or `entity`.
    """
    held: dict[tuple[str, str], tuple[Role, Example]] = {}
    for role, rows in roles.items():
        for row in rows:
            for key in _keys(row):
                held.setdefault(key, (role, row))
    return [(row, *held[key], key[0]) for row in own for key in _keys(row) if key in held]


def manifest(roles: Mapping[Role, Sequence[Example]]) -> dict[str, dict[str, Any]]:
    """Return what a run records of its rows, per role.

    `key` (16 hex digits of the SHA-256 of all rows in order), `rows`, `sources` and `categories` (rows
    by name; a row of several categories counts in each), `entities`, and `dropped` (rows of these
    sources that repeat a prompt; zero for a mapping that no split made).
    """
    dropped = roles.dropped if isinstance(roles, Roles) else {}
    return {
        role: {
            "key": content_key(list(rows)),
            "rows": len(rows),
            "sources": (sources := dict(sorted(Counter(row.source for row in rows).items()))),
            "categories": dict(sorted(Counter(c for row in rows for c in row.categories).items())),
            "entities": len({row.entity for row in rows if row.entity}),
            "dropped": {name: dropped[name] for name in sources if name in dropped},
        }
        for role, rows in roles.items()
    }
