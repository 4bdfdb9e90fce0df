"""Attacks: checkpoint in, checkpoint out. One file each; a new one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfire.attack.asked import Asked
from backfire.attack.benign import Benign
from backfire.attack.harmful import Harmful
from backfire.attack.mixed import Mixed
from backfire.attack.none import Unattacked
from backfire.stage import member_union

__all__ = ["AnyAttack", "Asked", "Benign", "Harmful", "Mixed", "Unattacked"]

if TYPE_CHECKING:
    AnyAttack = Unattacked | Harmful | Benign | Mixed | Asked
else:
    AnyAttack = member_union(Unattacked, Harmful, Benign, Mixed, Asked, group="backfire.attacks")
