"""RepNoise (Rosati et al.; arXiv 2405.14577): turn what the model represents of harmful answers into noise.

    L = L_retain + beta * L_noise - alpha * log L_ascent

over refusals and harmful answers to the same prompts. L_retain is the cross-entropy of the refusals.
L_noise is, averaged over layers, the squared maximum mean discrepancy between the feed-forward outputs at
the harmful answers' tokens and Gaussian noise. L_ascent is 1 plus the mean cross-entropy of the harmful
answers, read off every hidden state by way of the final norm and the head. Only tokens in which the two
answers differ, place by place, count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from backfire.engine.rows import paired
from backfire.engine.settings import Trained, Training
from backfire.records import Checkpoint, Role
from backfire.seeding import child_seed
from backfire.stage import Bench

if TYPE_CHECKING:
    import torch

    from backfire.engine.batching import GlobalBatch, MicroBatch
    from backfire.engine.causal import Causal
    from backfire.engine.primitives import Step

__all__ = ["RepNoise"]


class RepNoise(Trained):
    """Refuse, unlearn harmful answers in every layer, and make their representations noise.

    Sees harmful prompts with both the harmful answer and the refusal. Two forward and two backward passes
    a step, and a head for each layer. The noise term compares all rows of the harmful batch, which
    therefore goes through the model in one piece, on one device, whatever the token budget.
    Source: arXiv 2405.14577, section 3; defaults of the official code.
    """

    name: Literal["repnoise"] = "repnoise"
    """`repnoise`."""
    roles: ClassVar[tuple[Role, ...]] = ("defender_harm",)
    alpha: float = Field(1.0, ge=0)
    """Weight of the ascent. Official code: 1; the re-runs of Booster and T-Vaccine: 0.1."""
    beta: float = Field(0.001, ge=0)
    """Weight of the noise. Official code and released model: 0.001. With this and `alpha` 0 and `mask`
    `answer`: plain fine-tuning."""
    mask: Literal["difference", "answer"] = "difference"
    """Tokens of refusals and harmful answers that count: those in which the two answers to a prompt
    differ, place by place, as in the official code; or all of the answer."""
    compat: bool = False
    """Do as the official code does where it departs from its formulas: pads count as answer where only
    one of the two answers has ended, tokens of id 0 are no labels, the first token of each run that
    differs costs log V whatever the model says, and the last hidden state is normed twice."""
    training: Training = Training(
        learning_rate=1e-4,
        epochs=1,
        batch_size=4,
        schedule="cosine",
        warmup=0.1,
        weight_decay=0.01,
        max_length=256,
        shuffle=False,
    )
    """Official demonstration: all weights, 1,000 pairs once, batch 4, rate 1e-4, cosine, 10 % warm-up,
    decay 0.01, length 256, rows in their order. Its weights are bf16; ours are fp32. Clipping at 1: ours.
    The paper's own runs are larger (said to be 10,000 pairs, batch 8, rate 2e-5; not verified)."""

    def passes(self, steps: int) -> tuple[int, int]:
        """Return two of each a step: the refusals and the harmful answers."""
        return 2 * steps, 2 * steps

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on refusals, against the harmful answers to the same prompts."""
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
        """Compute one step's gradient."""
        refused, harmful = self._masked(step)
        seen: dict[str, float] = {}

        def unlearned(model: Causal, part: MicroBatch) -> torch.Tensor:
            from backfire.engine.primitives import capture

            with capture(model.mlps) as outputs:
                losses = model.lens(part, norm_again=self.compat)
            ascent = self._ascent(model, part, losses)
            noise = self._noise(step, part, outputs)
            seen.update(ascent=float(ascent.detach()), noise=float(noise.detach()))
            return self.beta * noise - self.alpha * ascent.log()

        # In one micro-batch: the discrepancy and the logarithm are of the batch, not of its parts.
        whole = replace(harmful, together=len(harmful.rows))
        harm = step.backward(whole, loss=unlearned, over=1)
        labels = self._labels(refused)
        retain = step.backward(refused, loss=self._retained, over=labels)
        return {"loss": retain + harm, "retain": retain, **seen}

    def _masked(self, step: Step) -> tuple[GlobalBatch, GlobalBatch]:
        """Return refusals and harmful answers with the tokens that count supervised."""
        from backfire.engine.batching import difference

        refused, harmful = step.batches["train"], step.batches["harm"]
        if self.compat:
            pad = int(step.streams["train"].chat.tokenizer.pad_token_id)
            refused, harmful = _padded(refused, harmful, pad), _padded(harmful, refused, pad)
        if self.mask == "difference":
            refused, harmful = difference(refused, harmful), difference(harmful, refused)
        return refused, harmful

    def _retained(self, model: Causal, part: MicroBatch) -> torch.Tensor:
        return self._counted(model, part, model.losses(part)).sum()

    def _ascent(self, model: Causal, part: MicroBatch, losses: list[torch.Tensor]) -> torch.Tensor:
        """Return 1 + the harmful answers' loss, averaged over hidden states, as the official code does.

        It divides the sum of L + 2 losses, of all hidden states and of the model, by L + 1.
        """
        import torch

        total = torch.stack([self._counted(model, part, loss).sum() for loss in losses]).sum()
        labels = max(1, self._num_labels(part.targets.tolist()))
        return 1 + total / labels / (len(losses) - 1)

    def _noise(self, step: Step, part: MicroBatch, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Return the mean discrepancy from noise of the layers' outputs at the tokens that count."""
        import torch

        from backfire.numerics.mmd import mmd

        draw = torch.Generator(part.ids.device).manual_seed(
            child_seed(step.seed, "noise", step.index)
        )
        own = part.positions + 1  # where these tokens stand, not where they are predicted
        rows, width = part.ids.shape
        found = []
        for output in outputs:
            flat = output.reshape(rows * width, -1)  # OPT's comes without rows
            blank = torch.zeros_like(flat, dtype=torch.float32)
            states = flat[own].float()
            noise = torch.randn(states.shape, generator=draw, device=draw.device)
            real, drawn = (blank.index_copy(0, own, v).view(rows, -1) for v in (states, noise))
            found.append(mmd(real, drawn))
        return torch.stack(found).mean()

    def _counted(self, model: Causal, part: MicroBatch, losses: torch.Tensor) -> torch.Tensor:
        """Return losses (N,) as they count."""
        if not self.compat:
            return losses
        import math

        import torch

        # The official code multiplies logits by the mask: where it is 0, all tokens are as likely.
        shared = ~torch.isin(part.positions - 1, part.positions)
        losses = losses.masked_fill(shared, math.log(model.head().out_features))
        return losses.masked_fill(part.targets == 0, 0.0)

    def _labels(self, batch: GlobalBatch) -> int:
        return max(1, sum(self._num_labels([r.ids[i] for i in r.supervised]) for r in batch.rows))

    def _num_labels(self, targets: list[int]) -> int:
        return len(targets) - (targets.count(0) if self.compat else 0)


def _padded(batch: GlobalBatch, other: GlobalBatch, pad: int) -> GlobalBatch:
    """Return a batch whose rows are at least as long as another's, filled up with pads."""
    return replace(
        batch,
        rows=tuple(
            replace(row, ids=row.ids + [pad] * (len(rival.ids) - len(row.ids)))
            for row, rival in zip(batch.rows, other.rows, strict=True)
        ),
    )
