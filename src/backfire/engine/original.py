"""The model a training started from, seen through its own weights instead of a second model's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backfire.engine.primitives import excursion, restore, snapshot

if TYPE_CHECKING:
    import torch
    from torch import nn

    from backfire.engine.primitives import Step

__all__ = ["Original"]


class Original:
    """Keeps the trainable weights as they were; an adapter's are few, and at its start it does nothing.

    Works wherever the weights are spread, since only their values change.
    """

    def __init__(self) -> None:
        self._weights: list[torch.Tensor] = []

    def keep(self, parameters: list[nn.Parameter]) -> None:
        """Take copies; for an objective's `begin`."""
        self._weights = snapshot(parameters)

    @contextmanager
    def at_work(self, step: Step) -> Iterator[None]:
        """Give the model its first weights, without dropout, while the body runs.

        The body makes no gradients that outlive it. Holds one copy of the present weights.
        """
        training = step.model.training
        with excursion(step.parameters):
            restore(step.parameters, self._weights)
            step.model.eval()
            try:
                yield
            finally:
                step.model.train(training)
