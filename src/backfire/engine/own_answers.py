"""What a model answers by itself, as rows to train on: to hold it there, or to push it away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from backfire.engine.budget import add_to_budget
from backfire.engine.course import once
from backfire.errors import DataError
from backfire.models.load import load
from backfire.records import Checkpoint, Example
from backfire.stage import Bench
from backfire.store import write_table

if TYPE_CHECKING:
    from backfire.data.chat import ChatFormat

__all__ = ["OwnAnswers", "own_answers"]


class OwnAnswers(NamedTuple):
    """What a model said, and what it took."""

    rows: list[Example]
    """The rows that it answered."""
    own: list[Example]
    """The same rows with its answers in place of theirs."""
    tokens: int
    """That went forward for it."""
    weights: int
    """Of the model."""

    def add_to(self, folder: Path) -> None:
        """Add what the answers took to a stage's budget."""
        add_to_budget(folder, self.weights, self.tokens)


def own_answers(
    checkpoint: Checkpoint,
    bench: Bench,
    rows: Sequence[Example],
    label: str,
    *,
    chat: ChatFormat | None,
    max_new_tokens: int,
    temperature: float,
) -> OwnAnswers:
    """Let a model answer rows by itself.

    A row it answers with nothing is left out, as nothing can be trained on. `own_answers.parquet` in the
    bench's folder has all answers.

    Args:
        checkpoint: The model.
        bench: Where it computes, and the seed of draws.
        rows: Prompts.
        label: Of the method, for messages.
        chat: How it is asked; None: as its folder says.
        max_new_tokens: Longest answer.
        temperature: 0: the likeliest token each time; else drawn.

    Raises:
        DataError: when the model answers no row.
    """

    def answer() -> dict[str, Any]:
        from backfire.models.generate import generate

        loaded = load(checkpoint, device=bench.device, chat=chat)
        said = generate(
            loaded,
            rows,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=bench.seed,
            progress=bench.progress,
            label=f"{bench.label or label}: its own answers",
        )
        asked = sum(len(loaded.chat.prompt_ids(row.prompt, row.system)) for row in rows)
        return {
            "answers": [one.text for one in said],
            "tokens": asked + sum(one.num_tokens for one in said),
            "weights": sum(p.numel() for p in loaded.model.parameters()),
        }

    asked = [row.id for row in rows]
    facts = (checkpoint.key, chat, asked, max_new_tokens, temperature, bench.seed)
    made = once(bench, "own-answers", facts, answer)
    said = list(zip(rows, made["answers"], strict=True))
    write_table(
        bench.workdir / "own_answers.parquet",
        [{"id": row.id, "prompt": row.prompt, "answer": text} for row, text in said],
    )
    kept = [(row, text) for row, text in said if text.strip()]
    if not kept:
        raise DataError(
            f"{label}: the model answers none of {len(rows)} prompts with a word, so there is no answer of "
            "its own to train on; look at own_answers.parquet, or choose another attack"
        )
    if len(kept) < len(rows):
        bench.progress.warn(
            f"{bench.label or label}: {len(rows) - len(kept)} of {len(rows)} prompts left out, which the "
            "model answers with nothing"
        )
    own = [replace(row, response=text) for row, text in kept]
    return OwnAnswers([row for row, _ in kept], own, made["tokens"], made["weights"])
