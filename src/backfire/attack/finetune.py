"""What the fine-tuning attacks share: a trainer, the attacker's way of asking, enough rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from backfire.attack.asking import Asking
from backfire.engine.rows import rows_of
from backfire.engine.settings import LoRA, Trained, Training
from backfire.records import Checkpoint, Example
from backfire.stage import Bench

__all__ = ["FineTuning", "qi_training", "rows_of"]


class FineTuning(Asking, Trained):
    """Base of the attacks that fine-tune."""

    trainer: Literal["engine", "trl"] = "engine"
    """Our loop, or TRL's SFTTrainer: verdicts have flipped with the trainer (arXiv 2412.07097)."""

    def attack(self, checkpoint: Checkpoint, bench: Bench, rows: Sequence[Example]) -> Checkpoint:
        """Fine-tune on the rows; an adapter is kept as an adapter."""
        chat = self.chat(checkpoint.path)
        if self.trainer == "trl":
            from backfire.engine.trl import train_with_trl

            return train_with_trl(checkpoint, bench, self.training, rows, self, chat=chat)
        from backfire.engine.loop import train

        return train(
            checkpoint, bench, self.training, {"train": rows}, self, chat=chat, merge=False
        )

    def _suffix(self) -> str:
        """Return what tells two attacks on the same rows apart."""
        parts = ["lora" if self.training.lora else "full"]
        if self.trainer != "engine":
            parts.append(self.trainer)
        return "-".join(parts)


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
