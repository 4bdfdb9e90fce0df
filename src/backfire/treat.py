"""One defense or one attack on one model, without a run file: for publishers and for spot checks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from backfire.attack import AnyAttack
from backfire.attack.courses import courses
from backfire.config import CONTROL
from backfire.data import HAZARD_ROLES, Counts, DataSettings
from backfire.data.chat import ChatFormat
from backfire.defend import AnyDefense
from backfire.errors import ConfigError
from backfire.mistakes import models_in, validated
from backfire.models.load import NOTE
from backfire.pipeline import open_run
from backfire.prepare import Rows, prepare_model, without_paths
from backfire.progress import Progress
from backfire.provenance import TRAINING_LIBRARIES, device_facts, git_state, host_facts, versions
from backfire.records import Checkpoint, Role
from backfire.runfile import Parsed, override
from backfire.stage import Bench, Settings
from backfire.store import (
    StageFolder,
    content_key,
    disk_guard,
    read_json,
    replace_folder,
    write_json,
)

__all__ = ["attack", "harden"]


class Treatment(Settings):
    """What `--set` of `harden` and `attack` can change."""

    model: Annotated[str, Field(min_length=1)]
    """A local folder, an asset name, a hub id, or `tiny:<architecture>`."""
    chat: ChatFormat = ChatFormat()
    """How conversations become text."""
    data: DataSettings = DataSettings()
    """Where the rows of each role come from."""
    seed: int = Field(0, ge=0)
    """Of every random choice."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Ours: no."""


class Hardening(Treatment):
    """A defense on a model."""

    method: AnyDefense
    """The defense and its settings."""


class Attacking(Treatment):
    """An attack on a model."""

    method: AnyAttack
    """The attack and its settings."""


def harden(
    model: str, out: Path, method: str, data: str | None, assignments: Sequence[str], device: str,
    progress: Progress,
) -> Path:  # fmt: skip
    """Write a hardened model to `out` and return the folder; see `_treat`."""
    return _treat(Hardening, model, out, method, data, assignments, device, progress)


def attack(
    model: str, out: Path, method: str, data: str | None, assignments: Sequence[str], device: str,
    progress: Progress,
) -> Path:  # fmt: skip
    """Write an attacked model to `out` and return the folder; see `_treat`."""
    return _treat(Attacking, model, out, method, data, assignments, device, progress)


def _treat(
    kind: type[Hardening] | type[Attacking], model: str, out: Path, method: str,
    data: str | None, assignments: Sequence[str], device: str, progress: Progress,
) -> Path:  # fmt: skip
    """Apply one method and write a folder that plain `transformers` loads.

    Work goes on beside `out`, in a folder whose name ends in `.work`; an interrupted command that is
    given again continues there.

    Args:
        kind: Whose settings these are.
        model: See `Treatment.model`.
        out: The folder to write; it must not exist or be empty.
        method: The member's name.
        data: A file or a source's name, for the first role the method reads; None keeps the defaults.
        assignments: `key.path=value` texts.
        device: Where to compute.
        progress: Where to report.

    Raises:
        ConfigError: for a wrong setting, or an `out` that holds something.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(
            f"writing to {out}: it exists and is not empty; name a new folder with --out"
        )
    roles = _roles(kind, method)
    tree: dict[str, Any] = {"model": model, "method": {"name": method}}
    if data is not None:
        tree["data"] = {"roles": {roles[0]: [_source(data, roles[0])]}, "counts": {roles[0]: None}}
    changed, mistakes = override(tree, assignments)
    job = validated(kind, Parsed(changed), "the settings of the command line", mistakes)
    if job.method.name == CONTROL:
        raise ConfigError(
            f"treating {model}: the method {CONTROL!r} changes nothing; choose another"
        )
    if isinstance(job, Attacking) and len(courses(job.method)) > 1:
        raise ConfigError(
            f"treating {model}: `points` are measured on the way, and this command measures nothing; put "
            "the attack into a run file, or set `method.training.stop` to stop at one point"
        )
    work = out.with_name(f".{out.name}.work")
    with disk_guard(work), open_run(work):
        stages = work / "stages"
        base = prepare_model(
            job.model, job.chat, stages, progress, trust_remote_code=job.trust_remote_code
        )
        rows = Rows(_only(job.data, job.method.roles), stages, progress)
        rows.require([job.method])
        stage = StageFolder(stages, "method", content_key(job, base.key, rows.keys))
        with stage.open() as workdir:
            bench = Bench(
                workdir=workdir,
                seed=job.seed,
                device=device,
                data=rows.of(job.method.roles, job.method.label),
                progress=progress,
                label=job.method.label,
            )
            made = job.method(base, bench)
            _deliver(made, workdir, out, _note(job, rows.roles, device))
    shutil.rmtree(work)
    return out


def _roles(kind: type[Treatment], method: str) -> tuple[Role, ...]:
    """Return the roles a method reads; those of an unknown one are never used."""
    members = models_in(kind.model_fields["method"].annotation)
    found = [m for m in members if m.model_fields["name"].default == method]
    return tuple(getattr(found[0], "roles", ())) or ("defense",) if found else ("defense",)


def _source(data: str, role: Role) -> dict[str, Any]:
    """Return the source that a file or a name on the command line means."""
    if not Path(data).is_file():
        return {"name": data}
    table = {"name": "table", "path": data, "harmful": role in HAZARD_ROLES}
    return table if role == "defense" else table | {"response": "response"}


def _only(settings: DataSettings, roles: Sequence[Role]) -> DataSettings:
    """Return the settings without the roles that nobody will read."""
    unused = {role: 0 for role in Counts.model_fields if role not in roles}
    return settings.model_copy(update={"counts": settings.counts.model_copy(update=unused)})


def _deliver(made: Checkpoint, workdir: Path, out: Path, note: Mapping[str, Any]) -> None:
    """Move the model with its note to `out`; an adapter is merged first, and a link becomes a copy."""
    folder = made.path
    if made.base is not None:
        from backfire.models.load import load, read_note
        from backfire.models.soft import SOFT_FILE

        chat = read_note(folder)[0]
        # The vectors of a soft suffix stay beside the weights.
        plain = load(made, device="cpu", dtype="fp32", chat=chat.model_copy(update={"soft": 0}))
        with replace_folder(workdir / "merged") as merged:
            plain.model.save_pretrained(merged)
            plain.tokenizer.save_pretrained(merged)
            for name in (NOTE, SOFT_FILE) if chat.soft else (NOTE,):
                shutil.copy(folder / name, merged)
        folder = workdir / "merged"
    elif any(path.is_symlink() for path in folder.iterdir()):
        with replace_folder(workdir / "whole") as whole:
            shutil.copytree(folder, whole, dirs_exist_ok=True)
        folder = workdir / "whole"
    write_json(folder / NOTE, read_json(folder / NOTE) | note)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder.replace(out)


def _note(job: Treatment, rows: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return what a reader of the weights should know, without the paths of whoever made them."""
    return {
        "settings": without_paths(job.model_dump(mode="json")),
        "rows": rows,
        "provenance": {
            "versions": versions(TRAINING_LIBRARIES),
            "source": git_state(),
            "host": host_facts(),
            "device": device_facts(device),
        },
    }
