"""What the fine-tuning attacks share: a trainer, the attacker's way of asking, enough rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from backfire.attack.asking import Asking
from backfire.data.chat import PROMPT
from backfire.engine.rows import rows_of
from backfire.engine.settings import LoRA, Point, Trained, Training
from backfire.records import Checkpoint, Example, Role
from backfire.seeding import rng
from backfire.stage import Bench

if TYPE_CHECKING:
    from backfire.engine.objective import Objective

__all__ = ["FineTuning", "mix_of", "qi_training", "rows_of"]


class FineTuning(Asking, Trained):
    """Base of the attacks that fine-tune."""

    later: ClassVar[frozenset[str]] = frozenset({"points"})
    trainer: Literal["engine", "trl"] = "engine"
    """Our loop, or TRL's SFTTrainer: verdicts have flipped with the trainer (arXiv 2412.07097)."""
    points: tuple[Point, ...] = ()
    """Where else the model is measured on its way: after so many optimizer steps, or after these shares
    of them. One training passes them all."""

    @model_validator(mode="after")
    def _points_rise(self) -> Self:
        if list(self.points) != sorted(set(self.points)) or len({type(p) for p in self.points}) > 1:
            raise ValueError(
                f"`points` must rise, and be all optimizer steps (5, 10) or all shares (0.1, 0.5); met "
                f"{list(self.points)}"
            )
        if self.points and self.trainer != "engine":
            raise ValueError(
                "`points` need `trainer: engine`, as TRL's trainer cannot go on exactly where it stopped"
            )
        if self.points and self.training.stop is not None:
            raise ValueError("give `points` or `training.stop`, not both")
        return self

    def stops(self) -> Iterator[tuple[Point | None, Self]]:
        """Yield each point with the attack that stops there; None is the end."""
        for point in (*self.points, self.training.stop):
            training = self.training.model_copy(update={"stop": point})
            one = self.model_copy(update={"points": (), "training": training})
            yield (point if point in self.points else None), one

    def attack(
        self,
        checkpoint: Checkpoint,
        bench: Bench,
        rows: Sequence[Example],
        *,
        objective: Objective | None = None,
        beside: Mapping[str, Sequence[Example]] | None = None,
        batch_sizes: Mapping[str, int] | None = None,
        aligned: Sequence[str] = (),
        wrapped: bool = False,
    ) -> Checkpoint:
        """Fine-tune on the rows; an adapter is kept as an adapter.

        Args:
            checkpoint: Where to start.
            bench: Where to work.
            rows: Of stream `train`.
            objective: The step, with `trainer: engine` only; None: cross-entropy.
            beside: Rows of the objective's other streams.
            batch_sizes: Their global batches where not the training's.
            aligned: Those whose rows belong to `rows`, one to one.
            wrapped: The prompts of the rows stand in the attacker's user turn already, or are not to.
        """
        chat, noted = self.chat(checkpoint.path), None
        if wrapped and chat is not None:
            chat, noted = chat.model_copy(update={"user": PROMPT}), chat
        if self.trainer == "trl":
            from backfire.engine.trl import train_with_trl

            return train_with_trl(
                checkpoint, bench, self.training, rows, self, chat=chat, noted=noted
            )
        from backfire.engine.loop import train

        return train(
            checkpoint,
            bench,
            self.training,
            {"train": rows, **(beside or {})},
            self,
            objective=objective,
            batch_sizes=batch_sizes,
            aligned=aligned,
            chat=chat,
            noted=noted,
            merge=False,
        )

    def _suffix(self) -> str:
        """Return what tells two attacks on the same rows apart."""
        parts = ["lora" if self.training.lora else "full"]
        if self.trainer != "engine":
            parts.append(self.trainer)
        return "-".join(parts)


def mix_of(bench: Bench, wanted: Mapping[Role, int], label: str) -> list[Example]:
    """Return so many first rows of each role, in a seeded order."""
    rows = [
        row for role, count in wanted.items() if count for row in rows_of(bench, role, count, label)
    ]
    return [rows[i] for i in rng(bench.seed, "mix").permutation(len(rows))]


def qi_training(
    learning_rate: float, epochs: float, batch_size: int, lora: LoRA | None = None
) -> Training:
    """Return the fine-tuning of Qi et al. 2023: rate x 0.85 an epoch, no clipping, no decay."""
    return Training(
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        schedule="epoch-decay",
        clip_norm=None,
        drop_last=True,
        lora=lora,
    )
