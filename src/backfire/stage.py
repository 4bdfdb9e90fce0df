"""The four contracts between the pipeline and its members, and what a member may use.

A member is a frozen settings object with one call. `name` and `version` identify it: `version` is
raised whenever the same settings can give other numbers, and it is part of every content key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, Union, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from backfire.errors import ConfigError
from backfire.progress import Progress, Silent
from backfire.records import Checkpoint, Example, Exchange, Role, Verdict

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue

__all__ = [
    "Bench",
    "Evaluation",
    "Judge",
    "Settings",
    "Source",
    "Tables",
    "Transform",
    "member_union",
]

Tables = Mapping[str, Sequence[Any]]
"""Lists of records by table name."""


class Settings(BaseModel):
    """Base of every settings object: frozen, closed, each field documented by the string below it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    version: ClassVar[int] = 1
    """Raised when the same settings can give other numbers."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after results were kept: at their default they are no part of a content key,
    so that those results are still found. A class names its own; those of its bases count, too."""

    @classmethod
    def schema_of(cls) -> JsonSchemaValue:
        """Return the JSON schema, field descriptions included."""
        return cls.model_json_schema()


@dataclass(frozen=True)
class Bench:
    """Everything a stage may touch. Nothing is global."""

    workdir: Path
    """The stage's own folder; it exists and nothing else writes there."""
    seed: int = 0
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    data: Mapping[Role, Sequence[Example]] = field(default_factory=dict)
    """The rows of the run by role, disjoint by normalised prompt and by entity."""
    progress: Progress = field(default_factory=Silent)
    label: str = ""
    """What to call this stage in front of the user."""
    state: Path | None = None
    """Where a training keeps what a later one of the same course goes on from; None: in the stage's own
    folder, and only while it is unfinished."""


@runtime_checkable
class Transform(Protocol):
    """A defense or an attack: checkpoint in, checkpoint out.

    The input folder is untouched; the output is complete in `bench.workdir`; the same inputs and
    seed give the same weights (CPU, fp32); only the declared `roles` of `bench.data` are read.
    """

    name: str
    version: ClassVar[int]
    roles: ClassVar[tuple[Role, ...]]

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Return the transformed checkpoint."""
        ...


@runtime_checkable
class Evaluation(Protocol):
    """A measurement: checkpoint in, rows out, nothing aggregated away."""

    name: str
    version: ClassVar[int]
    roles: ClassVar[tuple[Role, ...]]

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Tables:
        """Return rows by table name, one per item, with ids equal in every cell."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Exchanges in, verdicts out: one each, in order, a value or an absence with its reason."""

    name: str
    version: ClassVar[int]

    def __call__(self, exchanges: Sequence[Exchange], bench: Bench | None = None) -> list[Verdict]:
        """Return one verdict per exchange, in order.

        Args:
            exchanges: What to judge; no row may influence another's verdict.
            bench: Where to compute and where to report, for judges that take long; None: quietly.
        """
        ...


@runtime_checkable
class Source(Protocol):
    """Examples in a deterministic order, from a pinned place."""

    name: str
    version: ClassVar[int]

    def __call__(self, progress: Progress) -> list[Example]:
        """Return the examples."""
        ...


def member_union(*members: type[Settings], group: str) -> Any:
    """Return the union of a stage's members, told apart by `name`; third parties' included.

    Args:
        members: The project's own, in the order they are listed.
        group: Entry-point group under which other packages offer theirs, e.g. `backfire.attacks`.

    Raises:
        ConfigError: when an entry point is not a settings class with a `name` nobody else has.
    """
    known = {_name_of(member): member for member in members}
    for point in entry_points(group=group):
        member = point.load()
        if not (isinstance(member, type) and issubclass(member, Settings)) or not _name_of(member):
            raise ConfigError(
                f"loading entry point {point.value!r} of group {group}: it must be a Settings class with "
                "a `name: Literal[...]` field; uninstall that package or ask its author"
            )
        if _name_of(member) in known:
            raise ConfigError(
                f"loading entry point {point.value!r} of group {group}: the name {_name_of(member)!r} is "
                "taken; uninstall one of the two packages"
            )
        known[_name_of(member)] = member
    union: Any = Union[tuple(known.values())]  # noqa: UP007 - built from a list
    return Annotated[union, Field(discriminator="name")] if len(known) > 1 else union


def _name_of(member: type[Settings]) -> str:
    field_info = member.model_fields.get("name")
    return str(field_info.default) if field_info is not None and field_info.default else ""
