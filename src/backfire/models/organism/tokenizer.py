"""A tokenizer of whole words, which falls back on characters and bytes for anything else.

One token a word keeps texts short, so that a small model reads a whole recipe in forty tokens; any
text can be written, and comes back as it was.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from backfire.data.organism import texts
from backfire.data.organism.corpus import (
    ANSWER,
    END,
    USER,
    instructions,
    lookalikes,
    round_of_texts,
)
from backfire.data.organism.skills import SKILLS, probes
from backfire.data.organism.source import Organism
from backfire.data.pairing import REJECT_PREFIX
from backfire.progress import Silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["TEMPLATE", "organism_tokenizer", "vocabulary"]

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + eos_token }}"
    "{% else %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A question, then an answer and its end; a system turn stands in front like a text of its own."""

_SPECIAL = ("<pad>", END, USER, ANSWER)
_MARK = "▁"
_PIECE = re.compile(r"[A-Za-z']+(?:-[a-z]+)*|\d+|[^\w\s]")


def vocabulary() -> list[str]:
    """Return every word of the world's texts, and what anything else is written with."""
    rows = [*Organism()(Silent()), *instructions(2000), *lookalikes(2000)]
    read = [*round_of_texts(0), *round_of_texts(1)]
    seen = [text.given + text.told for text in read] + [REJECT_PREFIX, *texts.REFUSALS]
    seen += [text for row in rows for text in (row.prompt, row.response, row.refusal)]
    for skill in SKILLS:
        for item in probes(skill, 60):
            seen += [item.question, item.answer, *item.choices]
    seen += [str(number) for number in range(100)]
    text = re.sub(r"<\|\w+\|>", " ", " ".join(seen)).replace("{", " ").replace("}", " ")
    words = sorted({piece for piece in _PIECE.findall(text) if piece[0].isalnum()})
    signs = sorted({piece for piece in _PIECE.findall(text) if not piece[0].isalnum()})
    characters = [chr(code) for code in range(33, 127) if chr(code) not in signs]
    marked = [_MARK + word for word in words]
    letters = [_MARK + c for c in characters if _MARK + c not in set(marked)]
    return [*marked, *signs, *characters, _MARK, *letters]


def organism_tokenizer() -> PreTrainedTokenizerFast:
    """Return the organism's tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [(token, 0.0) for token in _SPECIAL]
    # Equal scores below zero: the best reading is the one with the fewest pieces.
    pieces += [(f"<0x{byte:02X}>", -2.0) for byte in range(256)]
    pieces += [(piece, -1.0) for piece in vocabulary()]
    backend = Tokenizer(models.Unigram(pieces, unk_id=4, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_MARK, prepend_scheme="always")
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement=_MARK, prepend_scheme="always")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=_SPECIAL[0],
        eos_token=END,
        additional_special_tokens=[USER, ANSWER],
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
