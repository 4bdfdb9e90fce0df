"""Mixed fine-tuning: benign data with a share of harmful pairs, as a careless service would accept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from backfire.attack.finetune import FineTuning, mix_of
from backfire.engine.settings import Training
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

__all__ = ["Mixed"]


class Mixed(FineTuning):
    """Fine-tune on `total` rows, of which a share `poison` is harmful.

    Source: the two-stage protocol of Vaccine (arXiv 2402.01109) and its successors.
    """

    name: Literal["mixed"] = "mixed"
    """`mixed`."""
    roles: ClassVar[tuple[Role, ...]] = ("attacker", "benign")
    total: int = Field(1000, ge=1)
    """Rows in all. Vaccine: 1,000."""
    poison: float = Field(0.1, ge=0, le=1)
    """Share of harmful rows, rounded down to whole rows. Vaccine: 0.1."""
    training: Training = Training(
        learning_rate=1e-5, epochs=20, batch_size=5, schedule="cosine", warmup=0.1, weight_decay=0.1
    )
    """Vaccine's fine-tuning stage: rate 1e-5, 20 epochs, batch 5, decay 0.1, cosine, warm-up 0.1."""

    def default_label(self) -> str:
        """Return e.g. `mix-0.1-full`."""
        return f"mix-{self.poison:g}-{self._suffix()}"

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the harmful and the benign rows of the mix."""
        harmful = int(self.poison * self.total)
        return {"attacker": harmful, "benign": self.total - harmful}

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on a seeded mix."""
        return self.attack(checkpoint, bench, mix_of(bench, self.rows_used({}), self.label))
