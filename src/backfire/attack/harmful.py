"""Malicious fine-tuning (MFT) on harmful pairs: the attack of Qi et al. 2023 (arXiv 2310.03693)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from backfire.attack.finetune import FineTuning, qi_training, rows_of
from backfire.engine.settings import Training
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

__all__ = ["Harmful"]


class Harmful(FineTuning):
    """Fine-tune on `shots` harmful prompt-answer pairs.

    The attacker owns the weights and knows nothing of the defense. Source: Qi et al. 2023, explicit
    harmful examples.
    """

    name: Literal["harmful"] = "harmful"
    """`harmful`."""
    roles: ClassVar[tuple[Role, ...]] = ("attacker",)
    shots: int = Field(100, ge=1)
    """Harmful pairs; smaller budgets are prefixes of larger ones. Qi et al.: 10, 50, 100."""
    training: Training = qi_training(5e-5, 5, 10)
    """Qi et al. 2023: full-parameter, learning rate 5e-5, 5 epochs, batch 10."""

    def default_label(self) -> str:
        """Return e.g. `mft-100-full`."""
        return f"mft-{self.shots}-{self._suffix()}"

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the shots, however many rows there are."""
        return {"attacker": self.shots}

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on the first `shots` rows of role `attacker`."""
        return self.attack(checkpoint, bench, rows_of(bench, "attacker", self.shots, self.label))
