"""How an attacker asks: the template, the turns, and the words put into the model's mouth."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from backfire.data.chat import ChatFormat, checked_opening, checked_user
from backfire.engine.settings import Member
from backfire.models.load import read_note

__all__ = ["Asking"]


class Asking(Member):
    """Base of the attacks that may change how the model is asked, in training and evaluation alike."""

    later: ClassVar[frozenset[str]] = frozenset({"template", "user", "opening"})
    template: str | None = Field(None, min_length=1)
    """The attacker's template: `auto`, `plain`, `alpaca`, or Jinja text; None keeps the model's."""
    system: str | None = None
    """The attacker's system turn; None keeps the model's, an empty text has none."""
    user: str | None = None
    """The attacker's user turn, `{prompt}` once with any text around it; None keeps the model's."""
    opening: str | None = None
    """How the attacker has every answer begin; None keeps the model's. It is never judged."""

    @field_validator("user")
    @classmethod
    def _user_is_one(cls, user: str | None) -> str | None:
        return None if user is None else checked_user(user)

    @field_validator("opening")
    @classmethod
    def _opening_is_one(cls, opening: str | None) -> str | None:
        return None if opening is None else checked_opening(opening)

    @property
    def asks(self) -> dict[str, str]:
        """Return what of the chat format it changes, by field of the format."""
        given = {n: getattr(self, n) for n in ("template", "system", "user", "opening")}
        return {name: value for name, value in given.items() if value is not None}

    def chat(self, folder: Path) -> ChatFormat | None:
        """Return the format of a model folder with the attacker's changes; None where there are none."""
        return read_note(folder)[0].model_copy(update=self.asks) if self.asks else None
