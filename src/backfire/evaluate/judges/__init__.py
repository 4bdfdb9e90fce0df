"""Judges: exchanges in, verdicts out. One file each; a new one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfire.evaluate.judges.programmatic import Programmatic
from backfire.evaluate.judges.refusal_phrases import RefusalPhrases
from backfire.stage import member_union

__all__ = ["AnyJudge", "Programmatic", "RefusalPhrases"]

if TYPE_CHECKING:
    AnyJudge = Programmatic | RefusalPhrases
else:
    AnyJudge = member_union(Programmatic, RefusalPhrases, group="backfire.judges")
