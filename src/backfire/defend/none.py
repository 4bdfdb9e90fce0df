"""The undefended control: the model as it is."""

from __future__ import annotations

from typing import ClassVar, Literal

from backfire.engine.settings import Member
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

__all__ = ["Undefended"]


class Undefended(Member):
    """No defense. Every run holds this row, from the same code, data and seed as the others."""

    name: Literal["none"] = "none"
    """`none`."""
    roles: ClassVar[tuple[Role, ...]] = ()

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Return the checkpoint as it came."""
        return checkpoint
