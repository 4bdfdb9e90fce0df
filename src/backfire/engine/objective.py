"""What one optimizer step minimises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn

    from backfire.engine.primitives import Step

__all__ = ["Anchored", "Objective", "Remembering", "Supervised"]


@runtime_checkable
class Objective(Protocol):
    """A method's step: leave the combined gradient in `.grad`, return its terms.

    The loop empties `.grad` before, clips the combined gradient after, and makes the optimizer step.
    The returned terms must hold `loss`, the value shown and checked for being finite.
    """

    def __call__(self, step: Step) -> Mapping[str, float]:
        """Compute one step's gradient."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """An objective that remembers something between steps.

    The loop keeps it with the resumable state. What is a function of seed and step belongs elsewhere.
    """

    memory: dict[str, Any]
    """What JSON can hold; floats come back bit for bit."""


@runtime_checkable
class Anchored(Protocol):
    """An objective that looks back at the weights the training started from."""

    def begin(self, parameters: list[nn.Parameter]) -> None:
        """Take note of the trainable weights, before a saved state replaces them."""
        ...


class Supervised:
    """Cross-entropy of the answers of stream `train`; one forward and one backward pass."""

    def __call__(self, step: Step) -> Mapping[str, float]:
        """Add the gradient of the batch's mean token loss."""
        return {"loss": step.backward("train")}
