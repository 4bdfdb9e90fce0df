"""Text that came from a model, a judge or a user, made safe to look at.

HTML escaping is the template engine's work; this is the rest: characters that are not seen but act.
A right-to-left override can make a refusal read like an answer, a control character can end a
terminal's line. They are shown by their code point instead.

>>> inert("safe" + chr(0x202E) + "efas")
'safe⟨U+202E⟩efas'
"""

from __future__ import annotations

import unicodedata
from typing import Any

__all__ = ["inert", "markdown_cell", "spreadsheet_cell"]

_ACTING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories without a glyph of their own: controls, formats (bidi, zero width), surrogates,
private and unassigned code points, line and paragraph separators."""


def inert(text: str, limit: int | None = None) -> str:
    """Return the text with every acting character named instead of obeyed; newline and tab stay.

    Args:
        text: Any text.
        limit: Longest text kept, in characters; what is cut is counted at the end.
    """
    more = 0
    if limit is not None and len(text) > limit:
        more = len(text) - limit
        text = text[:limit]
    if not text.isprintable():
        text = "".join(_shown(character) for character in text)
    return f"{text} … ({more:,} more characters)" if more else text


def _shown(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _ACTING:
        return character
    return f"⟨U+{ord(character):04X}⟩"


def finalized(value: Any) -> Any:
    """Return a template's value with plain text made inert; markup of ours passes (jinja2 `finalize`)."""
    return inert(value) if type(value) is str else value


def markdown_cell(text: str) -> str:
    """Return the text as one Markdown table cell that renders as itself."""
    flat = " ".join(inert(text).split())
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>|#~!" else c for c in flat).replace("&", "&amp;")


def spreadsheet_cell(text: str) -> str:
    """Return the text so that a spreadsheet does not run it as a formula."""
    flat = inert(text)
    return f"'{flat}" if flat[:1] in {"=", "+", "-", "@", "\t"} else flat
