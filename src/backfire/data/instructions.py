"""Instruction files: what Alpaca and Dolly have in common."""

from __future__ import annotations

from pathlib import Path

from backfire.data.files import read
from backfire.errors import DataError
from backfire.progress import Progress
from backfire.records import Example

__all__ = ["examples_of"]


def examples_of(
    place: Path,
    source: str,
    context: tuple[str, ...],
    answer: tuple[str, ...],
    progress: Progress,
) -> list[Example]:
    """Return instructions, their context below after a blank line, with their answers.

    Args:
        place: A file, or a folder with `train.*`.
        source: Name of the source.
        context: Names the context's column may have; it may be missing.
        answer: Names the answer's column may have.
        progress: Where the number of dropped rows is said.

    Raises:
        DataError: when the file is wrong, or no row has an answer.
    """
    rows = read(place)
    found = []
    for row in rows:
        instruction, below = row.text("instruction"), row.text(*context, default="")
        response = row.text(*answer)
        if instruction.strip() and response.strip():
            prompt = f"{instruction}\n\n{below}" if below.strip() else instruction
            found.append(Example(prompt, response, source=source))
    if len(found) < len(rows):
        progress.say(
            f"{source}: {len(rows) - len(found)} of {len(rows)} rows dropped whose instruction or answer "
            "is empty"
        )
    if not found:
        raise DataError(f"reading {rows[0].path}: no row has both an instruction and an answer")
    return found
