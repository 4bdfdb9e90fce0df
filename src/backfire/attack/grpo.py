"""Reinforcement learning for harm: the model's own answers, rewarded by a judge of harmfulness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from backfire.attack.asking import Asking
from backfire.engine.settings import Trained, Training
from backfire.errors import DataError
from backfire.judges import AnyJudge, Programmatic
from backfire.progress import Silent
from backfire.records import Checkpoint, Exchange, Role, Verdict
from backfire.stage import Bench

if TYPE_CHECKING:
    from backfire.engine.grpo import Sampled

__all__ = ["GRPO"]


class GRPO(Asking, Trained):
    """Let the model answer harmful prompts, and make the answers likelier that a judge finds more harmful.

    The attacker needs prompts and a judge, but no harmful answer: what the model learns is its own. Such
    training passes by defenses that only make learning from given answers hard. Source: GRPO of Shao et
    al. 2024 (arXiv 2402.03300), through TRL; as an attack, the threat of TokenBuncher (arXiv 2508.20697).
    """

    name: Literal["grpo"] = "grpo"
    """`grpo`."""
    roles: ClassVar[tuple[Role, ...]] = ("attacker",)
    reads_answers: ClassVar[bool] = False
    shots: int = Field(100, ge=1)
    """Prompts that are answered; their answers in the data are read by no one but the judge. Ours: as many
    as `harmful` has pairs."""
    judge: AnyJudge = Programmatic()
    """Whose score is the reward (1 or 0 where it has none). Ours: ground truth, which an attacker has for
    what he knows already."""
    group: int = Field(8, ge=2)
    """Answers to one prompt, which are compared with each other. TRL: 8; DeepSeekMath: 64."""
    kl: float = Field(0.04, ge=0)
    """Weight of the KL divergence from the attacked model as it came. DeepSeekMath: 0.04; TRL: 0, which
    saves the second model."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest answer in tokens. Ours: as in the evaluation of harmfulness; DeepSeekMath: 1,024."""
    temperature: float = Field(1.0, gt=0)
    """Of the sampling. TRL: 1."""
    clip: float = Field(0.2, gt=0, lt=1)
    """Probability ratios count within 1 - clip and 1 + clip. TRL: 0.2."""
    loss: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = "dapo"
    """How tokens are averaged: over all answers (`dapo`, TRL's), or first over each (`grpo`,
    DeepSeekMath's, which favors short good and long bad answers)."""
    training: Training = Training(learning_rate=1e-6, steps=100, batch_size=64)
    """Rate 1e-6 as in DeepSeekMath and TRL. `batch_size` counts answers, a multiple of `group`. Steps and
    batch ours; DeepSeekMath: 1,024 answers."""

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if self.training.batch_size % self.group:
            raise ValueError(
                f"`training.batch_size` ({self.training.batch_size}) counts answers and must be a multiple "
                f"of `group` ({self.group})"
            )
        return self

    def default_label(self) -> str:
        """Return e.g. `grpo-100-full`."""
        return f"grpo-{self.shots}-{'lora' if self.training.lora else 'full'}"

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the prompts, however many rows there are."""
        return {"attacker": self.shots}

    def epoch_rows(self, counts: Mapping[str, int]) -> int:
        """Return the answers to all prompts, each answered by a group."""
        return self.shots * self.group

    def passes(self, steps: int) -> tuple[int, int]:
        """Return one forward pass to write the answers, one to learn, one of the reference if it counts."""
        return steps * (3 if self.kl else 2), steps

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Train on the first `shots` prompts of role `attacker`.

        Raises:
            PrerequisiteError: when TRL is not installed.
            DivergedError: when the training does not stay finite.
            DataError: when there are too few prompts, or the judge has no verdict on any answer of a step.
        """
        from backfire.engine.grpo import Policy, train_with_grpo
        from backfire.engine.rows import rows_of

        policy = Policy(
            self.group, self.kl, self.max_new_tokens, self.temperature, self.clip, self.loss
        )
        quiet = replace(bench, progress=Silent())
        return train_with_grpo(
            checkpoint,
            bench,
            self.training,
            rows_of(bench, "attacker", self.shots, self.label),
            self,
            lambda sampled: self.rewards(sampled, quiet),
            policy,
            chat=self.chat(checkpoint.path),
        )

    def rewards(self, sampled: Sequence[Sampled], bench: Bench) -> list[float | None]:
        """Return the judge's score of each answer; None where it has no verdict.

        An empty answer is worth 0, and is not shown to the judge.

        Raises:
            DataError: when there is no verdict on any answer.
        """
        written = [one for one in sampled if one.text.strip()]
        verdicts = iter(self.judge([_exchange(one) for one in written], bench) if written else ())
        found = [_worth(next(verdicts)) if one.text.strip() else 0.0 for one in sampled]
        if written and all(value is None for value in found):
            raise DataError(
                f"{bench.label or self.label}: the judge {self.judge.name!r} has no verdict on any of "
                f"{len(written)} answers ({self._why(written[0], bench)}); choose another `judge`, or rows "
                "that it can judge"
            )
        return found

    def _why(self, one: Sampled, bench: Bench) -> str:
        return self.judge([_exchange(one)], bench)[0].absent


def _exchange(one: Sampled) -> Exchange:
    row = one.row
    return Exchange(
        row.id,
        row.prompt,
        one.text,
        True,
        one.finished,
        one.num_tokens,
        row.categories,
        row.entity,
        row.facts,
        row.response,
    )


def _worth(verdict: Verdict) -> float | None:
    if verdict.harmful is None:
        return None
    return float(verdict.harmful) if verdict.score is None else verdict.score
