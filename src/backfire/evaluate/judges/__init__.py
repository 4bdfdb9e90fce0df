"""Judges: exchanges in, verdicts out. One file each; a new one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfire.evaluate.judges.policy import Policy
from backfire.evaluate.judges.programmatic import Programmatic
from backfire.evaluate.judges.refusal_phrases import RefusalPhrases
from backfire.evaluate.judges.strongreject_rubric import StrongRejectRubric
from backfire.stage import member_union

__all__ = ["AnyJudge", "Policy", "Programmatic", "RefusalPhrases", "StrongRejectRubric"]

if TYPE_CHECKING:
    AnyJudge = Programmatic | RefusalPhrases | Policy | StrongRejectRubric
else:
    AnyJudge = member_union(
        Programmatic, RefusalPhrases, Policy, StrongRejectRubric, group="backfire.judges"
    )
