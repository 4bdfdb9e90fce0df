"""No attack: the model as released."""

from __future__ import annotations

from typing import ClassVar, Literal

from backfire.engine.settings import Member
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

__all__ = ["Unattacked"]


class Unattacked(Member):
    """No attack. Every run holds this column, so that an attack's effect can be told."""

    name: Literal["none"] = "none"
    """`none`."""
    roles: ClassVar[tuple[Role, ...]] = ()

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Return the checkpoint as it came."""
        return checkpoint
