"""Judges: exchanges in, verdicts out. One file each; a new one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfire.evaluate.judges.beaverdam import BeaverDam
from backfire.evaluate.judges.deberta_beavertails import DebertaBeaverTails
from backfire.evaluate.judges.harmbench import HarmBench
from backfire.evaluate.judges.llama_guard import LlamaGuard
from backfire.evaluate.judges.policy import Policy
from backfire.evaluate.judges.programmatic import Programmatic
from backfire.evaluate.judges.refusal_phrases import RefusalPhrases
from backfire.evaluate.judges.strongreject import StrongReject
from backfire.evaluate.judges.strongreject_rubric import StrongRejectRubric
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
