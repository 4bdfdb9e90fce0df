"""What exists and what a run came to, as pages for the terminal: made from the classes' own docs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from backfire.errors import ConfigError, near_miss
from backfire.mistakes import models_in
from backfire.runfile import dump
from backfire.text import paragraph, table

if TYPE_CHECKING:
    from backfire.pipeline import Outcome

__all__ = [
    "catalogue",
    "fetchable",
    "list_page",
    "list_record",
    "outcome_page",
    "outcome_record",
    "show_page",
]


def catalogue() -> dict[str, dict[str, type[BaseModel]]]:
    """Return the settings classes a run file can name, by kind and name."""
    from backfire.attack import AnyAttack
    from backfire.data import AnySource
    from backfire.defend import AnyDefense
    from backfire.evaluate import AnyEvaluation
    from backfire.judges import AnyJudge

    unions: dict[str, Any] = {
        "defenses": AnyDefense,
        "attacks": AnyAttack,
        "evaluations": AnyEvaluation,
        "judges": AnyJudge,
        "sources": AnySource,
    }
    return {
        kind: {str(m.model_fields["name"].default): m for m in models_in(union)}
        for kind, union in unions.items()
    }


def list_record(kind: str | None = None) -> list[dict[str, str]]:
    """Return every member and asset, or those of one kind: kind, name, first line of its docs.

    Raises:
        ConfigError: for an unknown kind.
    """
    from backfire.assets import summaries

    kinds = {
        kind: {name: _summary(member) for name, member in members.items()}
        for kind, members in catalogue().items()
    }
    kinds["assets"] = dict(summaries())
    if kind is not None and kind not in kinds:
        raise ConfigError(f"listing: {near_miss('kind', kind, kinds)}")
    return [
        {"kind": k, "name": name, "summary": summary}
        for k, members in kinds.items()
        if kind in (None, k)
        for name, summary in members.items()
    ]


def list_page(record: list[dict[str, str]]) -> str:
    """Return the list as a table."""
    return table(
        ["kind", "name", "what it is"], [[r["kind"], r["name"], r["summary"]] for r in record]
    )


def fetchable() -> list[str]:
    """Return the assets that `fetch --all` fetches: those whose terms nobody has to accept first."""
    from backfire.assets import catalog

    return sorted(name for name, asset in catalog().items() if not asset.gated)


def show_page(name: str, as_yaml: bool = False) -> str:
    """Return one member's page, or a block of its defaults to paste into a run file.

    Raises:
        ConfigError: for an unknown name.
    """
    kinds = catalogue()
    found = [(kind, members[name]) for kind, members in kinds.items() if name in members]
    if not found:
        known = {name for members in kinds.values() for name in members}
        raise ConfigError(f"showing: {near_miss('name', name, known)}")
    if as_yaml:
        return "".join(_block(kind, member) for kind, member in found).rstrip()
    return "\n\n".join(_page(kind, member) for kind, member in found)


def _page(kind: str, member: type[BaseModel]) -> str:
    name = member.model_fields["name"].default
    version = getattr(member, "version", 1)
    docs = inspect.cleandoc(member.__doc__ or "")
    roles = ", ".join(getattr(member, "roles", ()))
    lines = [f"{name} ({kind[:-1]}, version {version})", "", docs]
    if roles:
        lines += ["", f"Rows it may read: {roles}"]
    lines += ["", "Settings:"]
    for path, default, about in _settings(member):
        lines.append(f"  {path} = {default}")
        if about:
            lines.append(paragraph(about, "      "))
    return "\n".join(lines)


def _settings(
    member: type[BaseModel], own: BaseModel | None = None, before: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Yield dotted name, default and docs of each setting; those of a nested default follow it.

    Args:
        member: The settings class.
        own: The instance that gives the defaults; None takes the class's.
        before: What the names begin with.
    """
    for name, field in member.model_fields.items():
        if name == "name":
            continue
        value = (
            getattr(own, name) if own is not None else field.get_default(call_default_factory=True)
        )
        required = own is None and field.is_required()
        nested = isinstance(value, BaseModel)
        shown = "(must be given)" if required else type(value).__name__ if nested else repr(value)
        yield before + name, shown, field.description or ""
        inner = field.annotation
        if isinstance(value, BaseModel):
            yield from _settings(type(value), value, f"{before}{name}.")
        elif required and isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _settings(inner, None, f"{before}{name}.")


def _block(kind: str, member: type[BaseModel]) -> str:
    return dump({kind: [_defaults(member)]}, comment=_summary(member))


def _defaults(member: type[BaseModel]) -> dict[str, Any]:
    """Return every setting's default, and a sign where one must be given."""
    values: dict[str, Any] = {}
    for name, field in member.model_fields.items():
        inner = field.annotation
        if name == "label":
            continue
        if not field.is_required():
            values[name] = _plain(field.get_default())
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            values[name] = _defaults(inner)
        else:
            values[name] = "GIVE A VALUE"
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _summary(member: type[BaseModel]) -> str:
    return inspect.cleandoc(member.__doc__ or "").split("\n", 1)[0].rstrip(".")


# ----------------------------------------------------------------------------------- what came of it


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as plain data."""
    return {
        "run": str(outcome.folder),
        "report": str(outcome.report),
        "computed": outcome.computed,
        "failed": list(outcome.failed),
        "came_to": list(outcome.came_to),
        "conclusion": outcome.conclusion,
    }


_HEADLINES = ("verified_harm", "usable_harm", "capability_retention", "over_refusal", "perplexity")
"""Metrics printed after a run; all others are in the report."""


def outcome_page(outcome: Outcome) -> str:
    """Return the main numbers over all seeds, the verdict sentence, and where the report is."""
    found = {
        (row["defense"], row["attack"], row["metric"]): row
        for row in outcome.conclusion["measurements"]
        if row["seed"] is None
    }
    cells = list(dict.fromkeys((defense, attack) for defense, attack, _ in found))
    metrics = [m for m in _HEADLINES if any((*cell, m) in found for cell in cells)]
    grid = table(
        ["defense", "attack", *metrics],
        [[*cell, *(_with_interval(found.get((*cell, m))) for m in metrics)] for cell in cells],
    )
    return f"{grid}\n\n{paragraph(outcome.conclusion['sentence'])}\n\nreport: {outcome.report}"


def _with_interval(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "-"
    if row["low"] is None or row["high"] is None:
        return f"{row['value']:.3g}"
    return f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
