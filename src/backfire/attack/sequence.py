"""Several attacks, one after the other, as one attack."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from backfire.engine.settings import Member
from backfire.records import Checkpoint, Role
from backfire.stage import Bench
from backfire.store import StageFolder, content_key

if TYPE_CHECKING:
    from backfire.attack import AnyAttack

__all__ = ["AttackSequence"]


class _OfParts:
    """The rows a sequence reads: those of its parts."""

    def __get__(self, one: AttackSequence | None, owner: type[AttackSequence]) -> tuple[Role, ...]:
        parts = () if one is None else one.parts
        return tuple(dict.fromkeys(role for part in parts for role in part.roles))


class AttackSequence(Member):
    """Do one attack after the other, each on what the former left.

    For example harmful fine-tuning and then benign repair, the reverse, un-learning first, or fine-tuning
    and then asking in another way. A run trains a part once for all attacks that begin with it.
    """

    name: Literal["sequence"] = "sequence"
    """`sequence`."""
    roles: ClassVar[tuple[Role, ...]] = _OfParts()  # type: ignore[assignment]
    parts: tuple[AnyAttack, ...] = Field(min_length=2)
    """The attacks, first to last; each with its own settings."""

    @field_validator("parts")
    @classmethod
    def _all_do_something(cls, parts: tuple[AnyAttack, ...]) -> tuple[AnyAttack, ...]:
        if any(part.name == "none" for part in parts):
            raise ValueError("a part that does nothing; leave it out")
        return parts

    def default_label(self) -> str:
        """Return e.g. `mft-100-full+bft-full`."""
        return "+".join(part.label for part in self.parts)

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Do the parts in folders of their own; those that are done already are passed over."""
        made = checkpoint
        for number, part in enumerate(self.parts, 1):
            key = content_key(made.key, part, bench.seed)
            stage = StageFolder(bench.workdir, f"part-{number}", key)
            with stage.open() as folder:
                done = stage.done()
                if done is None:
                    started = time.time()
                    label = f"{bench.label or self.label}, part {number}: {part.label}"
                    made = part(made, replace(bench, workdir=folder, label=label))
                    relative = str(made.path.relative_to(folder))
                    stage.finish(started, checkpoint=relative, base=str(made.base or ""))
                    made = replace(made, key=key)
                else:
                    made = Checkpoint(
                        folder / done["checkpoint"],
                        key,
                        type(folder)(done["base"]) if done["base"] else None,
                        checkpoint.trust_remote_code,
                    )
        return made
