"""Attacks: checkpoint in, checkpoint out. One file each; a new one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfire.attack.asked import Asked
from backfire.attack.benign import Benign
from backfire.attack.harmful import Harmful
from backfire.attack.mixed import Mixed
from backfire.attack.none import Unattacked
from backfire.attack.sequence import AttackSequence
from backfire.stage import member_union

__all__ = ["AnyAttack", "Asked", "AttackSequence", "Benign", "Harmful", "Mixed", "Unattacked"]

if TYPE_CHECKING:
    AnyAttack = Unattacked | Harmful | Benign | Mixed | Asked | AttackSequence
else:
    AnyAttack = member_union(
        Unattacked, Harmful, Benign, Mixed, Asked, AttackSequence, group="backfire.attacks"
    )

# The parts of a sequence are attacks, of which it is one.
AttackSequence.model_rebuild(force=True, _types_namespace={"AnyAttack": AnyAttack})
