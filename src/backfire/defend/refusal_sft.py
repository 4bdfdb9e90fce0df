"""Plain safety training: refuse hazards, keep helping. The alignment to break, and a fair control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from backfire.engine.rows import alignment, num_helpful
from backfire.engine.settings import Trained, Training
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

__all__ = ["RefusalSFT"]


class RefusalSFT(Trained):
    """Fine-tune on refusals of harmful prompts, mixed with helpful answers to benign ones.

    Sees harmful prompts, never harmful answers. One forward and one backward pass a step.
    """

    name: Literal["refusal_sft"] = "refusal_sft"
    """`refusal_sft`."""
    roles: ClassVar[tuple[Role, ...]] = ("defense", "pool")
    benign_share: float = Field(0.3, ge=0, lt=1)
    """Share of helpful benign rows, so that the model does not learn to refuse everything. Ours."""
    max_hazards: int | None = Field(None, ge=1)
    """Hazardous rows used; None: all of role `defense`."""
    training: Training = Training(learning_rate=2e-5, epochs=1, batch_size=8)
    """Ours: small supervised fine-tuning at the usual rate for full-parameter training."""

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the refusals and the helpful rows of the mix."""
        hazards = min(counts.get("defense", 0), self.max_hazards or counts.get("defense", 0))
        return {"defense": hazards, "pool": num_helpful(hazards, self.benign_share)}

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on a seeded mix of refusals and helpful answers."""
        from backfire.engine.loop import train

        rows = alignment(bench, self.benign_share, self.label, self.max_hazards)
        return train(checkpoint, bench, self.training, {"train": rows}, self)
