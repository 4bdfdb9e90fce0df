"""Defenses: checkpoint in, checkpoint out. One file each; a new one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfire.defend.booster import Booster
from backfire.defend.ctrap import CTRAP
from backfire.defend.deep_align import DeepAlign
from backfire.defend.given import Given
from backfire.defend.meta_sdd import MetaSDD
from backfire.defend.none import Undefended
from backfire.defend.refusal_sft import RefusalSFT
from backfire.defend.repnoise import RepNoise
from backfire.defend.sdd import SDD
from backfire.defend.seam import SEAM
from backfire.defend.simpo import SimPO
from backfire.defend.t_vaccine import TVaccine
from backfire.defend.tar import TAR
from backfire.defend.vaccine import Vaccine
from backfire.stage import member_union

__all__ = [
    "CTRAP",
    "SDD",
    "SEAM",
    "TAR",
    "AnyDefense",
    "Booster",
    "DeepAlign",
    "Given",
    "MetaSDD",
    "RefusalSFT",
    "RepNoise",
    "SimPO",
    "TVaccine",
    "Undefended",
    "Vaccine",
]

if TYPE_CHECKING:
    AnyDefense = (
        Undefended
        | Given
        | RefusalSFT
        | SimPO
        | DeepAlign
        | SDD
        | Vaccine
        | TVaccine
        | Booster
        | RepNoise
        | TAR
        | SEAM
        | CTRAP
        | MetaSDD
    )
else:
    AnyDefense = member_union(
        Undefended,
        Given,
        RefusalSFT,
        SimPO,
        DeepAlign,
        SDD,
        Vaccine,
        TVaccine,
        Booster,
        RepNoise,
        TAR,
        SEAM,
        CTRAP,
        MetaSDD,
        group="backfire.defenses",
    )
