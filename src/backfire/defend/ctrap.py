"""CTRAP (Yi et al.; arXiv 2505.16559): a collapse that lies in wait along the harmful direction.

    min l(w; alignment) + lam * l_col(w - alpha * grad l(w; harmful); general)

l_col is the mean, over the positions of answers, of -log p(e | what came before) for one fixed token e:
at the weights an attacker's step leads to, the model is to say e and nothing else, whatever it is asked.
First order: the gradient of l_col is taken at the moved weights and applied to the unmoved ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from backfire.engine.rows import alignment, num_helpful, rows_of
from backfire.engine.settings import LoRA, Trained, Training
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

if TYPE_CHECKING:
    from backfire.engine.causal import Loss
    from backfire.engine.primitives import Step

__all__ = ["CTRAP"]


class CTRAP(Trained):
    """Align, and make the weights one harmful step away repeat one token.

    Sees harmful prompts and harmful answers. Three forward and three backward passes a step. Holds,
    beside plain fine-tuning, one copy of the trained weights.
    Source: arXiv 2505.16559, section 4; defaults of the official code.
    """

    name: Literal["ctrap"] = "ctrap"
    """`ctrap`."""
    roles: ClassVar[tuple[Role, ...]] = ("defense", "defender_harm", "pool")
    copies: ClassVar[int] = 1
    lam: float = Field(0.1, ge=0)
    """Weight of the collapse. Official code: 0.1. 0: plain fine-tuning."""
    alpha: float = Field(0.1, ge=0)
    """Length of the attacker's step, over all trained weights. Official code: 0.1."""
    normalise: bool = True
    """Divide the attacker's gradient by its norm. The official code does; the paper's equation does
    not, and alpha is then a learning rate."""
    phrase: str = Field("an error", min_length=1)
    """Its last token is the one to collapse to. Official code: `an error`."""
    general: Literal["alignment", "benign"] = "alignment"
    """What the collapse is trained on: the alignment batch itself, as in the official code, or a batch
    of helpful answers."""
    harm_batch_size: int = Field(10, ge=1)
    """Harmful rows a step. Official code: 10."""
    benign_share: float = Field(0.5, ge=0, lt=1)
    """Share of helpful answers among the alignment rows. Official code: 5 of the 10 rows of a batch;
    here of all rows, so that a batch's share varies."""
    training: Training = Training(
        learning_rate=5e-4,
        epochs=20,
        batch_size=10,
        weight_decay=0.1,
        max_length=256,
        lora=LoRA(rank=32, alpha=4, targets=("q_proj", "k_proj", "v_proj")),
    )
    """Official code: LoRA rank 32 (64 for Qwen), alpha 4, no dropout, on queries, keys and values; rate
    5e-4, constant, 20 epochs, batch 5 + 5, decay 0.1, length 256, clipping 1 (HF's default)."""

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the refusals with their helpful share, and all harmful pairs."""
        refusals = counts.get("defense", 0)
        helpful = num_helpful(refusals, self.benign_share)
        everything = counts.get("pool", 0)
        return {
            "defense": refusals,
            "defender_harm": counts.get("defender_harm", 0),
            "pool": helpful if self.general == "alignment" else everything,
        }

    def epoch_rows(self, counts: Mapping[str, int]) -> int:
        """Return the number of alignment rows."""
        refusals = counts.get("defense", 0)
        return refusals + num_helpful(refusals, self.benign_share)

    def passes(self, steps: int) -> tuple[int, int]:
        """Return three of each a step."""
        return 3 * steps, 3 * steps

    def rows_a_pass(self, batch: float) -> float:
        """Return the mean of one pass over harmful and two over alignment or helpful rows."""
        return (self.harm_batch_size + 2 * batch) / 3

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on the alignment rows with the harmful pairs as the attacker's."""
        from backfire.engine.loop import train

        streams = {
            "train": alignment(bench, self.benign_share, self.label),
            "harm": rows_of(bench, "defender_harm", None, self.label),
        }
        if self.general == "benign":
            streams["general"] = rows_of(bench, "pool", None, self.label)
        return train(
            checkpoint,
            bench,
            self.training,
            streams,
            self,
            objective=self.step,
            batch_sizes={"harm": self.harm_batch_size},
        )

    def step(self, step: Step) -> Mapping[str, float]:
        """Compute one step's gradient."""
        from backfire.engine.primitives import EPSILON, add_, excursion, global_norm

        general = "train" if self.general == "alignment" else "general"
        with step.randomness("harm"):
            harm, gradient = step.grads("harm")
        norm = global_norm(gradient) + EPSILON if self.normalise else 1.0
        with excursion(step.parameters), step.randomness("collapse"):
            add_(step.parameters, gradient, -self.alpha / norm)
            del gradient
            collapse = step.backward(general, weight=self.lam, loss=self._saying(step))
        align = step.backward("train")
        return {
            "loss": align + self.lam * collapse,
            "align": align,
            "collapse": collapse,
            "harm": harm,
        }

    def _saying(self, step: Step) -> Loss:
        """Return the loss of the one token where answers stand; the answers themselves are still fed."""
        tokenizer = step.streams["train"].chat.tokenizer
        token = tokenizer(self.phrase, add_special_tokens=False)["input_ids"][-1]
        return lambda model, part: model.losses(
            replace(part, targets=part.targets.new_full(part.targets.shape, token))
        ).sum()
