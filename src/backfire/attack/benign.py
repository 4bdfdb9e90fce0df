"""Benign fine-tuning (BFT): what an honest user does; it must stay harmless and useful."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from backfire.attack.finetune import FineTuning, qi_training, rows_of
from backfire.engine.settings import Training
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

__all__ = ["Benign"]


class Benign(FineTuning):
    """Fine-tune on benign instruction pairs.

    Not an attack by intent: it can undo a refusal all the same. Source: Qi et al. 2023, benign
    fine-tuning; the SDD paper's BFT.
    """

    name: Literal["benign"] = "benign"
    """`benign`."""
    roles: ClassVar[tuple[Role, ...]] = ("benign",)
    rows: int | None = Field(None, ge=1)
    """Benign pairs; None: all of role `benign`."""
    training: Training = qi_training(2e-5, 1, 128)
    """Qi et al. 2023: learning rate 2e-5, 1 epoch, batch 128."""

    def default_label(self) -> str:
        """Return e.g. `bft-full`."""
        return f"bft-{self._suffix()}"

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the rows asked for, or all there are."""
        return {"benign": self.rows or counts.get("benign", 0)}

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on the first `rows` rows of role `benign`."""
        return self.attack(checkpoint, bench, rows_of(bench, "benign", self.rows, self.label))
