"""Defenses: checkpoint in, checkpoint out. One file each; a new one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfire.defend.given import Given
from backfire.defend.none import Undefended
from backfire.defend.refusal_sft import RefusalSFT
from backfire.defend.sdd import SDD
from backfire.stage import member_union

__all__ = ["SDD", "AnyDefense", "Given", "RefusalSFT", "Undefended"]

if TYPE_CHECKING:
    AnyDefense = Undefended | Given | RefusalSFT | SDD
else:
    AnyDefense = member_union(Undefended, Given, RefusalSFT, SDD, group="backfire.defenses")
