"""SEAM, self-destructive models (Wang, Zhu, Wang; arXiv 2505.12186): harm and use pull apart.

    min L_ul + alpha * L_up + beta * cos(a, b),   a = grad harmful, b = grad benign

L_up is the cross-entropy of refusals, L_ul = -log(1 + S) pushes harmful answers away in every layer, and
the cosine makes an attacker's step along -a a step up the benign loss. The cosine's gradient,

    H_a (b^ - c a^) / ||a|| + H_b (a^ - c b^) / ||b||,   c = cos(a, b),  x^ = x / ||x||,

holds Hessians, which are replaced by differences of gradients a small way apart:

    1/eps * ( [b(w + eps (a^ - c b^)) - b] / ||b|| + [a(w + eps (b^ - c a^)) - a] / ||a|| )
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from backfire.engine.rows import paired, rows_of
from backfire.engine.settings import Trained, Training
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

if TYPE_CHECKING:
    import torch

    from backfire.engine.batching import MicroBatch
    from backfire.engine.causal import Causal
    from backfire.engine.primitives import Step

__all__ = ["SEAM"]


class SEAM(Trained):
    """Couple harmful and benign gradients, so that harmful fine-tuning undoes the model's use.

    Sees harmful prompts with both the harmful answer and the refusal, and benign rows. Six forward and
    six backward passes a step. Holds, beside plain fine-tuning, one copy of the trained weights and two
    gradients.
    Source: arXiv 2505.12186, section 4; defaults of the official code.
    """

    name: Literal["seam"] = "seam"
    """`seam`."""
    roles: ClassVar[tuple[Role, ...]] = ("defender_harm", "pool")
    copies: ClassVar[int] = 3
    alpha: float = Field(1.0, ge=0)
    """Weight of the refusals. Paper: 1."""
    beta: float = Field(0.01, ge=0)
    """Weight of the cosine. Paper and the official configuration: 0.01; the code's own default: 0.001."""
    unlearn: float = Field(1.0, ge=0)
    """Weight of -log(1 + S). Paper: 1. With this and `beta` 0 and `mask` `answer`: plain fine-tuning."""
    epsilon: float = Field(1e-3, gt=0)
    """Length of the displacement. Paper: 1e-3. It needs fp32 weights: bf16 ones do not notice it."""
    mask: Literal["difference", "answer"] = "difference"
    """Tokens of refusals and harmful answers that count: those in which the two answers to a prompt
    differ, place by place, as in the official code; or all of the answer."""
    benign_text: bool = True
    """Take the benign gradient over prompts too. Official code: yes."""
    benign_batch_size: int | None = Field(None, ge=1)
    """Benign rows a step; None: as many as refusals. Official code: as many."""
    compat: bool = False
    """Norm the last hidden state again before the head, as the official code does in S."""
    training: Training = Training(
        learning_rate=2e-5,
        epochs=1,
        batch_size=8,
        schedule="cosine",
        warmup=0.1,
        max_length=256,
        clip_norm=None,
    )
    """Official code: all weights, 8,000 triples once, batch 8 on 4 GPUs, rate 2e-5, cosine, 10 %
    warm-up, no decay, no clipping, length 256. Its weights are bf16; ours are fp32."""

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return all harmful pairs and all benign rows."""
        return {role: counts.get(role, 0) for role in self.roles}

    def epoch_rows(self, counts: Mapping[str, int]) -> int:
        """Return the number of refusals."""
        return counts.get("defender_harm", 0)

    def passes(self, steps: int) -> tuple[int, int]:
        """Return six of each a step."""
        return 6 * steps, 6 * steps

    def rows_a_pass(self, batch: float) -> float:
        """Return the mean of four passes over pairs and two over benign rows."""
        return (4 * batch + 2 * (self.benign_batch_size or batch)) / 6

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on refusals, the harmful answers to the same prompts, and benign rows."""
        from backfire.engine.loop import train

        return train(
            checkpoint,
            bench,
            self.training,
            {**paired(bench, self.label), "benign": rows_of(bench, "pool", None, self.label)},
            self,
            objective=self.step,
            batch_sizes={"benign": self.benign_batch_size or self.training.batch_size},
            aligned=("harm",),
        )

    def step(self, step: Step) -> Mapping[str, float]:
        """Compute one step's gradient; passes whose difference counts share dropout masks."""
        from backfire.engine.batching import as_text, difference
        from backfire.engine.primitives import EPSILON, add_, add_grads, dot, excursion, global_norm

        refused, harmful, benign = (step.batches[name] for name in ("train", "harm", "benign"))
        if self.mask == "difference":
            refused, harmful = difference(refused, harmful), difference(harmful, refused)
        if self.benign_text:
            benign = as_text(benign)
        with step.randomness("harm"):
            harm, a = step.grads(harmful)
        with step.randomness("benign"):
            good, b = step.grads(benign)
        norm_a, norm_b = global_norm(a) + EPSILON, global_norm(b) + EPSILON
        cosine = dot(a, b) / (norm_a * norm_b)

        with step.randomness("unlearn"):
            surprise, gradient = step.grads(harmful, self._surprise)
        add_grads(step.parameters, gradient, -self.unlearn / (1 + surprise))
        del gradient

        share = self.beta / self.epsilon
        with excursion(step.parameters), step.randomness("benign"):
            add_(step.parameters, a, self.epsilon / norm_a)
            add_(step.parameters, b, -self.epsilon * cosine / norm_b)
            step.backward(benign, weight=share / norm_b)
        with excursion(step.parameters), step.randomness("harm"):
            add_(step.parameters, b, self.epsilon / norm_b)
            add_(step.parameters, a, -self.epsilon * cosine / norm_a)
            step.backward(harmful, weight=share / norm_a)
        add_grads(step.parameters, a, -share / norm_a)
        add_grads(step.parameters, b, -share / norm_b)
        del a, b

        refusal = step.backward(refused, weight=self.alpha)
        unlearned = -math.log1p(surprise)
        return {
            "loss": self.unlearn * unlearned + self.alpha * refusal + self.beta * cosine,
            "refusal": refusal,
            "unlearn": unlearned,
            "cosine": cosine,
            "harm": harm,
            "benign": good,
        }

    def _surprise(self, model: Causal, part: MicroBatch) -> torch.Tensor:
        """Return S's sum: the loss of the answer and of reading it off every hidden state.

        The paper's average, as its code takes it: the sum of L + 2 losses over the L + 1 states.
        """
        import torch

        losses = model.lens(part, norm_again=self.compat)
        return torch.stack(losses).sum() / (len(losses) - 1)
