"""From the names in a run file to a model folder and rows, whose content keys are taken only once.

Hashing a large model or reading a data set takes long; both are done once and remembered under a
fingerprint of the settings and of the files' sizes and times.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from backfire.data import DataSettings, load_roles, manifest
from backfire.data.chat import ChatFormat
from backfire.data.splits import overlaps
from backfire.engine.settings import Member
from backfire.errors import DataError
from backfire.models.link import link_model
from backfire.models.load import NOTE
from backfire.progress import Progress
from backfire.records import Checkpoint, Example, Role
from backfire.store import StageFolder, content_key, folder_key

__all__ = ["TINY", "Rows", "files_in", "fingerprint", "prepare_model", "without_paths"]

_NOT_THE_ATTACKERS: tuple[Role, ...] = ("evaluation", "probe", "defense", "defender_harm")
"""Roles whose rows no attack may bring along."""

TINY = "tiny:"
"""Prefix of the specs of small random models: `tiny:llama`."""


def prepare_model(
    spec: str,
    chat: ChatFormat,
    stages: Path,
    progress: Progress,
    *,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Return the model a run starts from, as a folder that carries the run's chat format.

    The folder links to the model's files; they are neither copied nor changed.

    Args:
        spec: A folder, an asset name, a hub id, or `tiny:<architecture>`.
        chat: The run's chat format, noted beside the weights for whoever loads the folder.
        stages: The run's folder of stages.
        progress: Where downloads report.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        CheckpointError: when the folder is no model.
        ConfigError, PrerequisiteError: when the name is unknown or cannot be fetched.
    """
    source = _source(spec, stages, progress)
    # A hardened model's own note keeps its chat format unless the run names another.
    noted = chat if chat != ChatFormat() or not (source / NOTE).is_file() else None
    folder = StageFolder(stages, "model", content_key(fingerprint(source), noted))
    with folder.open() as workdir:
        done = folder.done()
        if done is None:
            started = time.time()
            linked = link_model(source, workdir / "checkpoint", noted)
            with progress.task(f"hash {spec}"):
                done = folder.finish(started, content=folder_key(linked), model=spec)
    return Checkpoint(
        folder.path / "checkpoint", str(done["content"]), trust_remote_code=trust_remote_code
    )


def _source(spec: str, stages: Path, progress: Progress) -> Path:
    if not spec.startswith(TINY):
        from backfire.assets import resolve_model

        return resolve_model(spec, progress)
    from backfire.models.tiny import save_tiny

    name = spec.removeprefix(TINY)
    folder = StageFolder(stages, "tiny", content_key(name))
    with folder.open() as workdir:
        if folder.done() is None:
            started = time.time()
            save_tiny(workdir / "model", name)
            folder.finish(started, model=spec)
    return folder.path / "model"


def fingerprint(path: Path) -> list[Any]:
    """Return names, sizes and times of a file or of a folder's files: equal while nothing changed."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [[str(f.relative_to(path)), (s := f.stat()).st_size, s.st_mtime_ns] for f in files]


class Rows:
    """The rows of a run by role: their keys at once, the rows themselves when someone needs them."""

    def __init__(self, settings: DataSettings, stages: Path, progress: Progress) -> None:
        """Read the rows unless the same settings and files were read before.

        Raises:
            DataError: when a source is missing, unreadable or empty.
        """
        self._settings, self._progress = settings, progress
        self._checked: set[Role] = set()
        local = {p: fingerprint(Path(p)) for p in files_in(settings.model_dump(mode="json"))}
        folder = StageFolder(stages, "data", content_key(settings, local))
        with folder.open():
            done = folder.done()
            if done is None:
                started = time.time()
                done = folder.finish(started, roles=manifest(self.all))
        self.roles: Mapping[str, Mapping[str, Any]] = done["roles"]
        """Of every role: content key, rows, sources, categories (see `backfire.data.manifest`)."""

    @cached_property
    def all(self) -> Mapping[Role, Sequence[Example]]:
        """Return every role's rows."""
        # The split belongs to the question, not to the repetition: it is the same for all seeds.
        return load_roles(self._settings, 0, self._progress)

    @property
    def keys(self) -> dict[str, str]:
        """Return the content key of each role's rows."""
        return {role: str(about["key"]) for role, about in self.roles.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of rows of each role."""
        return {role: int(about["rows"]) for role, about in self.roles.items()}

    def require(self, members: Sequence[Any]) -> None:
        """Check that every member finds the rows it needs, before anything is trained.

        Raises:
            DataError: naming each member that lacks rows, and how many it needs.
        """
        lacking = []
        for member in members:
            needs = member.rows_used(self.counts) if isinstance(member, Member) else {}
            for role in member.roles:
                need, have = max(1, needs.get(role, 1)), self.counts.get(role, 0)
                if have < need:
                    who = getattr(member, "label", member.name)
                    lacking.append(f"{who} needs {need} rows of role `{role}`, there are {have}")
        if lacking:
            listed = "\n".join(f"  {line}" for line in dict.fromkeys(lacking))
            raise DataError(
                f"preparing the rows: there are too few\n{listed}\nraise the counts or name further "
                "sources under `data` (`backfire list sources`)"
            )

    def refuse_overlap(self, members: Iterable[Any]) -> None:
        """Check that no member brings rows that are asked or defended with; no two roles share any.

        Raises:
            DataError: naming the rows on both sides, by prompt or entity.
        """
        found = []
        for member in members:
            own = member.own_rows() if isinstance(member, Member) else ()
            if not own:
                continue
            held = {role: self.all.get(role, ()) for role in _NOT_THE_ATTACKERS}
            found += [
                f"{member.label}: its row {mine.id} and row {other.id} of role `{role}` share the {what}"
                for mine, role, other, what in overlaps(own, held)
            ]
        if found:
            lines = list(dict.fromkeys(found))
            listed = "\n".join(f"  {line}" for line in lines[:20])
            more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
            raise DataError(
                f"preparing the rows: data that attacks bring overlaps the run's own\n{listed}{more}\n"
                "its result would be leakage; remove these rows from the attack's file, or draw other ones "
                "under `data`"
            )

    def read_by(self, member: Any) -> dict[Role, int]:
        """Return how many rows of each role a member sees."""
        used = member.rows_used(self.counts) if isinstance(member, Member) else {}
        return {role: used.get(role, self.counts.get(role, 0)) for role in member.roles}

    def read_by_all(self, members: Sequence[Any]) -> dict[Role, int]:
        """Return how many rows of each role several members see, who read the same ones first."""
        found: dict[Role, int] = {}
        for member in members:
            for role, rows in self.read_by(member).items():
                found[role] = max(found.get(role, 0), rows)
        return found

    def of(self, roles: Sequence[Role], who: str) -> dict[Role, Sequence[Example]]:
        """Return the rows a member may read.

        Raises:
            DataError: when a source gives other rows than when its key was taken.
        """
        wanted = {role: self.all.get(role, ()) for role in roles}
        for role in wanted.keys() - self._checked:
            rows = wanted[role]
            if rows and content_key(list(rows)) != self.keys.get(role):
                raise DataError(
                    f"reading the {role!r} rows for {who}: they are not those the run began with; "
                    "restore the source, or start over with --fresh"
                )
            self._checked.add(role)
        return wanted


def without_paths(value: Any) -> Any:
    """Return a settings tree in which existing files and folders are named without their place."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return Path(value).name if isinstance(value, str) and files_in(value) else value


def files_in(value: Any) -> list[str]:
    """Return the strings of a settings tree that name existing files or folders."""
    if isinstance(value, dict):
        return [name for item in value.values() for name in files_in(item)]
    if isinstance(value, list):
        return [name for item in value for name in files_in(item)]
    if not isinstance(value, str) or not 0 < len(value) < 250:
        return []
    path = Path(value)
    return [value] if path.is_file() or (os.sep in value and path.is_dir()) else []
