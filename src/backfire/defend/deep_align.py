"""Deep safety alignment (Qi et al. 2024, arXiv 2406.05946): refuse even after a harmful beginning.

    a * E_k[ -log p(r | x, h_1..k) ]  +  (1 - a) * -log p(y | z)

r is the refusal of a harmful prompt x, h its harmful answer, (z, y) a benign pair. With probability one
half k is 0, else uniform on 1 .. min(100, |h|): the model learns to turn back many tokens deep. A
baseline: alignment by data, with plain cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from backfire.engine.rows import paired, rows_of
from backfire.engine.settings import Trained, Training
from backfire.records import Checkpoint, Role
from backfire.seeding import rng
from backfire.stage import Bench

if TYPE_CHECKING:
    from backfire.engine.batching import GlobalBatch
    from backfire.engine.primitives import Step

__all__ = ["DeepAlign"]


class DeepAlign(Trained):
    """Fine-tune on refusals that follow a piece of the harmful answer, and on benign rows.

    Sees harmful prompts with both the harmful answer and the refusal, and benign rows. One forward and
    one backward pass a step over each of the two batches.
    Source: arXiv 2406.05946, section 3; defaults of the official code.
    """

    name: Literal["deep_align"] = "deep_align"
    """`deep_align`."""
    roles: ClassVar[tuple[Role, ...]] = ("defender_harm", "pool")
    prefixed: float = Field(0.5, ge=0, le=1)
    """Share of refusals that follow a harmful beginning. Paper: 0.5."""
    depth: int = Field(100, ge=1)
    """Most tokens of that beginning. Paper: 100."""
    weight: float | None = Field(None, ge=0, le=1)
    """Weight a of the refusals; the benign rows have the rest. None: every token counts alike, as in the
    official code, whose batches of 16 and 64 rows give refusals a fifth of the rows. With this 1 and
    `prefixed` 0: plain fine-tuning on refusals."""
    benign_batch_size: int = Field(64, ge=1)
    """Benign rows a step. Official code: 64."""
    training: Training = Training(
        learning_rate=2e-5, epochs=10, batch_size=16, schedule="linear", max_length=512
    )
    """Official code: all weights, rate 2e-5, linear to 0, no warm-up, 10 epochs of the refusals, batch 16,
    no decay, length 512, clipping 1 (HF's default), no dropout. Its weights are bf16; ours are fp32."""

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return all harmful pairs and all benign rows."""
        return {role: counts.get(role, 0) for role in self.roles}

    def epoch_rows(self, counts: Mapping[str, int]) -> int:
        """Return the number of refusals."""
        return counts.get("defender_harm", 0)

    def passes(self, steps: int) -> tuple[int, int]:
        """Return two of each a step: the refusals and the benign rows."""
        return 2 * steps, 2 * steps

    def rows_a_pass(self, batch: float) -> float:
        """Return the mean of the two batches."""
        return (batch + self.benign_batch_size) / 2

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on refusals with harmful beginnings, and on benign rows."""
        from backfire.engine.loop import train

        return train(
            checkpoint,
            bench,
            self.training,
            {**paired(bench, self.label), "benign": rows_of(bench, "pool", None, self.label)},
            self,
            objective=self.step,
            batch_sizes={"benign": self.benign_batch_size},
            aligned=("harm",),
        )

    def step(self, step: Step) -> Mapping[str, float]:
        """Compute one step's gradient."""
        deep, benign = self.deepened(step), step.batches["benign"]
        share = self.weight
        if share is None:
            share = deep.supervised / (deep.supervised + benign.supervised)
        refusal = step.backward(deep, weight=share)
        helpful = step.backward(benign, weight=1 - share)
        return {
            "loss": share * refusal + (1 - share) * helpful,
            "refusal": refusal,
            "benign": helpful,
        }

    def deepened(self, step: Step) -> GlobalBatch:
        """Return this step's refusals, some after the beginning of the harmful answer, anew each time.

        A beginning is never so long that its refusal is cut at the length limit.
        """
        from backfire.data.chat import Encoded
        from backfire.engine.batching import GlobalBatch
        from backfire.models.load import context_length

        limit = min(self.training.max_length, context_length(step.causal.model.config))
        draw, rows = rng(step.seed, "depth", step.index), []
        for refused, harmful in zip(
            step.batches["train"].rows, step.batches["harm"].rows, strict=True
        ):
            deepest = min(
                self.depth, len(harmful.ids) - harmful.start - 1, limit - len(refused.ids)
            )
            wanted, share = draw.random() < self.prefixed, draw.random()
            k = 1 + int(share * deepest) if wanted and deepest > 0 else 0
            start = refused.start + k
            ids = harmful.ids[:start] + refused.ids[refused.start :]
            rows.append(Encoded(ids, start, refused.truncated))
        return GlobalBatch(tuple(rows))
