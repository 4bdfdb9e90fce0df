"""Optimizer steps made by hand: of a tiny model without the loop, and of functions without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from backfire.data.chat import Chat, ChatFormat
from backfire.engine.batching import Stream
from backfire.engine.causal import Causal
from backfire.engine.primitives import Gradients, Passes, Step
from backfire.models.tiny import byte_tokenizer
from backfire.records import Example

CHAT = Chat(byte_tokenizer(), ChatFormat())


def step_of(
    folder: Path,
    rows: Mapping[str, Sequence[Example]],
    *,
    batch_size: int = 4,
    token_budget: int = 2048,
    index: int = 0,
    seed: int = 0,
    double: bool = False,
    together: Sequence[str] = (),
) -> Step:
    """Return a step over all weights of a saved tiny model, with the batches the loop would give it.

    Args:
        folder: The model.
        rows: Of each stream.
        batch_size: Of all streams.
        token_budget: Of a micro-batch.
        index: Of the step.
        seed: Of the stage.
        double: Compute in fp64, with attention that can be differentiated twice.
        together: Streams in `train`'s order.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model.to(torch.float64 if double else torch.float32).requires_grad_(True).train()
    streams = {
        name: Stream(
            name,
            examples,
            CHAT,
            max_length=128,
            batch_size=batch_size,
            seed=seed,
            order="train" if name in together else "",
        )
        for name, examples in rows.items()
    }
    causal = Causal(model, 1 << 26).train()
    return Step(
        index,
        causal,
        list(causal.parameters()),
        {name: stream.batch(index) for name, stream in streams.items()},
        Accelerator(cpu=True),
        token_budget,
        Passes(),
        streams,
        seed,
    )


def gradient_of(step: Step) -> torch.Tensor:
    """Return what a method left in `.grad`, as one vector."""
    return torch.cat([p.grad.flatten() for p in step.parameters if p.grad is not None])


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return tensors as one vector."""
    return torch.cat([t.detach().flatten() for t in tensors])


Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Toy:
    """A step whose streams are functions of one vector: what a method does to it can be worked out."""

    at: torch.Tensor
    losses: Mapping[str, Function]
    visited: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    """The stream of each pass, and where it was taken."""

    def __post_init__(self) -> None:
        self.parameters = [torch.nn.Parameter(self.at.clone().double())]
        self.batches = {name: name for name in self.losses}

    def backward(self, stream: str = "train", weight: float = 1.0, *_: Any, **__: Any) -> float:
        (w,) = self.parameters
        self.visited.append((stream, w.detach().clone()))
        value = self.losses[stream](w)
        (weight * value).backward()
        return float(value.detach())

    def grads(self, stream: str = "train", *_: Any, **__: Any) -> tuple[float, Gradients]:
        (w,) = self.parameters
        w.grad = None
        value = self.backward(stream)
        taken, w.grad = w.grad, None
        return value, [taken]

    @contextmanager
    def randomness(self, name: str) -> Iterator[None]:
        yield
