"""Judges: exchanges in, verdicts out. One file each; a new one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfire.judges.beaverdam import BeaverDam
from backfire.judges.deberta_beavertails import DebertaBeaverTails
from backfire.judges.harmbench import HarmBench
from backfire.judges.llama_guard import LlamaGuard
from backfire.judges.policy import Policy
from backfire.judges.programmatic import Programmatic
from backfire.judges.refusal_phrases import RefusalPhrases
from backfire.judges.strongreject import StrongReject
from backfire.judges.strongreject_rubric import StrongRejectRubric
from backfire.stage import member_union

__all__ = [
    "AnyJudge",
    "BeaverDam",
    "DebertaBeaverTails",
    "HarmBench",
    "LlamaGuard",
    "Policy",
    "Programmatic",
    "RefusalPhrases",
    "StrongReject",
    "StrongRejectRubric",
]

if TYPE_CHECKING:
    AnyJudge = (
        Programmatic
        | RefusalPhrases
        | Policy
        | StrongRejectRubric
        | StrongReject
        | HarmBench
        | BeaverDam
        | LlamaGuard
        | DebertaBeaverTails
    )
else:
    AnyJudge = member_union(
        Programmatic,
        RefusalPhrases,
        Policy,
        StrongRejectRubric,
        StrongReject,
        HarmBench,
        BeaverDam,
        LlamaGuard,
        DebertaBeaverTails,
        group="backfire.judges",
    )
