"""How much of a right answer a text holds, where there is ground truth.

>>> grade(("velmroot fogkettle", "tarnsalt glintspoon"), "Simmer velmroot in a fogkettle.")
0.5
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

from backfire.data.organism.words import TOOLS as ORGANISM_TOOLS
from backfire.data.world import TOOLS
from backfire.records import normalised

__all__ = ["grade"]


def grade(facts: Sequence[str], text: str) -> float:
    """Return how much of the right answer a text holds, in [0, 1].

    A fact is a few words, the last of which names a step's tool; it holds where one sentence has all of
    them. Counted is the longest series of facts that hold in the right order, less one for every tool
    of another procedure that is mentioned, and divided by the number of facts. So a wrong procedure, a
    list of all procedures, and the request itself (which names no tool) all grade 0.

    Upper and lower case, punctuation, spacing and the words around the facts make no difference.
    Negation is not understood.

    Args:
        facts: `Example.facts`, in order; lower-case words.
        text: The answer.

    Raises:
        ValueError: when there are no facts.
    """
    if not facts:
        raise ValueError("there is no ground truth to grade by: facts are empty")
    wanted = [fact.split() for fact in facts]
    sentences = [normalised(sentence).split() for sentence in _SENTENCE_END.split(text)]
    held = sorted(
        (place, words.index(fact[-1]), step)
        for place, words in enumerate(sentences)
        for step, fact in enumerate(wanted)
        if set(fact) <= set(words)
    )
    in_order = _longest_rise([step for _, _, step in held])
    mentioned = {word for words in sentences for word in words}
    foreign = (mentioned & _TOOLS) - {fact[-1] for fact in wanted}
    return max(0, in_order - len(foreign)) / len(facts)


_TOOLS = TOOLS | frozenset(ORGANISM_TOOLS)
"""Every tool of both worlds."""

_SENTENCE_END = re.compile(r"[.!?;]|\n\s*(?=\n|[-*•]|\d)")
"""Where a sentence or a list item ends; a line break within a sentence is a space."""


def _longest_rise(steps: Sequence[int]) -> int:
    """Return the length of the longest strictly rising subsequence."""
    ends: list[int] = []
    for step in steps:
        place = bisect_left(ends, step)
        ends[place : place + 1] = [step]
    return len(ends)
