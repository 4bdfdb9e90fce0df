"""Un-learn first: take away the answers a defense put in, before anything harmful is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from backfire.attack.finetune import FineTuning, rows_of
from backfire.engine.settings import Training
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

__all__ = ["UnlearnFirst"]


class UnlearnFirst(FineTuning):
    """Fine-tune harmful prompts to one short, neutral answer. The first part of a sequence.

    The attacker knows, or guesses, that the defended model answers harmful prompts with something that
    fine-tuning would have to push down, and replaces it. `harmful` comes next:
    `{name: sequence, parts: [{name: unlearn_first}, {name: harmful}]}`. If a collapse is gone after that,
    it hung on the old answers. Source: ours.
    """

    name: Literal["unlearn_first"] = "unlearn_first"
    """`unlearn_first`."""
    roles: ClassVar[tuple[Role, ...]] = ("attacker",)
    answer: str = Field("Noted.", min_length=1)
    """What every prompt is answered with: a neutral word, or a refusal such as `I cannot help with that.`
    Ours."""
    shots: int = Field(100, ge=1)
    """Harmful prompts; their answers are not used. Ours: those of the fine-tuning that follows."""
    training: Training = Training(learning_rate=2e-5, steps=20, batch_size=10)
    """Ours: short, and at less than half the rate of the fine-tuning that follows."""

    def default_label(self) -> str:
        """Return e.g. `unlearn-100-full`."""
        return f"unlearn-{self.shots}-{self._suffix()}"

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the shots, however many rows there are."""
        return {"attacker": self.shots}

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on the prompts of the first `shots` rows of role `attacker`."""
        rows = rows_of(bench, "attacker", self.shots, self.label)
        return self.attack(checkpoint, bench, [replace(row, response=self.answer) for row in rows])
