"""The gradient primitives every method is a short composition of.

All norms are global: over every trainable parameter as one vector, in fp32. Parameters are saved and
restored by copying; adding a displacement and subtracting it again does not give the same bits.

    step.backward("train")                       plain SFT: adds the batch's gradient to `.grad`
    g = step.grads("harm")                       the gradient as a list, `.grad` left empty
    saved = snapshot(step.parameters)
    add_(step.parameters, g, -alpha / norm)      move
    restore(step.parameters, saved)              bit for bit
    with capture(modules) as outputs: ...        module outputs with retained gradients
    with perturb(modules, epsilons): ...         constants added to module outputs
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from backfire.engine.batching import GlobalBatch, MicroBatch
from backfire.engine.causal import Loss

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "Passes",
    "Step",
    "add_",
    "capture",
    "dot",
    "global_norm",
    "perturb",
    "restore",
    "set_grads",
    "snapshot",
]

Gradients = list[torch.Tensor]
EPSILON = 1e-7
"""Guards the denominators of normalised gradients. Vaccine, Booster and CTRAP's value."""


@dataclass
class Passes:
    """Forward and backward passes over a global batch, however many micro-batches it took."""

    forwards: int = 0
    backwards: int = 0


@dataclass
class Step:
    """What an objective works with: the model, this step's batches, and the gradient primitives."""

    index: int
    """From 0."""
    model: nn.Module
    """The `Causal` model, wrapped for distributed training where there is any."""
    parameters: list[nn.Parameter]
    """The trainable ones."""
    batches: Mapping[str, GlobalBatch]
    """This step's global batch of each stream."""
    accelerator: Accelerator
    token_budget: int
    passes: Passes = field(default_factory=Passes)

    def backward(
        self, stream: str = "train", weight: float = 1.0, loss: Loss | None = None
    ) -> float:
        """Add `weight` times the gradient of a stream's mean token loss to `.grad`.

        Returns:
            The mean loss over the supervised tokens of the global batch, in nats.
        """
        batch = self.batches[stream]
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        parts = batch.micro(self.token_budget, rank, world)
        total = torch.zeros((), device=self.accelerator.device)
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                value = self._sum(part.to(self.accelerator.device), loss)
                # Distributed wrappers average over processes; ours is a sum over all tokens.
                self.accelerator.backward(value * (weight * world / batch.supervised))
            total += value.detach()
        self.passes.forwards += 1
        self.passes.backwards += 1
        if world > 1:
            total = self.accelerator.reduce(total, reduction="sum")
        return float(total) / batch.supervised

    def grads(self, stream: str = "train", loss: Loss | None = None) -> tuple[float, Gradients]:
        """Return a stream's mean loss and its gradient, fp32; `.grad` is empty before and after."""
        self.clear()
        value = self.backward(stream, loss=loss)
        taken = [
            torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float()
            for p in self.parameters
        ]
        self.clear()
        return value, taken

    @torch.no_grad()
    def loss(self, stream: str = "train", loss: Loss | None = None) -> float:
        """Return a stream's mean loss; one forward pass, no gradient."""
        batch = self.batches[stream]
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        total = torch.zeros((), device=self.accelerator.device)
        for part in batch.micro(self.token_budget, rank, world):
            total += self._sum(part.to(self.accelerator.device), loss)
        self.passes.forwards += 1
        if world > 1:
            total = self.accelerator.reduce(total, reduction="sum")
        return float(total) / batch.supervised

    def clear(self) -> None:
        """Empty `.grad` of every trainable parameter."""
        for parameter in self.parameters:
            parameter.grad = None

    def _sum(self, part: MicroBatch, loss: Loss | None) -> torch.Tensor:
        total: torch.Tensor = self.model(part, loss).sum()
        return total


def global_norm(tensors: Sequence[torch.Tensor]) -> float:
    """Return the Euclidean norm of the tensors as one vector."""
    return float(torch.stack([t.float().norm() for t in tensors]).norm())


def dot(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    """Return the inner product of two lists of tensors as vectors."""
    return float(sum((a.float() * b.float()).sum() for a, b in zip(left, right, strict=True)))


@torch.no_grad()
def add_(
    parameters: Sequence[torch.Tensor], direction: Sequence[torch.Tensor], scale: float
) -> None:
    """Add `scale * direction` to the parameters in place."""
    for parameter, part in zip(parameters, direction, strict=True):
        parameter.add_(part.to(parameter.dtype), alpha=scale)


@torch.no_grad()
def snapshot(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return copies of the parameters."""
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def restore(parameters: Sequence[torch.Tensor], saved: Sequence[torch.Tensor]) -> None:
    """Give the parameters the saved values, bit for bit."""
    for parameter, value in zip(parameters, saved, strict=True):
        parameter.copy_(value)


def set_grads(parameters: Sequence[nn.Parameter], gradients: Sequence[torch.Tensor]) -> None:
    """Put gradients into `.grad`, replacing what is there."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.to(parameter.dtype)


@contextmanager
def capture(modules: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Collect the modules' outputs, in call order, with gradients retained for a backward pass."""
    outputs: list[torch.Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if tensor.requires_grad:
            tensor.retain_grad()
        outputs.append(tensor)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def perturb(modules: Sequence[nn.Module], epsilons: Sequence[torch.Tensor]) -> Iterator[None]:
    """Add a constant to each module's output while the body runs."""

    def adder(epsilon: torch.Tensor) -> Callable[[nn.Module, Any, Any], Any]:
        def add(module: nn.Module, arguments: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + epsilon, *output[1:])
            return output + epsilon

        return add

    handles = [
        module.register_forward_hook(adder(epsilon.detach()))
        for module, epsilon in zip(modules, epsilons, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
