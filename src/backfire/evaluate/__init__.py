"""Evaluations: checkpoint in, rows out. One file each; a new one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfire.evaluate.capability import Capability
from backfire.evaluate.harmfulness import Harmfulness
from backfire.evaluate.perplexity import Perplexity
from backfire.stage import member_union

__all__ = ["AnyEvaluation", "Capability", "Harmfulness", "Perplexity"]

if TYPE_CHECKING:
    AnyEvaluation = Harmfulness | Capability | Perplexity
else:
    AnyEvaluation = member_union(Harmfulness, Capability, Perplexity, group="backfire.evaluations")
