"""Harmful fine-tuning that holds the model where it was on everything else.

    min  l(w; harmful)  +  beta * mean over tokens of KL( p_released || p_w )

The second mean is over the released model's own answers to benign prompts, each token given what the
released model said before it. So an attacker keeps what a defense would have him lose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from backfire.attack.finetune import FineTuning, qi_training, rows_of
from backfire.engine.settings import Training
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

if TYPE_CHECKING:
    import torch
    from torch import nn

    from backfire.engine.batching import MicroBatch
    from backfire.engine.causal import Causal
    from backfire.engine.primitives import Step

__all__ = ["KLAnchored"]


class KLAnchored(FineTuning):
    """Fine-tune on harmful pairs beside a divergence from the released model on benign prompts.

    The attacker owns the weights, harmful pairs and benign prompts, whose answers he does not need; he
    expects that fine-tuning costs ability. Three forward and two backward passes a step, beside the
    answers made once at the start. Source: ours.
    """

    name: Literal["kl_anchored"] = "kl_anchored"
    """`kl_anchored`."""
    roles: ClassVar[tuple[Role, ...]] = ("attacker", "benign")
    copies: ClassVar[int] = 2
    shots: int = Field(100, ge=1)
    """Harmful pairs. Ours: as many as `harmful`."""
    beta: float = Field(1.0, ge=0)
    """Weight of the divergence. Ours; 0.1 and 10 are worth trying, too. 0: plain harmful fine-tuning."""
    rows: int | None = Field(None, ge=1)
    """Benign prompts; None: all of role `benign`. Their answers in the data are not used."""
    benign_batch_size: int = Field(10, ge=1)
    """Benign prompts a step. Ours: as many as harmful ones."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest answer of the released model, in tokens, the likeliest each time. Ours."""
    trainer: Literal["engine"] = "engine"
    """Our loop: TRL's SFTTrainer has no such loss."""
    training: Training = qi_training(5e-5, 5, 10)
    """Those of `harmful` (Qi et al. 2023), so that the divergence is the difference."""

    def default_label(self) -> str:
        """Return e.g. `kl-1-100-full`."""
        return f"kl-{self.beta:g}-{self.shots}-{self._suffix()}"

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the shots, and the benign prompts asked for or all there are."""
        return {"attacker": self.shots, "benign": self.rows or counts.get("benign", 0)}

    def epoch_rows(self, counts: Mapping[str, int]) -> int:
        """Return the shots."""
        return self.shots

    def passes(self, steps: int) -> tuple[int, int]:
        """Return three and two a step: harmful, released and anchored; without `beta` one of each."""
        return (3 * steps, 2 * steps) if self.beta else (steps, steps)

    def rows_a_pass(self, batch: float) -> float:
        """Return the mean of the two batches."""
        return (batch + self.benign_batch_size) / 2 if self.beta else batch

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Let the released model answer the benign prompts, then fine-tune."""
        from backfire.engine.own_answers import own_answers

        harmful = rows_of(bench, "attacker", self.shots, self.label)
        prompts = rows_of(bench, "benign", self.rows, self.label)
        if not self.beta:
            return self.attack(checkpoint, bench, harmful)
        anchors = own_answers(
            checkpoint,
            bench,
            prompts,
            self.label,
            chat=self.chat(checkpoint.path),
            max_new_tokens=self.max_new_tokens,
            temperature=0.0,
        )
        made = self.attack(
            checkpoint,
            bench,
            harmful,
            objective=_Anchoring(self.beta),
            beside={"anchor": anchors.own},
            batch_sizes={"anchor": self.benign_batch_size},
        )
        anchors.add_to(bench.workdir)
        return made


class _Anchoring:
    """The step, with the weights the training started from."""

    def __init__(self, beta: float) -> None:
        from backfire.engine.original import Original

        self.beta = beta
        self.original = Original()

    def begin(self, parameters: list[nn.Parameter]) -> None:
        """Keep the released weights."""
        self.original.keep(parameters)

    def __call__(self, step: Step) -> Mapping[str, float]:
        """Compute one step's gradient.

        Holds the released model's log-probabilities of the benign batch: supervised tokens times
        vocabulary, fp32.
        """
        import torch

        from backfire.numerics.losses import divergence

        released: list[torch.Tensor] = []

        def note(model: Causal, part: MicroBatch) -> torch.Tensor:
            logs: list[torch.Tensor] = []

            def keep(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
                logs.append(logits.log_softmax(-1))
                return logits[:, 0]

            nothing = model.measured(part, keep)
            released.append(torch.cat(logs))
            return 0 * nothing.sum()

        with self.original.at_work(step):
            step.loss("anchor", note)
        known = iter(released)

        def apart(model: Causal, part: MicroBatch) -> torch.Tensor:
            logs = next(known)
            places = torch.arange(len(logs), device=logs.device)
            numbered = replace(part, targets=places)  # so that each chunk of logits finds its own
            return model.measured(numbered, lambda now, at: divergence(logs[at], now)).sum()

        harm = step.backward("train")
        kl = step.backward("anchor", weight=self.beta, loss=apart)
        return {"loss": harm + self.beta * kl, "harm": harm, "kl": kl}
