"""SimPO (Meng, Xia, Chen; arXiv 2405.14734) as safety alignment: prefer the refusal, without a reference.

    -log sigmoid( beta / |r| * log p(r|x) - beta / |h| * log p(h|x) - gamma )

r is the refusal of prompt x, h its harmful answer, |.| a number of tokens. A baseline: it aligns, and
has nothing in it that resists fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from backfire.engine.rows import paired
from backfire.engine.settings import Trained, Training
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

if TYPE_CHECKING:
    import torch

    from backfire.engine.batching import MicroBatch
    from backfire.engine.causal import Causal
    from backfire.engine.primitives import Step

__all__ = ["SimPO"]


class SimPO(Trained):
    """Prefer refusals to harmful answers by their mean log-probability a token.

    Sees harmful prompts with both the harmful answer and the refusal. One forward and one backward pass
    a step over both answers, twice the rows of plain fine-tuning.
    Source: arXiv 2405.14734, equation 6; defaults of the official code's Llama-3-8B-Instruct run.
    """

    name: Literal["simpo"] = "simpo"
    """`simpo`."""
    roles: ClassVar[tuple[Role, ...]] = ("defender_harm",)
    beta: float = Field(2.5, ge=0)
    """Scale of the mean log-probabilities. Official run: 2.5; others of theirs: 2 to 10."""
    gamma: float = Field(1.375, ge=0)
    """Margin by which the refusal is to win. Official run: 0.55 times beta; theirs: 0.1 to 0.8 times."""
    loss: Literal["sigmoid", "hinge"] = "sigmoid"
    """-log sigmoid of the margin, or max(0, 1 - margin). Paper: `sigmoid`."""
    smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs taken to be the wrong way round, with `sigmoid`. Official code: 0."""
    sft: float = Field(0.0, ge=0)
    """Weight of the refusals' cross-entropy beside the preference. Official code: 0. With `beta` 0 and
    this 1: plain fine-tuning."""
    training: Training = Training(
        learning_rate=1e-6,
        epochs=1,
        batch_size=128,
        schedule="cosine",
        warmup=0.1,
        max_length=2048,
    )
    """Official run: all weights, rate 1e-6, cosine, 10 % warm-up, one epoch, batch 128 (pairs), length
    2,048, no decay, clipping 1 (HF's default), no dropout. On preference data, not on refusals."""

    def passes(self, steps: int) -> tuple[int, int]:
        """Return one of each a step."""
        return steps, steps

    def rows_a_pass(self, batch: float) -> float:
        """Return both answers of each pair."""
        return 2 * batch

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on refusals and harmful answers to the same prompts."""
        from backfire.engine.loop import train

        return train(
            checkpoint,
            bench,
            self.training,
            paired(bench, self.label),
            self,
            objective=self.step,
            aligned=("harm",),
        )

    def step(self, step: Step) -> Mapping[str, float]:
        """Compute one step's gradient; the two answers to a prompt stay in one micro-batch."""
        import torch

        from backfire.engine.batching import GlobalBatch
        from backfire.numerics.preference import simpo

        refused, harmful = step.batches["train"], step.batches["harm"]
        both = zip(refused.rows, harmful.rows, strict=True)
        pairs = GlobalBatch(tuple(row for pair in both for row in pair), together=2)
        seen: list[torch.Tensor] = []

        def preference(model: Causal, part: MicroBatch) -> torch.Tensor:
            losses = model.losses(part)
            sums = part.row_sums(losses)
            means = sums / part.row_sums(torch.ones_like(losses)).clamp(min=1)
            chosen, rejected = -means.view(-1, 2).T
            wanted = simpo(
                chosen, rejected, self.beta, self.gamma, kind=self.loss, smoothing=self.smoothing
            )
            refusal = sums[::2].sum() / refused.supervised
            if part.num_tokens:
                seen.append(torch.stack([(chosen > rejected).sum(), refusal.detach()]))
            return wanted.sum() / len(refused.rows) + self.sft * refusal

        value = step.backward(pairs, loss=preference, over=1)
        won, refusal = (step.total(float(sum(parts))) for parts in zip(*seen, strict=True))
        return {"loss": value, "won": won / len(refused.rows), "refusal": refusal}
