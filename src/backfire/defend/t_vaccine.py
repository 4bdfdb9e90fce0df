"""T-Vaccine (Liu, Liang, Ye, Xie; arXiv 2410.09760): Vaccine in the layers that matter for safety.

A layer's importance is s_l = ||dh/do_l||, the slope of the loss h of a harmful answer with respect to the
layer's attention output o_l. A few layers are drawn without replacement, with probabilities s_l / sum s;
only these are perturbed, and only their attention is trained. The others' stays as it is until they are
drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from backfire.engine.rows import alignment, num_helpful, rows_of
from backfire.engine.settings import LoRA, Trained, Training
from backfire.errors import TrainingError
from backfire.records import Checkpoint, Role
from backfire.seeding import rng
from backfire.stage import Bench

if TYPE_CHECKING:
    from torch import nn

    from backfire.engine.primitives import Step

__all__ = ["TVaccine"]


class TVaccine(Trained):
    """Align under the worst perturbation of the attention outputs of a few layers, drawn by importance.

    Sees harmful prompts and a few harmful answers, which it never trains on. Two forward and two backward
    passes a step, and one of each over a harmful batch whenever importance is measured. Holds, beside
    plain fine-tuning, one fp32 number for each number that the drawn attention modules give out over the
    global batch.
    Source: arXiv 2410.09760, algorithm 1; defaults of the official scripts.
    """

    name: Literal["t_vaccine"] = "t_vaccine"
    """`t_vaccine`."""
    roles: ClassVar[tuple[Role, ...]] = ("defense", "defender_harm", "pool")
    rho: float = Field(3.0, ge=0)
    """Norm of the perturbation over the drawn layers and the whole batch. Official script: 3. 0, with
    `freeze` nothing: plain fine-tuning."""
    layers: int = Field(8, ge=1)
    """Layers drawn at a time. Official script: 8; 5 for Qwen2."""
    redraw_every: int = Field(20, ge=1)
    """Steps from one draw to the next. Official code: 20; the paper draws at every step."""
    refresh_every: int = Field(200, ge=1)
    """Steps from one measurement of importance to the next. Official code: 200."""
    freeze: Literal["attention", "block", "nothing"] = "attention"
    """What of the layers not drawn stays as it is. Official code: attention; feed-forward parts of all
    layers are trained all the time."""
    harm_batch_size: int = Field(1, ge=1)
    """Harmful rows that importance is measured on. Official code: 1."""
    max_harm: int = Field(200, ge=1)
    """Most harmful pairs used. Official code: 200."""
    benign_share: float = Field(0.0, ge=0, lt=1)
    """Share of helpful answers among the alignment rows. Paper: none."""
    training: Training = Training(
        learning_rate=1e-3,
        epochs=20,
        batch_size=10,
        schedule="cosine",
        warmup=0.1,
        weight_decay=0.1,
        max_length=200,
        lora=LoRA(rank=8, alpha=4, dropout=0.1),
    )
    """Official script: LoRA rank 8, alpha 4, dropout 0.1, on all seven projections of a Llama block; rate
    1e-3, cosine, 10 % warm-up, 20 epochs, batch 10, decay 0.1, length 200, clipping 1 (HF's default)."""

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the refusals with their helpful share, and the harmful pairs measured on."""
        refusals = counts.get("defense", 0)
        return {
            "defense": refusals,
            "defender_harm": min(self.max_harm, counts.get("defender_harm", 0)),
            "pool": num_helpful(refusals, self.benign_share),
        }

    def epoch_rows(self, counts: Mapping[str, int]) -> int:
        """Return the number of alignment rows."""
        used = self.rows_used(counts)
        return used["defense"] + used["pool"]

    def passes(self, steps: int) -> tuple[int, int]:
        """Return two of each a step, and one of each a measurement of importance."""
        each = 2 * steps + math.ceil(steps / self.refresh_every)
        return each, each

    def rows_a_pass(self, batch: float) -> float:
        """Return the mean over the alignment passes and those that measure importance."""
        aligning = 2 * self.refresh_every
        return (aligning * batch + self.harm_batch_size) / (aligning + 1)

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on the alignment rows, with the harmful pairs to measure importance on."""
        from backfire.engine.loop import train

        harm = rows_of(bench, "defender_harm", None, self.label)[: self.max_harm]
        return train(
            checkpoint,
            bench,
            self.training,
            {"train": alignment(bench, self.benign_share, self.label), "harm": harm},
            self,
            objective=_DrawnLayers(self),
            batch_sizes={"harm": self.harm_batch_size},
        )


class _DrawnLayers:
    """T-Vaccine's step. It remembers the importance of the layers and which are drawn."""

    def __init__(self, settings: TVaccine) -> None:
        self.settings = settings
        self.memory: dict[str, Any] = {"importance": [], "drawn": []}

    def __call__(self, step: Step) -> Mapping[str, float]:
        """Compute one step's gradient under the worst drift of the drawn layers."""
        from backfire.engine.drift import backward_under_drift

        settings, attentions = self.settings, step.causal.attentions
        if step.index % settings.refresh_every == 0:
            self.memory["importance"] = self._importance(step, attentions)
        if step.index % settings.redraw_every == 0:
            self.memory["drawn"] = self._draw(step)
        drawn = self.memory["drawn"]
        drift = backward_under_drift(step, [attentions[i] for i in drawn], settings.rho)
        if settings.freeze != "nothing":
            resting: Any = attentions if settings.freeze == "attention" else step.causal.blocks
            for index, part in enumerate(resting):
                if index not in drawn:
                    _rest(part)
        return {"loss": drift.drifted, "clean": drift.clean, "slope": drift.norm}

    def _importance(self, step: Step, attentions: list[nn.Module]) -> list[float]:
        """Return each layer's share of the slopes of a harmful batch's loss; they sum to 1."""
        turn = step.index // self.settings.refresh_every
        with step.randomness("importance"):
            _, slopes = step.activation_grads(attentions, step.streams["harm"].batch(turn))
        norms = [step.activation_norm([list(layer)]) for layer in zip(*slopes, strict=True)]
        total = sum(norms)
        return [norm / total for norm in norms] if total else norms

    def _draw(self, step: Step) -> list[int]:
        """Draw layers one after another, each with its share of the importance that is left.

        Raises:
            TrainingError: when fewer layers have any importance than are to be drawn.
        """
        shares, wanted = self.memory["importance"], self.settings.layers
        have = sum(share > 0 for share in shares)
        if have < wanted:
            raise TrainingError(
                f"{self.settings.label}: `layers` is {wanted}, and of the {len(shares)} layers there are "
                f"{have} have a slope above 0; set it to {have} or fewer"
            )
        turn = step.index // self.settings.redraw_every
        drawn = rng(step.seed, "layers", turn).choice(len(shares), wanted, replace=False, p=shares)
        return sorted(drawn.tolist())


def _rest(module: nn.Module) -> None:
    """Leave a module's parameters out of the optimizer's step: no update, no momentum, no decay."""
    for parameter in module.parameters():
        parameter.grad = None
