"""An attack inside a step: fine-tuning of the very weights a defense trains, in place.

    with excursion(step.parameters):
        for i, loss in enumerate(fine_tune(step, batches, optimizer)):
            ...                                    the weights after i + 1 of the attacker's steps

What comes after the body is as if nothing had happened. The moments live as long as the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from backfire.engine.batching import GlobalBatch
    from backfire.engine.primitives import Step

__all__ = ["Mover", "fine_tune", "fresh_adamw", "fresh_sgd"]


class Mover(Protocol):
    """What moves the weights by the gradient in their `.grad`: an optimizer, or `LowRank`."""

    def step(self) -> Any:
        """Make one step."""
        ...


def fine_tune(step: Step, batches: Iterable[GlobalBatch], optimizer: Mover) -> Iterator[float]:
    """Take one optimizer step on each batch's cross-entropy; yield its loss after the step.

    `.grad` is empty whenever the loop's body runs, and afterwards. One forward and one backward pass a
    batch; no clipping.

    Args:
        step: Whose parameters are moved.
        batches: One a step.
        optimizer: Of these parameters, new for every attack.
    """
    for batch in batches:
        step.clear()
        loss = step.backward(batch)
        optimizer.step()
        step.clear()
        yield loss


def fresh_adamw(
    parameters: Sequence[torch.Tensor], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW with empty moments over some tensors, every one of which decays."""
    import torch

    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused)


def fresh_sgd(parameters: Sequence[torch.Tensor], learning_rate: float) -> torch.optim.SGD:
    """Return plain gradient descent over some tensors; it keeps nothing between steps."""
    import torch

    return torch.optim.SGD(parameters, lr=learning_rate)
