"""The gradient primitives every method is a short composition of.

All norms are global: over every trainable parameter as one vector, in fp32, also where each process
holds a part of the weights. Parameters are saved and restored by copying; adding a displacement and
subtracting it again does not give the same bits.

    step.backward("train")                       plain SFT: adds the batch's gradient to `.grad`
    g = step.grads("harm")                       the gradient as a list, `.grad` left empty
    saved = snapshot(step.parameters)
    add_(step.parameters, g, -alpha / norm)      move
    restore(step.parameters, saved)              bit for bit
    with excursion(step.parameters): ...         the same around a body
    add_grads(step.parameters, g, lam)           put a share of a gradient into `.grad`
    step.put_aside(total, weight, "harm")        the same into a sum kept beside it
    with capture(modules) as outputs: ...        module outputs with retained gradients
    with perturb(modules, shifts): ...           constants added to module outputs
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from backfire.engine.batching import GlobalBatch, MicroBatch, Stream
from backfire.engine.causal import Causal, Loss
from backfire.engine.sharding import local, spread_sum, unsynced
from backfire.numerics.weights import precise
from backfire.seeding import child_seed

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "EPSILON",
    "Activations",
    "Around",
    "Gradients",
    "Passes",
    "Shift",
    "Step",
    "add_",
    "add_grads",
    "capture",
    "distance",
    "dot",
    "excursion",
    "global_norm",
    "perturb",
    "restore",
    "set_grads",
    "snapshot",
]

Gradients = list[torch.Tensor]
"""One tensor a trainable parameter, in their order, fp32."""

Activations = list[list[torch.Tensor]]
"""One list a micro-batch of this process, with one tensor (B, T, D) a module."""

Shift = Callable[[torch.Tensor], torch.Tensor]
"""From a module's output to what is added to it."""

Around = Callable[[int], AbstractContextManager[object]]
"""From the index of a micro-batch to what surrounds its passes, the backward pass included."""

EPSILON = 1e-7
"""Guards the denominators of normalised gradients. Vaccine, Booster and CTRAP's value."""


@dataclass
class Passes:
    """Forward and backward passes over a global batch, however many micro-batches it took."""

    forwards: int = 0
    backwards: int = 0
    tokens: int = 0
    """Tokens fed forward, padding not counted."""
    supervised: int = 0
    """Those of them that were predicted."""


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
    streams: Mapping[str, Stream] = field(default_factory=dict)
    """For batches beside those of this step."""
    seed: int = 0
    """The stage's."""

    @property
    def causal(self) -> Causal:
        """Return the model without its distributed wrapper."""
        model: Any = self.model
        causal: Causal = model if isinstance(model, Causal) else model.module
        return causal

    def backward(
        self,
        stream: str | GlobalBatch = "train",
        weight: float = 1.0,
        loss: Loss | None = None,
        around: Around | None = None,
        over: float | None = None,
    ) -> float:
        """Add `weight` times the gradient of a stream's mean token loss to `.grad`.

        Args:
            stream: A stream's batch of this step by its name, or any batch.
            weight: Factor of the gradient.
            loss: Sum over a micro-batch; None: cross-entropy.
            around: What surrounds each micro-batch's passes.
            over: What the sum over the global batch is divided by; None: its supervised tokens.

        Returns:
            The sum over the global batch, so divided: by default the mean loss in nats a token.
        """
        batch = self._batch(stream)
        over = over or max(1, batch.supervised)
        total = torch.zeros((), device=self.accelerator.device)
        parts = self._parts(batch)
        for index, part in enumerate(parts):
            with self._synced(index == len(parts) - 1), around(index) if around else nullcontext():
                value = self._sum(part, loss)
                # Distributed wrappers average over processes; ours is a sum over all tokens.
                self.accelerator.backward(value * (weight * self.world / over))
            total += value.detach()
        self.passes.backwards += 1
        return self._over_processes(total, batch) / over

    def grads(
        self,
        stream: str | GlobalBatch = "train",
        loss: Loss | None = None,
        around: Around | None = None,
        over: float | None = None,
    ) -> tuple[float, Gradients]:
        """Return a stream's mean loss and its gradient, fp32; `.grad` is empty before and after."""
        self.clear()
        value = self.backward(stream, loss=loss, around=around, over=over)
        taken = [
            precise(torch.zeros_like(p) if p.grad is None else p.grad) for p in self.parameters
        ]
        self.clear()
        return value, taken

    def put_aside(
        self,
        aside: Gradients,
        weight: float,
        stream: str | GlobalBatch = "train",
        loss: Loss | None = None,
        over: float | None = None,
    ) -> float:
        """Add `weight` times a stream's gradient to a sum kept aside; return the mean loss.

        `.grad` is empty before and after.

        Args:
            aside: The sum; empty at first.
            weight: Factor of the gradient, not of the returned loss.
            stream: As for `backward`, like the rest.
            loss: Sum over a micro-batch; None: cross-entropy.
            over: What the sum over the global batch is divided by; None: its supervised tokens.
        """
        value, gradient = self.grads(stream, loss, over=over)
        if aside:
            add_(aside, gradient, weight)
        else:
            aside.extend(part.mul_(weight) for part in gradient)
        return value

    @torch.no_grad()
    def loss(
        self,
        stream: str | GlobalBatch = "train",
        loss: Loss | None = None,
        around: Around | None = None,
        over: float | None = None,
    ) -> float:
        """Return a stream's mean loss; one forward pass, no gradient."""
        batch = self._batch(stream)
        over = over or max(1, batch.supervised)
        total = torch.zeros((), device=self.accelerator.device)
        for index, part in enumerate(self._parts(batch)):
            with around(index) if around else nullcontext():
                total += self._sum(part, loss)
        return self._over_processes(total, batch) / over

    def activation_grads(
        self,
        modules: Sequence[nn.Module],
        stream: str | GlobalBatch = "train",
        loss: Loss | None = None,
    ) -> tuple[float, Activations]:
        """Return a stream's mean loss and its gradient with respect to modules' outputs, fp32.

        One forward and one backward pass; `.grad` is empty before and after. The gradients are this
        process's: those of its own rows.
        """
        found: Activations = []

        @contextmanager
        def recorded(index: int) -> Iterator[None]:
            with capture(modules) as outputs:
                yield
            # Checkpointing calls the modules again on the way back; those outputs are not the graph's.
            found.append(
                [
                    torch.zeros_like(o, dtype=torch.float32) if o.grad is None else o.grad.float()
                    for o in outputs[: len(modules)]
                ]
            )

        self.clear()
        value = self.backward(stream, loss=loss, around=recorded)
        self.clear()
        # Without the factor that undoes the averaging of parameter gradients.
        return value, [[gradient / self.world for gradient in part] for part in found]

    def activation_norm(self, gradients: Activations) -> float:
        """Return the norm over all modules, micro-batches and processes as one vector."""
        norms = [gradient.norm() for part in gradients for gradient in part]
        own = float(torch.stack(norms).norm()) if norms else 0.0
        return math.sqrt(self.total(own * own))

    def total(self, value: float) -> float:
        """Return the sum of each process's value."""
        if self.world == 1:
            return value
        own = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(own, reduction="sum"))

    @property
    def world(self) -> int:
        """Return the number of processes."""
        count: int = self.accelerator.num_processes
        return count

    @contextmanager
    def randomness(self, name: str) -> Iterator[None]:
        """Draw dropout masks from a generator of this step's own while the body runs.

        Passes under the same name share masks, so that their difference is not that of two masks; what
        comes after the body draws what it would have drawn without it.
        """
        device = self.accelerator.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(child_seed(self.seed, "step", self.index, name))
            yield

    def clear(self) -> None:
        """Empty `.grad` of every trainable parameter."""
        for parameter in self.parameters:
            parameter.grad = None

    def _batch(self, stream: str | GlobalBatch) -> GlobalBatch:
        return self.batches[stream] if isinstance(stream, str) else stream

    def _parts(self, batch: GlobalBatch) -> list[MicroBatch]:
        """Return this process's micro-batches, on its device."""
        parts = batch.micro(self.token_budget, self.accelerator.process_index, self.world)
        return [part.to(self.accelerator.device) for part in parts]

    def _synced(self, last: bool) -> AbstractContextManager[object]:
        """Exchange gradients between processes only with the last micro-batch."""
        if last or self.world == 1:
            return nullcontext()
        if hasattr(self.model, "set_requires_gradient_sync"):
            return unsynced(self.model)
        context: AbstractContextManager[object] = self.accelerator.no_sync(self.model)
        return context

    def _sum(self, part: MicroBatch, loss: Loss | None) -> torch.Tensor:
        total: torch.Tensor = self.model(part, loss).sum()
        return total if part.num_tokens else 0 * total  # a loss of its own may see more than tokens

    def _over_processes(self, total: torch.Tensor, batch: GlobalBatch) -> float:
        """Count a forward pass and return the sum of all processes' losses."""
        self.passes.forwards += 1
        self.passes.tokens += batch.tokens
        self.passes.supervised += batch.supervised
        if self.world > 1:
            total = self.accelerator.reduce(total, reduction="sum")
        return float(total)


@torch.no_grad()
def global_norm(tensors: Sequence[torch.Tensor]) -> float:
    """Return the Euclidean norm of the tensors as one vector."""
    own = float(torch.stack([precise(local(t)).norm() for t in tensors]).norm())
    return math.sqrt(spread_sum(own * own, tensors))


@torch.no_grad()
def distance(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    """Return the Euclidean distance of two lists of tensors as vectors; holds one tensor's difference."""
    return math.hypot(*(global_norm([a - b]) for a, b in zip(left, right, strict=True)))


@torch.no_grad()
def dot(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    """Return the inner product of two lists of tensors as vectors."""
    products = [
        (precise(local(a)) * precise(local(b))).sum() for a, b in zip(left, right, strict=True)
    ]
    return spread_sum(float(torch.stack(products).sum()), left)


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


@contextmanager
def excursion(parameters: Sequence[torch.Tensor]) -> Iterator[Sequence[torch.Tensor]]:
    """Undo, bit for bit, whatever the body does to the parameters; holds one copy of them, and gives it."""
    saved = snapshot(parameters)
    try:
        yield saved
    finally:
        restore(parameters, saved)


@torch.no_grad()
def add_grads(
    parameters: Sequence[nn.Parameter], gradients: Sequence[torch.Tensor], scale: float = 1.0
) -> None:
    """Add `scale` times gradients to `.grad`."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        share = (scale * gradient).to(parameter.dtype)
        parameter.grad = share if parameter.grad is None else parameter.grad.add_(share)


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
        if torch.is_grad_enabled():
            tensor.requires_grad_().retain_grad()  # nothing before it may be trained
        outputs.append(tensor)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def perturb(modules: Sequence[nn.Module], shifts: Sequence[torch.Tensor | Shift]) -> Iterator[None]:
    """Add a constant, or what a function makes of the output, to each module's output in the body."""

    def adder(shift: torch.Tensor | Shift) -> Callable[[nn.Module, Any, Any], Any]:
        def moved(output: torch.Tensor) -> torch.Tensor:
            by = shift if isinstance(shift, torch.Tensor) else shift(output)
            return output + by.detach().to(output.dtype)

        def add(module: nn.Module, arguments: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (moved(output[0]), *output[1:])
            return moved(output)

        return add

    handles = [
        module.register_forward_hook(adder(shift))
        for module, shift in zip(modules, shifts, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
