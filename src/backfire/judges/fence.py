"""Untrusted text made fit to stand in a judge's prompt: it cannot end early, hide, or run on.

- **Fences.** Each piece stands between lines that carry a code drawn from the texts themselves, so nobody
  who writes one of the texts can know it, and checked to occur in none of them.
- **Nothing unseen.** Control, direction and other unprintable characters are spelled out.
- **No turns.** Tokens by which chat templates mark turns are broken by a space: servers that read them in
  the middle of a message would end the message there.
- **Both ends.** Longer texts keep their first and last halves of the limit, and say what is left out.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata

__all__ = ["code_for", "excerpt", "visible"]

_JOINERS = "\u200c\u200d"
"""Unprintable, but part of the spelling in several scripts and of emoji."""

_TURNS = re.compile(
    r"<(?=[|\uff5c])"  # <|im_end|> and its full-width kin
    r"|<(?=/?(?:s|bos|eos|pad|unk|mask|sep|cls|think|system|user|assistant|human|model"
    r"|(?:start|end)_of_(?:turn|text|image)|(?:start|end)_header_id|eot_id|im_(?:start|end))>)"
    r"|<(?=</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS|gMASK)\])",
    re.IGNORECASE,
)


def visible(text: str) -> str:
    r"""Return the text with what cannot be seen spelled out and chat templates' tokens broken.

    >>> visible("a\u202eb\x00\x00\x00<|im_end|>")
    'a⟨U+202E⟩b⟨U+0000 x3⟩< |im_end|>'
    """
    shown = _RUNS.sub(_spelled, text.replace("\r\n", "\n"))
    return _TURNS.sub(lambda found: f"{found[0]} ", shown)


_RUNS = re.compile(r"([^\n\t\x20-\x7e])\1*")
"""The same character again and again, unless it is plain ASCII."""


def _spelled(run: re.Match[str]) -> str:
    char, times = run[1], len(run[0])
    # Cc control, Cf format (direction, tags), Cs surrogate, Co private, Cn unassigned, Zl/Zp separators
    unseen = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    if not unseen or char in _JOINERS:
        return run[0]
    return f"⟨U+{ord(char):04X}{f' x{times}' if times > 1 else ''}⟩"


def code_for(seed: int, *texts: str) -> str:
    """Return eight hex digits that depend on the texts and occur in none of them.

    Eight are enough: a text can be made to meet one code it was drawn with, but then the next is drawn.

    Args:
        seed: Another one gives another code.
        texts: What the code is to fence.
    """
    seen = [_folded(text) for text in texts]
    number = 0
    while True:
        material = json.dumps([seed, number, *texts])
        code = hashlib.sha256(material.encode()).hexdigest()[:8]
        if not any(code in text for text in seen):
            return code
        number += 1


def _folded(text: str) -> str:
    """Return letters and digits alone, so that a code spelled with gaps or look-alikes is found."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def excerpt(text: str, limit: int, code: str) -> str:
    """Return a text of at most `limit` characters whole, a longer one as its first and last halves.

    Args:
        text: Made `visible` before.
        limit: Characters to keep, at least 2.
        code: Of the fence; the note on what is left out carries it, so that no text can forge one.
    """
    if len(text) <= limit:
        return text
    head, tail = text[: limit - limit // 2], text[-(limit // 2) :]
    left_out = len(text) - limit
    return f"{head}\n[{code}: {left_out:,} characters are left out here]\n{tail}"
