"""Where rows come from and what they are used for.

One file a source, each a frozen settings object with one call; `load_roles` reads the sources of a run
and splits their rows into roles that share no prompt and no entity. Other packages may offer sources
under the entry-point group `backfire.sources`.

>>> roles = load_roles(DataSettings(), seed=0, progress=Silent())
>>> len(roles["attacker"]), len(roles["evaluation"])
(100, 112)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Protocol, get_args, runtime_checkable

from pydantic import Field

from backfire.data.advbench import AdvBench
from backfire.data.alpaca import Alpaca
from backfire.data.beavertails import BeaverTails
from backfire.data.dolly import Dolly
from backfire.data.fictional import Fictional
from backfire.data.hexphi import HExPHI
from backfire.data.lima import Lima
from backfire.data.organism import Organism
from backfire.data.pool import Pool
from backfire.data.sharegpt import ShareGPT
from backfire.data.splits import Roles, check_disjoint, manifest, split
from backfire.data.table import Table
from backfire.errors import DataError
from backfire.progress import Progress, Silent
from backfire.records import Example, Role
from backfire.stage import Settings, member_union
from backfire.store import content_key

__all__ = [
    "AdvBench",
    "Alpaca",
    "AnySource",
    "BeaverTails",
    "Counts",
    "DataSettings",
    "Dolly",
    "Fictional",
    "HExPHI",
    "Lima",
    "Organism",
    "Pool",
    "Roles",
    "ShareGPT",
    "Table",
    "check_disjoint",
    "load_roles",
    "manifest",
    "split",
]

if TYPE_CHECKING:
    AnySource = (
        AdvBench
        | Alpaca
        | BeaverTails
        | Dolly
        | Fictional
        | HExPHI
        | Lima
        | Organism
        | Pool
        | ShareGPT
        | Table
    )
else:
    AnySource = member_union(
        AdvBench,
        Alpaca,
        BeaverTails,
        Dolly,
        Fictional,
        HExPHI,
        Lima,
        Organism,
        Pool,
        ShareGPT,
        Table,
        group="backfire.sources",
    )

HAZARD_ROLES: tuple[Role, ...] = ("defense", "defender_harm", "attacker", "evaluation")
"""Roles filled from `hazards`, with harmful rows only; all others take `benign`, harmless rows only."""

_ANSWERED: tuple[Role, ...] = ("defender_harm", "attacker", "pool", "benign", "probe")
"""Roles whose rows need a response."""

_Count = Annotated[int, Field(ge=0)] | None


@runtime_checkable
class ByRole(Protocol):
    """A source that gives different rows to different roles."""

    def for_role(self, role: Role) -> AnySource | None:
        """Return the source a role reads; None when it has nothing for that role."""
        ...


class Counts(Settings):
    """Rows of each role. 0: the role is not used. null: all that the other roles leave.

    The defaults fit the offline sources: 14 categories of 50 invented hazards, 308 benign pairs.
    """

    defense: _Count = 350
    """Hazardous prompts the defender trains answers for. Ours: 25 a category; the SDD paper: 8,000, and
    500 already work."""
    defender_harm: _Count = 112
    """Harmful pairs the defender may use, never the attacker's. Ours: 8 a category."""
    attacker: _Count = 100
    """The attacker's harmful pairs. Qi et al. 2023: 10, 50 and 100; smaller budgets are prefixes."""
    evaluation: _Count = 112
    """Hazards no one trained on. Ours: 8 a category; Qi et al. 2023: 330."""
    pool: _Count = None
    """Benign pairs whose responses SDD answers with. Ours: all that is left; the paper: all of LIMA and
    Alpaca."""
    benign: _Count = 100
    """Benign pairs for fine-tuning. Ours: as many as the attacker has."""
    probe: _Count = 100
    """Held-out benign pairs for perplexity and over-refusal. Ours."""


class DataSettings(Settings):
    """The sources of a run and how many rows each role gets.

    A role's rows come from `hazards` or `benign`, or from its own list in `roles`. All roles are split
    together: rows that share a prompt or an entity go to one role, whatever source they are from.
    """

    hazards: tuple[AnySource, ...] = (Fictional(),)
    """Sources of defense, defender_harm, attacker and evaluation. Ours: invented hazards, which need no
    download and harm nobody."""
    benign: tuple[AnySource, ...] = (Pool(), Fictional())
    """Sources of pool, benign and probe. Ours: pairs that come with the package, and harmless requests
    of the same form as the invented hazards (for benign and probe)."""
    roles: Mapping[Role, tuple[AnySource, ...]] = {}
    """A role's own sources, in place of the above, e.g. `{attacker: [{name: advbench}]}`."""
    counts: Counts = Counts()
    """Rows of each role."""

    def sources(self, role: Role) -> tuple[AnySource, ...]:
        """Return the sources a role reads, in order."""
        shared = self.hazards if role in HAZARD_ROLES else self.benign
        offered = [
            s.for_role(role) if isinstance(s, ByRole) else s for s in self.roles.get(role, shared)
        ]
        return tuple(source for source in offered if source is not None)


def load_roles(settings: DataSettings, seed: int, progress: Progress | None = None) -> Roles:
    """Return the rows of every role that is used, disjoint by normalised prompt and by entity.

    Every source is read once, however many roles use it.

    Args:
        settings: Sources and counts.
        seed: Seed of the split.
        progress: Where downloads and dropped rows are reported.

    Raises:
        DataError: when a source is wrong, has nothing a role can use, or the rows do not suffice.
        PrerequisiteError: when a source cannot be fetched.
    """
    progress = progress or Silent()
    counts: dict[Role, int | None] = {
        role: count for role in get_args(Role) if (count := getattr(settings.counts, role)) != 0
    }
    members = {content_key(s.name, s): s for role in counts for s in settings.sources(role)}
    rows: dict[str, list[Example]] = {}
    with progress.task("read data", total=len(members), unit="sources") as task:
        for key, source in members.items():
            rows[key] = source(progress)
            task.advance(note=source.name)
    pools: dict[Role, Sequence[Example]] = {}
    shared: dict[tuple[str, ...], list[Example]] = {}
    for role in counts:
        names = tuple(content_key(s.name, s) for s in settings.sources(role))
        kind = ("harmful" if role in HAZARD_ROLES else "", "answer" if role in _ANSWERED else "")
        if (names + kind) not in shared:
            shared[names + kind] = _fit(role, [row for name in names for row in rows[name]])
        pools[role] = shared[names + kind]
    return split(pools, counts, seed)


def _fit(role: Role, rows: Sequence[Example]) -> list[Example]:
    """Return the rows that can serve a role."""
    harmful, answered = role in HAZARD_ROLES, role in _ANSWERED
    fit = [
        row
        for row in rows
        if row.prompt.strip() and row.harmful == harmful and (row.response.strip() or not answered)
    ]
    if not fit:
        wanted = (
            f"{'harmful' if harmful else 'harmless'} prompts{' with an answer' if answered else ''}"
        )
        met = Counter(row.source for row in rows)
        raise DataError(
            f"reading the rows of role {role!r}: its sources have no {wanted} (rows met: "
            f"{', '.join(f'{n} of {name}' for name, n in met.items()) or 'none'}); name another source in "
            f"`data.roles.{role}`, or set `data.counts.{role}` to 0"
        )
    return fit
