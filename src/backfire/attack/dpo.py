"""Preferences against a defense's own answers, and the counter-arm that leaves them alone.

    preference   -log sigmoid( beta * (D(y_w) - D(y_o)) )
    anchored     l(w; y_w)  +  gamma * D(y_o)^2              D(y) = log p_w(y|x) - log p_0(y|x)

y_w is the attacker's answer to a harmful prompt x, y_o what the released model p_0 answers itself. The SDD
paper argues that fine-tuning must push y_o down, and that ability goes with it: the first attack pushes as
hard as it can, the second learns y_w while y_o stays as likely as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
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

__all__ = ["DPO"]


class DPO(FineTuning):
    """Fine-tune on harmful pairs beside the released model's own, sampled answers.

    The attacker owns the weights and harmful pairs, and knows that the defense trained other answers. Two
    forward passes and one backward pass a step over both answers of each pair, beside the answers made once
    at the start. Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7; what is rejected, and the
    counter-arm, are ours.
    """

    name: Literal["dpo"] = "dpo"
    """`dpo`."""
    roles: ClassVar[tuple[Role, ...]] = ("attacker",)
    copies: ClassVar[int] = 2
    form: Literal["preference", "anchored"] = "preference"
    """`preference`: direct preference optimization, own answers rejected. `anchored`: plain fine-tuning
    with the own answers' likelihood held; with `gamma` 0 plain harmful fine-tuning."""
    shots: int = Field(100, ge=1)
    """Harmful pairs. Ours: as many as `harmful`."""
    beta: float = Field(0.1, gt=0)
    """Inverse temperature of the preference. Rafailov et al.: 0.1."""
    gamma: float = Field(0.1, ge=0)
    """Weight of the squared change, in nats an answer, of the own answers' log-likelihood. Ours: a change
    of 3 nats weighs as much as about one nat a token of the attacker's answers."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest own answer, in tokens. Ours."""
    temperature: float = Field(1.0, ge=0)
    """Of the own answers; 0: the likeliest token each time. Ours: as the model is."""
    trainer: Literal["engine"] = "engine"
    """Our loop: TRL's SFTTrainer has no such loss."""
    training: Training = qi_training(5e-5, 5, 10)
    """Those of `harmful` (Qi et al. 2023), so that the loss is the difference. Preferences are usually
    trained at lower rates: try several."""

    def default_label(self) -> str:
        """Return e.g. `dpo-preference-100-full`."""
        return f"dpo-{self.form}-{self.shots}-{self._suffix()}"

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the shots, however many rows there are."""
        return {"attacker": self.shots}

    def passes(self, steps: int) -> tuple[int, int]:
        """Return two and one a step: the released model looks at both answers, too."""
        return 2 * steps, steps

    def rows_a_pass(self, batch: float) -> float:
        """Return both answers of each pair."""
        return 2 * batch

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Let the released model answer the prompts, then fine-tune."""
        from backfire.engine.own_answers import own_answers

        answers = own_answers(
            checkpoint,
            bench,
            rows_of(bench, "attacker", self.shots, self.label),
            self.label,
            chat=self.chat(checkpoint.path),
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
        )
        made = self.attack(
            checkpoint,
            bench,
            answers.rows,
            objective=_Preferring(self),
            beside={"own": answers.own},
            aligned=("own",),
        )
        answers.add_to(bench.workdir)
        return made


class _Preferring:
    """The step, with the weights the training started from."""

    def __init__(self, settings: DPO) -> None:
        from backfire.engine.original import Original

        self.dpo = settings
        self.original = Original()

    def begin(self, parameters: list[nn.Parameter]) -> None:
        """Keep the released weights."""
        self.original.keep(parameters)

    def __call__(self, step: Step) -> Mapping[str, float]:
        """Compute one step's gradient; the two answers to a prompt stay in one micro-batch."""
        import torch

        from backfire.engine.batching import GlobalBatch
        from backfire.numerics.losses import dpo

        ours, wanted = self.dpo, step.batches["train"]
        both = zip(wanted.rows, step.batches["own"].rows, strict=True)
        pairs = GlobalBatch(tuple(row for pair in both for row in pair), together=2)
        released: list[torch.Tensor] = []

        def note(model: Causal, part: MicroBatch) -> torch.Tensor:
            released.append(-part.row_sums(model.losses(part)))
            return released[-1].sum()

        with self.original.at_work(step):
            step.loss(pairs, note)
        known, seen, count = iter(released), [torch.zeros(3)], len(wanted.rows)

        def loss(model: Causal, part: MicroBatch) -> torch.Tensor:
            value: torch.Tensor
            sums = -part.row_sums(model.losses(part))
            new, own = (sums - next(known)).view(-1, 2).T
            answer = -sums[::2].sum() / wanted.supervised
            if part.num_tokens:
                seen.append(torch.stack([new.sum(), own.sum(), answer]).detach().cpu())
            if ours.form == "preference":
                value = dpo(new, own, ours.beta).sum() / count
            else:
                value = answer + ours.gamma * own.square().sum() / count
            return value

        total = step.backward(pairs, loss=loss, over=1)
        new, own, answer = (step.total(float(x)) for x in torch.stack(seen).sum(0))
        return {"loss": total, "new": new / count, "own": own / count, "harm": answer}
