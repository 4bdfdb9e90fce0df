"""Booster (Huang, Hu, Ilhan, Tekin, Liu; arXiv 2409.01586): harmful steps are to gain little.

    min f(w) + lam * (h(w) - h(w - alpha * grad h(w) / ||grad h(w)||))

f is the cross-entropy of the alignment rows, h that of harmful answers: besides being aligned, the
model is to lose as little as possible of h in one normalised step of an attacker's. The inner gradient
counts as a constant, so the gradient is grad f(w) + lam * (grad h(w) - grad h(w')).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from backfire.engine.rows import alignment, num_helpful, rows_of
from backfire.engine.settings import LoRA, Trained, Training
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

if TYPE_CHECKING:
    from backfire.engine.primitives import Step

__all__ = ["Booster"]


class Booster(Trained):
    """Align, and flatten the harmful loss along an attacker's next step.

    Sees harmful prompts and harmful answers. Three forward and three backward passes a step (four with
    `perturb`). Holds, beside plain fine-tuning, one copy of the trained weights and one gradient.
    Source: arXiv 2409.01586, algorithm 1; defaults of the official scripts.
    """

    name: Literal["booster"] = "booster"
    """`booster`."""
    roles: ClassVar[tuple[Role, ...]] = ("defense", "defender_harm", "pool")
    copies: ClassVar[int] = 2
    lam: float = Field(5.0, ge=0)
    """Weight of the harmful loss's attenuation. Official script: 5 (the paper's text has other values,
    too; its issue 3). 0: plain fine-tuning."""
    alpha: float = Field(0.1, ge=0)
    """Length of the attacker's step, over all trained weights. Paper: 0.1."""
    harm_batch_size: int = Field(10, ge=1)
    """Harmful rows a step. Official code: 10."""
    benign_share: float = Field(0.0, ge=0, lt=1)
    """Share of helpful answers among the alignment rows. Paper: none; CTRAP's re-run of it: half."""
    perturb: float | None = Field(None, gt=0)
    """Vaccine's rho: the alignment gradient is taken under the worst perturbation of the attention
    outputs of this norm. None: off. The official `perturb_aware` script uses 5."""
    training: Training = Training(
        learning_rate=5e-4,
        epochs=20,
        batch_size=10,
        weight_decay=0.1,
        max_length=256,
        lora=LoRA(rank=32, alpha=4, targets=("q_proj", "k_proj", "v_proj")),
    )
    """Official script: LoRA rank 32, alpha 4, no dropout, on queries, keys and values; rate 5e-4,
    constant, 20 epochs, batch 10, decay 0.1, length 256, clipping 1 (HF's default)."""

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the refusals with their helpful share, and all harmful pairs."""
        refusals = counts.get("defense", 0)
        return {
            "defense": refusals,
            "defender_harm": counts.get("defender_harm", 0),
            "pool": num_helpful(refusals, self.benign_share),
        }

    def epoch_rows(self, counts: Mapping[str, int]) -> int:
        """Return the number of alignment rows."""
        used = self.rows_used(counts)
        return used["defense"] + used["pool"]

    def passes(self, steps: int) -> tuple[int, int]:
        """Return three of each a step; four with `perturb`."""
        each = 3 if self.perturb is None else 4
        return each * steps, each * steps

    def rows_a_pass(self, batch: float) -> float:
        """Return the mean of the passes over harmful and over alignment rows."""
        passes = [self.harm_batch_size] * 2 + [batch] * (1 if self.perturb is None else 2)
        return sum(passes) / len(passes)

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on the alignment rows with the harmful pairs as the attacker's."""
        from backfire.engine.loop import train

        return train(
            checkpoint,
            bench,
            self.training,
            {
                "train": alignment(bench, self.benign_share, self.label),
                "harm": rows_of(bench, "defender_harm", None, self.label),
            },
            self,
            objective=self.step,
            batch_sizes={"harm": self.harm_batch_size},
        )

    def step(self, step: Step) -> Mapping[str, float]:
        """Compute one step's gradient; the harmful passes share batch and dropout masks."""
        from backfire.engine.drift import backward_under_drift
        from backfire.engine.primitives import EPSILON, add_, add_grads, excursion, global_norm

        with step.randomness("harm"):
            harm, gain = step.grads("harm")
        with excursion(step.parameters), step.randomness("harm"):
            add_(step.parameters, gain, -self.alpha / (global_norm(gain) + EPSILON))
            harm_after, there = step.grads("harm")
        add_(gain, there, -1)
        del there
        if self.perturb is None:
            align = step.backward("train")
        else:
            align = backward_under_drift(step, step.causal.attentions, self.perturb).drifted
        add_grads(step.parameters, gain, self.lam)
        return {
            "loss": align + self.lam * (harm - harm_after),
            "align": align,
            "harm": harm,
            "harm_after": harm_after,
        }
