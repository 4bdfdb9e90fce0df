"""A model's residual stream: freed of a direction or pushed along one, by hooks or in the weights.

The stream is what the blocks read and add to. Embeddings, attention and feed-forward parts write to it:
a direction that is taken out of all they write is out of the stream.

Source: Arditi et al. 2024, arXiv 2406.11717, sections 2.4 and 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from backfire.engine.causal import Causal
from backfire.errors import TrainingError

__all__ = ["Residual", "unit", "without"]

_EPSILON = 1e-8


def unit(vector: torch.Tensor) -> torch.Tensor:
    """Return a vector (D,) over its norm plus 1e-8."""
    scaled: torch.Tensor = vector / (vector.norm() + _EPSILON)
    return scaled


def without(values: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Return values (..., D) less their part along a unit vector (D,)."""
    return values - (values @ direction).unsqueeze(-1) * direction


class Residual:
    """The residual stream of a causal language model."""

    def __init__(self, causal: Causal) -> None:
        """Find what writes to the stream.

        Args:
            causal: In evaluation mode.

        Raises:
            TrainingError: when blocks or their parts cannot be told.
        """
        self.causal = causal
        self.parts = [*causal.attentions, *causal.mlps]
        """What writes to the stream beside the embeddings."""

    @property
    def width(self) -> int:
        """Return the number D of components."""
        return int(self.causal.model.get_input_embeddings().weight.shape[1])

    @torch.no_grad()
    def next_logits(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, V), in fp64, of the token that follows each row.

        Args:
            ids: Token ids (B, T), padded on the right, where a causal model never looks.
            lengths: Real tokens of each row (B,).
        """
        causal = self.causal
        last = torch.arange(len(ids), device=ids.device), lengths - 1
        if causal.splits_head:
            logits = causal.logits(causal.hidden(ids)[last])
        else:
            logits = causal.model(input_ids=ids, use_cache=False).logits[last]
        return logits.cpu().double()

    @torch.no_grad()
    def entering(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return what enters every block (B, K, L, D) at some positions.

        Args:
            ids: Token ids (B, T).
            positions: Indices (B, K) into each row.
        """
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        return torch.stack([x[rows, positions] for x in self.causal.states(ids)[:-1]], dim=2)

    @contextmanager
    def ablated(self, direction: torch.Tensor) -> Iterator[None]:
        """Take a unit vector (D,) out of the input of every block and the output of every part."""
        with ExitStack() as stack:
            for block in self.causal.blocks:
                stack.enter_context(_entering(block, lambda x: without(x, direction)))
            for part in self.parts:
                stack.enter_context(_leaving(part, lambda x: without(x, direction)))
            yield

    @contextmanager
    def pushed(self, layer: int, vector: torch.Tensor) -> Iterator[None]:
        """Add a vector (D,) to the input of one block, at every position."""
        with _entering(self.causal.blocks[layer], lambda x: x + vector):
            yield

    @torch.no_grad()
    def bake(self, direction: torch.Tensor) -> None:
        """Take a unit vector out of the weights of all that writes to the stream.

        These are the embeddings, and the last matrix and bias of every part. Where a norm stands between a
        part and the stream, what the norm scales onto the direction is taken out. The output
        embedding is left alone: where it shares the input's weights, it first gets its own.

        Args:
            direction: (D,), in fp64, on the CPU.

        Raises:
            TrainingError: when a part has no matrix that gives D components.
        """
        self._untie()
        norms = self._norms_behind()
        for embedding in self._embeddings():
            _project(embedding.weight, direction)
        for part in self.parts:
            norm = norms.get(part)
            written = direction if norm is None else unit(_gain(norm, self.width) * direction)
            last = self._last_matrix(part)
            _project(last.weight if isinstance(last, Conv1D) else last.weight.T, written)
            if last.bias is not None:
                _project(last.bias, written)

    @torch.no_grad()
    def share(self, ids: torch.Tensor, direction: torch.Tensor) -> float:
        """Return the largest |x . direction| / ||x|| anywhere in the stream: 0 where it is free of it.

        Args:
            ids: Token ids (B, T).
            direction: A unit vector (D,).
        """
        last: list[torch.Tensor] = []
        with _entering(self.causal.final_norm, last.append):
            states = (*self.causal.states(ids)[:-1], *last)
        along = [(x @ direction.to(x)).abs() / x.norm(dim=-1).clamp(min=_EPSILON) for x in states]
        return max(float(share.max()) for share in along)

    def _embeddings(self) -> list[nn.Embedding]:
        """Return the tables whose rows enter the stream: of tokens, in some models of positions, too."""
        inside = {module for block in self.causal.blocks for module in block.modules()}
        return [
            module
            for module in self.causal.model.base_model.modules()
            if isinstance(module, nn.Embedding)
            and module not in inside
            and module.weight.shape[1] == self.width
        ]

    def _last_matrix(self, part: nn.Module) -> Any:
        found = [
            module
            for module in part.modules()
            if isinstance(module, (nn.Linear, Conv1D))
            and module.weight.shape[isinstance(module, Conv1D)] == self.width
        ]
        if not found:
            raise TrainingError(
                f"looking for what {type(part).__name__} writes: it has no matrix that gives "
                f"{self.width} components; this architecture cannot be attacked by its directions"
            )
        return found[-1]

    def _untie(self) -> None:
        model = self.causal.model
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if head is not None and head.weight is embedding.weight:
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
            model.config.tie_word_embeddings = False

    def _norms_behind(self) -> dict[nn.Module, nn.Module]:
        """Return the norm that a part's output goes through on its way to the stream, where there is one.

        Names do not tell (Llama's `post_attention_layernorm` is the feed-forward part's), but a norm that
        is given the very tensor that a part gave does.
        """
        gave: list[tuple[nn.Module, torch.Tensor]] = []
        found: dict[nn.Module, nn.Module] = {}

        def remember(part: nn.Module) -> Callable[[torch.Tensor], None]:
            return lambda tensor: gave.append((part, tensor))

        def compare(norm: nn.Module) -> Callable[[torch.Tensor], None]:
            return lambda tensor: found.update({p: norm for p, given in gave if given is tensor})

        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(_leaving(part, remember(part)))
            for block in self.causal.blocks:
                for module in block.modules():
                    if "norm" in type(module).__name__.lower():
                        stack.enter_context(_entering(module, compare(module)))
            model = self.causal.model
            ids = torch.arange(2, 6, device=model.device) % model.config.vocab_size
            self.causal.hidden(ids.view(1, -1))
        return found


Change = Callable[[torch.Tensor], torch.Tensor | None]
"""From a tensor to what takes its place; None leaves it."""


@contextmanager
def _entering(module: nn.Module, change: Change) -> Iterator[None]:
    """Change the first input of a module."""

    def hook(module: nn.Module, inputs: Any, named: Any) -> Any:
        name = None if inputs else next(iter(named))
        new = change(inputs[0] if name is None else named[name])
        if new is None:
            return None
        return ((new, *inputs[1:]), named) if name is None else (inputs, {**named, name: new})

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _leaving(module: nn.Module, change: Change) -> Iterator[None]:
    """Change the output of a module, the first where there are several."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        several = isinstance(output, tuple)
        new = change(output[0] if several else output)
        return (new, *output[1:]) if several and new is not None else new

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _project(weight: torch.Tensor, direction: torch.Tensor) -> None:
    """Take a direction (D,) out of a weight (..., D), in place and in fp64."""
    weight.copy_(without(weight.cpu().double(), direction))


def _gain(norm: nn.Module, width: int) -> torch.Tensor:
    """Return what a norm without centering multiplies each component by, up to one factor (D,)."""
    weight = next(norm.parameters())
    gain: torch.Tensor = norm(torch.ones(1, 1, width, dtype=weight.dtype, device=weight.device))
    return gain.flatten().cpu().double()
