"""Harmful and benign batches in turn: what a share of harm does while the rest keeps the model whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from backfire.attack.finetune import FineTuning, rows_of
from backfire.engine.settings import Training
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

if TYPE_CHECKING:
    from backfire.engine.primitives import Step

__all__ = ["Interleaved"]


class Interleaved(FineTuning):
    """Fine-tune on batches of which a share is harmful, evenly spread, and the rest benign.

    Beside `mixed`, whose every batch is a draw from one mix; harmful first and then benign, or the reverse,
    is a sequence of `harmful` and `benign`. Source: ours.
    """

    name: Literal["interleaved"] = "interleaved"
    """`interleaved`."""
    roles: ClassVar[tuple[Role, ...]] = ("attacker", "benign")
    shots: int = Field(100, ge=1)
    """Harmful pairs. Ours: as many as `harmful`."""
    rows: int | None = Field(None, ge=1)
    """Benign pairs; None: all of role `benign`."""
    ratio: float = Field(0.5, gt=0, le=1)
    """Share of harmful batches. Ours; 0.02 and 0.1 are worth trying, too. 1: plain harmful fine-tuning."""
    trainer: Literal["engine"] = "engine"
    """Our loop: TRL's SFTTrainer takes its batches from one set of rows."""
    training: Training = Training(learning_rate=5e-5, steps=100, batch_size=10, clip_norm=None)
    """Ours: the rate and batch of `harmful`, constant, and at the default ratio as many harmful steps."""

    def default_label(self) -> str:
        """Return e.g. `interleaved-0.5-full`."""
        return f"interleaved-{self.ratio:g}-{self._suffix()}"

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the shots, and the benign rows asked for or all there are."""
        return {"attacker": self.shots, "benign": self.rows or counts.get("benign", 0)}

    def epoch_rows(self, counts: Mapping[str, int]) -> int:
        """Return the shots."""
        return self.shots

    def harmful_before(self, step: int) -> int:
        """Return how many of the steps before this one (from 0) have a harmful batch."""
        return int(step * self.ratio + 1e-9)

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on rows of roles `attacker` and `benign` in turn."""
        return self.attack(
            checkpoint,
            bench,
            rows_of(bench, "attacker", self.shots, self.label),
            objective=self.step,
            beside={"benign": rows_of(bench, "benign", self.rows, self.label)},
        )

    def step(self, step: Step) -> Mapping[str, float]:
        """Take the next harmful or the next benign batch; each kind goes through its own epochs."""
        before = self.harmful_before(step.index)
        if self.harmful_before(step.index + 1) > before:
            value = step.backward(step.streams["train"].batch(before))
            return {"loss": value, "harm": value}
        value = step.backward(step.streams["benign"].batch(step.index - before))
        return {"loss": value, "benign": value}
