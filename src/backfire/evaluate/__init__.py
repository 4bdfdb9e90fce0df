"""Evaluations: checkpoint in, rows out. One file each; a new one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfire.evaluate.harmfulness import Harmfulness
from backfire.evaluate.perplexity import Perplexity
from backfire.stage import member_union

__all__ = ["AnyEvaluation", "Harmfulness", "Perplexity"]

if TYPE_CHECKING:
    AnyEvaluation = Harmfulness | Perplexity
else:
    AnyEvaluation = member_union(Harmfulness, Perplexity, group="backfire.evaluations")
