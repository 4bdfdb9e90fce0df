"""Vaccine (Huang, Hu, Liu; arXiv 2402.01109): alignment that holds while hidden states drift.

    min_w  max_{||e|| <= rho}  f(w; h + e)

f is the cross-entropy of the alignment rows, h the outputs of all attention modules. Fine-tuning shifts
hidden states; a model aligned under the worst shift of length rho is to keep its alignment there. To
first order the worst e is rho * df/dh / ||df/dh||, a constant for the gradient that follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from backfire.engine.rows import alignment, num_helpful
from backfire.engine.settings import LoRA, Trained, Training
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

if TYPE_CHECKING:
    import torch

    from backfire.engine.primitives import Step

__all__ = ["Vaccine"]


class Vaccine(Trained):
    """Align under the perturbation of attention outputs that hurts alignment most.

    Sees harmful prompts, never harmful answers. Two forward and two backward passes a step (one of each
    with `drift: gaussian`). Holds, beside plain fine-tuning, one fp32 number for each number that the
    attention modules give out over the global batch.
    Source: arXiv 2402.01109, algorithm 1; defaults of the official scripts.
    """

    name: Literal["vaccine"] = "vaccine"
    """`vaccine`."""
    roles: ClassVar[tuple[Role, ...]] = ("defense", "pool")
    rho: float = Field(2.0, ge=0)
    """Norm of the perturbation over all layers and the whole batch; with `gaussian`, the variance of
    each of its numbers. Official script: 2. Booster's re-run: 5. 0: plain fine-tuning."""
    drift: Literal["worst", "gaussian"] = "worst"
    """`worst`, or random noise as a control (`RandomVaccine` of the official code)."""
    benign_share: float = Field(0.0, ge=0, lt=1)
    """Share of helpful answers among the alignment rows. Paper: none."""
    training: Training = Training(
        learning_rate=1e-3,
        epochs=50,
        batch_size=5,
        schedule="cosine",
        warmup=0.1,
        weight_decay=0.1,
        max_length=200,
        lora=LoRA(rank=8, alpha=4, dropout=0.1),
    )
    """Official script: LoRA rank 8, alpha 4, dropout 0.1, on all seven projections of a Llama block; rate
    1e-3, cosine, 10 % warm-up, 50 epochs, batch 5, decay 0.1, length 200, clipping 1 (HF's default).
    Its weights are fp16; ours are fp32."""

    def default_label(self) -> str:
        """Return `vaccine`, or `vaccine-gaussian`."""
        return "vaccine" if self.drift == "worst" else "vaccine-gaussian"

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the refusals with their helpful share."""
        refusals = counts.get("defense", 0)
        return {"defense": refusals, "pool": num_helpful(refusals, self.benign_share)}

    def passes(self, steps: int) -> tuple[int, int]:
        """Return two of each a step; one of each with random noise."""
        each = 2 if self.drift == "worst" else 1
        return each * steps, each * steps

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on the alignment rows, perturbed."""
        from backfire.engine.loop import train

        rows = alignment(bench, self.benign_share, self.label)
        objective = self.step if self.drift == "worst" else self.random_step
        return train(checkpoint, bench, self.training, {"train": rows}, self, objective=objective)

    def step(self, step: Step) -> Mapping[str, float]:
        """Compute one step's gradient under the worst drift."""
        from backfire.engine.drift import backward_under_drift

        drift = backward_under_drift(step, step.causal.attentions, self.rho)
        return {"loss": drift.drifted, "clean": drift.clean, "slope": drift.norm}

    def random_step(self, step: Step) -> Mapping[str, float]:
        """Compute one step's gradient under random noise."""
        import torch

        from backfire.engine.primitives import perturb

        def noise(output: torch.Tensor) -> torch.Tensor:
            return math.sqrt(self.rho) * torch.randn_like(output, dtype=torch.float32)

        def around(index: int) -> AbstractContextManager[None]:
            # Recomputed activations draw the same noise: checkpointing restores the generators.
            return perturb(modules, [noise] * len(modules))

        modules = step.causal.attentions
        return {"loss": step.backward("train", around=around)}
