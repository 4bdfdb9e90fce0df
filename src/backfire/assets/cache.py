"""The cache on disk: complete or absent.

    <cache>/assets/<name>/      an asset's folder; `asset.json`, written last, names every file
    <cache>/wheels/*.whl        verified wheels that other assets still need; may be deleted any time

A folder counts when its `asset.json` belongs to today's pins and every file has the recorded size;
`verify` also compares every SHA-256.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backfire.assets.origin import Asset
from backfire.errors import PrerequisiteError
from backfire.progress import Progress
from backfire.store import file_sha256, write_json

__all__ = ["MARKER", "cache_dir", "damage", "locked", "problems", "read_marker", "write_marker"]

MARKER = "asset.json"
"""What an asset's folder holds besides its files: origin, licence, hashes, deviations."""


def cache_dir() -> Path:
    """Return the cache folder: `BACKFIRE_CACHE`, else `backfire` in the user's XDG cache."""
    own = os.environ.get("BACKFIRE_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "backfire"


def read_marker(folder: Path) -> dict[str, Any] | None:
    """Return a folder's `asset.json`, or None when it has none that can be read."""
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("files"), dict) else None


def write_marker(folder: Path, asset: Asset, facts: Mapping[str, Any]) -> None:
    """Write `asset.json` with the size and SHA-256 of every file; the folder is complete then."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    about = {
        "name": asset.name,
        "kind": asset.kind,
        "summary": asset.summary,
        "licence": asset.licence,
        "recipe": asset.recipe,
    }
    write_json(folder / MARKER, {**about, **facts, "files": files})


def damage(folder: Path, asset: Asset) -> str:
    """Return why a folder cannot be used, by a look at names and sizes; empty when it can."""
    marker = read_marker(folder)
    if marker is None:
        return "incomplete: it has no readable asset.json" if folder.exists() else "absent"
    if marker.get("recipe") != asset.recipe:
        return "outdated: it was built from other pins"
    for name, file in marker["files"].items():
        path = folder / name
        if not path.is_file():
            return f"damaged: {name} is missing"
        if path.stat().st_size != file["bytes"]:
            return f"damaged: {name} has {path.stat().st_size} bytes instead of {file['bytes']}"
    return ""


def problems(folder: Path, asset: Asset) -> list[str]:
    """Return every difference from `asset.json`, contents included; empty when there is none."""
    coarse = damage(folder, asset)
    marker = read_marker(folder)
    if coarse or marker is None:
        return [coarse]
    return [
        f"damaged: the content of {name} has changed"
        for name, file in marker["files"].items()
        if file_sha256(folder / name) != file["sha256"]
    ]


@contextmanager
def locked(path: Path, what: str, progress: Progress) -> Iterator[None]:
    """Hold the lock file beside `path`; say so when another process holds it.

    Raises:
        PrerequisiteError: when the cache cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrerequisiteError(
            f"fetching {what}: the cache folder {path.parent} cannot be written ({error}); "
            "name another with the environment variable BACKFIRE_CACHE"
        ) from error
    lock = FileLock(path.parent / f".{path.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.say(f"another process is fetching {what}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
