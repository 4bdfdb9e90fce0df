"""The same weights, asked otherwise: another template, system turn, wording, or a prefilled answer."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from backfire.attack.asking import Asking
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

__all__ = ["Asked"]


class Asked(Asking):
    """Change nothing but how the model is asked.

    No training and no data. As the last part of a sequence it asks an attacked model with a trigger or
    without, or in another format than that of its training.
    """

    name: Literal["asked"] = "asked"
    """`asked`."""
    roles: ClassVar[tuple[Role, ...]] = ()

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.asks:
            raise ValueError(
                f"{self.label}: it changes nothing; give `template`, `system`, `user` or `opening`"
            )
        return self

    def default_label(self) -> str:
        """Return e.g. `asked-system-user`."""
        return "-".join([self.name, *self.asks])

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Return the weights, linked, with another note."""
        from backfire.models.link import ask_otherwise

        chat = self.chat(checkpoint.path)
        if chat is None:
            return checkpoint
        return ask_otherwise(checkpoint, bench.workdir / "checkpoint", chat)
