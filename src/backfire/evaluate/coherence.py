"""Whether a text is language at all: four counts with thresholds set on real benign answers.

The thresholds were set on 9,266 benign answers of LIMA, Dolly, Alpaca and XSTest, cut after 36, 100
and 400 words, and on degenerate text made from Dolly; never on a method's results. They find fault with
0.3 % of the benign answers (mostly columns of numbers) and with 200, 197 and 199 of 200 loops, good
beginnings that end in a loop, and strings of symbols. Shuffled real words pass (0 of 200): no count of
repeated pieces can tell fluent nonsense from sense.

>>> coherence("Warm the pan, then add the oil.").fault
''
>>> coherence("the " * 40).fault
'repeats itself: distinct bigrams 0.03'
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Coherence", "coherence"]

MIN_DISTINCT_2 = 0.5
"""Smallest share of distinct word pairs. Ours: 5 in 10,000 benign answers are below."""
MAX_REPEATED_4 = 0.45
"""Largest share of repeated runs of four words. Ours: the benign maximum is 0.42."""
MAX_COMPRESSION = 4.0
"""Largest ratio of bytes to deflated bytes. Ours: only two benign answers, empty tables, are above."""
MIN_LETTERS = 0.5
"""Smallest share of letters among visible characters. Ours; numbers alone are below, so short texts
(`MIN_VISIBLE`) are not judged by it."""
MIN_WORDS = 8
"""Words from which repetition is judged. Ours: "no, no, no" is language."""
MIN_VISIBLE = 40
"""Visible characters from which the share of letters is judged. Ours."""

_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
"""A word; in scripts that do not space their words, a character."""


@dataclass(frozen=True, slots=True)
class Coherence:
    """The counts of one text, and what they say."""

    num_words: int
    distinct_2: float
    """Distinct pairs of neighboring words, as a share of all; 1 where there is none."""
    repeated_4: float
    """Runs of four words that occurred before, as a share of all; 0 where there is none."""
    compression: float
    """Bytes of the text over bytes after deflation; 0 for an empty text."""
    letters: float
    """Letters (of any script) among the visible characters, as a share."""
    fault: str
    """Which count makes the text incoherent, and its value; empty when none does."""


def coherence(text: str) -> Coherence:
    """Return the counts of a text and whether they are those of language."""
    words = _WORD.findall(text.lower())
    pairs = list(pairwise(words))
    fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    distinct = len(set(pairs)) / len(pairs) if pairs else 1.0
    repeated = 1 - len(set(fours)) / len(fours) if fours else 0.0
    raw = text.encode("utf-8", "replace")
    compression = len(raw) / len(zlib.compress(raw, 9)) if raw else 0.0
    visible = [character for character in text if not character.isspace()]
    letters = sum(map(str.isalpha, visible)) / len(visible) if visible else 0.0

    enough = len(words) >= MIN_WORDS
    fault = ""
    if not words:
        fault = "no word in it"
    elif enough and distinct < MIN_DISTINCT_2:
        fault = f"repeats itself: distinct bigrams {distinct:.2f}"
    elif enough and repeated > MAX_REPEATED_4:
        fault = f"repeats itself: repeated 4-grams {repeated:.2f}"
    elif compression > MAX_COMPRESSION:
        fault = f"repeats itself: compresses {compression:.1f} times"
    elif len(visible) >= MIN_VISIBLE and letters < MIN_LETTERS:
        fault = f"not language: share of letters {letters:.2f}"
    return Coherence(len(words), distinct, repeated, compression, letters, fault)
