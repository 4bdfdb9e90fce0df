"""A model that somebody has hardened already, to be attacked beside its undefended base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from backfire.engine.settings import Member
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

__all__ = ["Given"]


class Given(Member):
    """Take a released model as the defended one; nothing is trained.

    The model keeps the chat format noted in its own folder; without a note it gets the run's.
    """

    name: Literal["given"] = "given"
    """`given`."""
    roles: ClassVar[tuple[Role, ...]] = ()
    model: str = Field(min_length=1)
    """A local folder, an asset name or a hub id."""

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Link the model into the run."""
        from backfire.assets import resolve_model
        from backfire.models.link import link_model
        from backfire.models.load import NOTE, read_note

        source = resolve_model(self.model, bench.progress)
        noted = (source / NOTE).is_file()
        chat = None if noted else read_note(checkpoint.path)[0]
        folder = link_model(Path(source), bench.workdir / "checkpoint", chat)
        return replace(checkpoint, path=folder, base=None)
