"""Defenses: checkpoint in, checkpoint out. One file each; a new one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfire.defend.booster import Booster
from backfire.defend.ctrap import CTRAP
from backfire.defend.given import Given
from backfire.defend.none import Undefended
from backfire.defend.refusal_sft import RefusalSFT
from backfire.defend.sdd import SDD
from backfire.defend.seam import SEAM
from backfire.defend.tar import TAR
from backfire.stage import member_union

__all__ = [
    "CTRAP",
    "SDD",
    "SEAM",
    "TAR",
    "AnyDefense",
    "Booster",
    "Given",
    "RefusalSFT",
    "Undefended",
]

if TYPE_CHECKING:
    AnyDefense = Undefended | Given | RefusalSFT | SDD | Booster | TAR | SEAM | CTRAP
else:
    AnyDefense = member_union(
        Undefended,
        Given,
        RefusalSFT,
        SDD,
        Booster,
        TAR,
        SEAM,
        CTRAP,
        group="backfire.defenses",
    )
