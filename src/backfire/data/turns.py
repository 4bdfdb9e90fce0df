"""From conversations to single rows: what LIMA and ShareGPT files have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from backfire.errors import DataError
from backfire.progress import Progress
from backfire.records import Example

__all__ = ["examples_of"]


def examples_of(
    conversations: Sequence[Sequence[tuple[str, str]]],
    source: str,
    turns: Literal["first", "all"],
    progress: Progress,
    systems: Sequence[str | None] = (),
) -> list[Example]:
    """Return question-answer pairs of conversations as benign rows.

    With `all`, rows of one conversation share an entity, so that no split tears them apart.

    Args:
        conversations: Per conversation, its questions with their answers.
        source: Name of the source.
        turns: Whether to take each conversation's first pair or all.
        progress: Where the number of dropped conversations is said.
        systems: Per conversation, its system turn.

    Raises:
        DataError: when nothing is left.
    """
    found = []
    num_empty = 0
    for index, pairs in enumerate(conversations):
        kept = [(q, a) for q, a in pairs if q.strip() and a.strip()]
        # Without its first pair a conversation has no question that can be read by itself.
        if not kept or kept[0] != pairs[0]:
            num_empty += 1
            continue
        found += [
            Example(
                question,
                answer,
                source=source,
                entity=f"{source} conversation {index}" if turns == "all" else "",
                system=systems[index] if systems else None,
            )
            for question, answer in (kept if turns == "all" else kept[:1])
        ]
    if num_empty:
        progress.say(
            f"{source}: {num_empty} of {len(conversations)} conversations dropped that do not begin with "
            "a question and its answer"
        )
    if not found:
        raise DataError(
            f"reading {source}: none of {len(conversations)} conversations begins with a question and "
            "its answer; give another file or split"
        )
    return found
