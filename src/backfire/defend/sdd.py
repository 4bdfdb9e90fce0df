"""Self-Degraded Defense (Chen, Lu, Lin, Zeng; ACL 2025, arXiv 2507.21182).

The model learns to answer harmful prompts with fluent text about something else. The paper's argument:
an attacker's fine-tuning must push such answers down, and loses general ability on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from backfire.data.pairing import REJECT_PREFIX, Pairing
from backfire.engine.rows import irrelevant
from backfire.engine.settings import Trained, Training
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

__all__ = ["SDD"]


class SDD(Trained):
    """Fine-tune on harmful prompts paired with high-quality, irrelevant answers.

    Sees harmful prompts, never harmful answers. One forward and one backward pass a step.
    Source: arXiv 2507.21182, section 3.
    """

    name: Literal["sdd"] = "sdd"
    """`sdd`."""
    roles: ClassVar[tuple[Role, ...]] = ("defense", "pool")
    reject: bool = False
    """SDD_reject: the paper's refusal sentence, a blank line, then the irrelevant answer."""
    pairing: Pairing = Pairing()
    """How prompts are paired with answers of the pool."""
    training: Training = Training(learning_rate=5e-7, steps=500, batch_size=24)
    """Learning rate, steps and batch are the paper's (quoted by TamperBench), with 8,000 pairs, all
    parameters. fp32 weights are kept, because at 5e-7 bf16 weights do not move. Constant schedule and
    length 512 are TamperBench's choices; the paper states none."""

    @model_validator(mode="after")
    def _one_prefix(self) -> Self:
        if self.reject and self.pairing.prefix:
            raise ValueError(
                "`reject` and `pairing.prefix` both say what precedes the answer; give one"
            )
        return self

    def default_label(self) -> str:
        """Return `sdd`, or `sdd-reject`."""
        return "sdd-reject" if self.reject else "sdd"

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the hazardous prompts, at most one pair each."""
        return {"defense": counts.get("defense", 0)}

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Pair, then fine-tune on the pairs; `pairs.parquet` and `pairing.json` say how."""
        from backfire.engine.loop import train

        settings = self.pairing
        if self.reject:
            settings = settings.model_copy(update={"prefix": REJECT_PREFIX})
        rows = irrelevant(bench, settings, self.label)
        return train(checkpoint, bench, self.training, {"train": rows}, self)
