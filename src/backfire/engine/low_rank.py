"""An adapter's attack inside a step, on the very weights that a defense trains.

    with excursion(step.parameters) as start:
        attacker = LowRank(step, start, lora, learning_rate)
        for i, loss in enumerate(fine_tune(step, batches, attacker)):
            ...                      the weights with the adapter merged in, after i + 1 of its steps

LoRA trains `A` and `B` in `w = w0 + s B A`. A loss knows them through `w` alone, so by the chain rule their
gradients follow from the one that any pass leaves in `w.grad`:

    dA = s B' dw        dB = s dw A'

That is the adapter's own gradient, with no module replaced, added or hooked, and whatever is asked at
the attacked weights, gradients with respect to `w` included, is asked of the same model. It costs a
pass over all weights where an adapter's costs two thirds of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from backfire.engine.inner import fresh_adamw
from backfire.engine.sharding import placed_like, whole
from backfire.errors import ConfigError
from backfire.numerics.weights import precise
from backfire.seeding import torch_generator

if TYPE_CHECKING:
    from backfire.engine.primitives import Step
    from backfire.engine.settings import LoRA

__all__ = ["LowRank"]


@dataclass(frozen=True)
class _Update:
    """A matrix and the two factors of what is added to it."""

    weight: nn.Parameter
    start: torch.Tensor
    """The weight without the update."""
    turned: bool
    """It is kept as (in, out), as GPT-2's are."""
    down: torch.Tensor
    """A (r, in)."""
    up: torch.Tensor
    """B (out, r)."""

    def gradient(self) -> torch.Tensor:
        """Return the loss's gradient with respect to the whole matrix (out, in), fp32."""
        if self.weight.grad is None:  # nothing went through it
            return self.up.new_zeros(len(self.up), self.down.shape[1])
        found = precise(whole(self.weight.grad))
        return found.T if self.turned else found

    def put(self, scale: float) -> None:
        """Give the weight its value with the update."""
        by = scale * (self.up @ self.down)
        by = placed_like(by.T if self.turned else by, self.weight)
        self.weight.copy_(precise(self.start) + by)


class LowRank:
    """AdamW without decay on a new adapter, as an optimizer of the weights that it belongs to.

    Starts as PEFT's adapters do: A uniform in +-1/sqrt(in), B zero, so that at first nothing changes. Holds
    the factors and their moments, in every process alike where weights are spread. Weights without an
    adapter stay as they are. In bf16 weights an update is rounded as they are.
    """

    def __init__(
        self,
        step: Step,
        start: Sequence[torch.Tensor],
        lora: LoRA,
        learning_rate: float,
    ) -> None:
        """Choose the matrices and draw A.

        Args:
            step: Whose weights are attacked. A is drawn anew for each seed and step.
            start: Their values without the adapter; read, never written, while the attack lasts.
            lora: Rank, scale and modules. Dropout would need the adapter's own inputs and is ignored.
            learning_rate: Of A and B.

        Raises:
            ConfigError: when no module has a trained weight and one of the names.
        """
        self._scale = lora.alpha / lora.rank
        draw = torch_generator(step.seed, "adapter", step.index)
        places = {id(p): i for i, p in enumerate(step.parameters)}
        self._updates: list[_Update] = []
        for name, module in _linear(step.causal.model).items():
            place = places.get(id(module.weight))
            if place is None or not _wanted(name, lora.targets):
                continue
            weight, turned = step.parameters[place], not isinstance(module, nn.Linear)
            rows, columns = reversed(weight.shape) if turned else weight.shape
            down = torch.empty(lora.rank, columns).uniform_(-1, 1, generator=draw)
            device = step.accelerator.device
            update = _Update(
                weight,
                start[place],
                turned,
                (down / math.sqrt(columns)).to(device),
                torch.zeros(rows, lora.rank, device=device),
            )
            self._updates.append(update)
        if not self._updates:
            raise ConfigError(
                f"simulating an attack with an adapter on {lora.targets}: no linear layer whose weights "
                f"are trained has such a name; there are {', '.join(_linear(step.causal.model)) or 'none'}"
            )
        factors = [factor for update in self._updates for factor in (update.down, update.up)]
        self._optimizer = fresh_adamw(factors, learning_rate, 0.0)

    @torch.no_grad()
    def step(self) -> None:
        """Move A and B by the gradient in the weights' `.grad`, and the weights with them."""
        for update in self._updates:
            slope = self._scale * update.gradient()
            update.down.grad, update.up.grad = update.up.T @ slope, slope @ update.down.T
        self._optimizer.step()
        for update in self._updates:
            update.put(self._scale)


def _linear(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers but the head, by name: those PEFT calls `all-linear`."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()  # type: ignore[operator]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }


def _wanted(name: str, targets: str | Sequence[str]) -> bool:
    """Tell whether a module is among the targets, by the last parts of its name."""
    return isinstance(targets, str) or any(f".{name}".endswith(f".{t}") for t in targets)
