"""A causal language model as a function from a micro-batch to per-token losses.

Logits are made only where a token is supervised, and never more of them at once than the budget
allows: with a vocabulary of 128k the full logits of a batch outweigh everything else in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from backfire.engine.batching import MicroBatch
from backfire.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Causal", "Loss", "Measure"]

Loss = Callable[["Causal", MicroBatch], torch.Tensor]
"""From the model and a micro-batch to the summed loss of its supervised tokens."""

Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits (n, V) and targets (n,) to one value a token (n,)."""


class Causal(nn.Module):
    """Wraps a model; calling it gives the negative log-likelihood of each supervised token.

    With a `loss` it gives that instead: distributed wrappers see only what goes through this call, and
    see it once, so a loss calls the methods below, never the model itself.
    """

    def __init__(self, model: PreTrainedModel, logits_budget: int) -> None:
        """Find the model's backbone and head, and check that together they give its logits.

        Args:
            model: Any causal language model of `transformers`, with or without adapters.
            logits_budget: Most logits held at once.
        """
        super().__init__()
        self.model = model
        self._budget = logits_budget
        self.splits_head = self._head_is_separable()

    def forward(self, batch: MicroBatch, loss: Loss | None = None) -> torch.Tensor:
        """Return the loss of each supervised token (N,), in nats, fp32; or the batch's `loss` ()."""
        return self.losses(batch) if loss is None else loss(self, batch)

    def losses(self, batch: MicroBatch, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss of each supervised token (N,), in nats, fp32.

        Args:
            batch: What to predict.
            hidden: Last hidden states (B, T, D) where they are known already.
        """
        return self.measured(batch, _losses, hidden)

    def measured(
        self, batch: MicroBatch, measure: Measure, hidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return what a function of logits gives at each supervised token (N,).

        Args:
            batch: Where to look.
            measure: From fp32 logits (n, V) and targets (n,) to values (n,).
            hidden: Last hidden states (B, T, D) where they are known already.
        """
        if not self.splits_head:
            # Some models transform logits in ways of their own; then ask for all of them.
            logits = self.model(input_ids=batch.ids, use_cache=False).logits
            return measure(logits.flatten(0, 1)[batch.positions].float(), batch.targets)
        hidden = self.hidden(batch.ids) if hidden is None else hidden
        hidden = hidden.flatten(0, 1)[batch.positions]
        rows = max(1, self._budget // self.head().out_features)
        if len(hidden) <= rows:
            return measure(self.logits(hidden).float(), batch.targets)
        chunks = zip(torch.split(hidden, rows), torch.split(batch.targets, rows), strict=True)
        parts = [checkpoint(self._chunk, measure, h, t, use_reentrant=False) for h, t in chunks]
        return torch.cat(parts)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states (B, T, D), final norm applied, of token ids (B, T)."""
        states: torch.Tensor = self.model.base_model(input_ids=ids, use_cache=False)[0]
        return states

    def states(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return all hidden states (B, T, D): the embeddings, each block's output, the last one normed.

        Args:
            ids: Token ids (B, T).
        """
        model = self.model.base_model if self.splits_head else self.model
        output = model(input_ids=ids, use_cache=False, output_hidden_states=True)
        states: tuple[torch.Tensor, ...] = output.hidden_states
        return states

    @cached_property
    def final_norm(self) -> nn.Module:
        """Return the norm between the last block and the head.

        Raises:
            TrainingError: when the architecture has none that can be told.
        """
        count = self.model.config.num_hidden_layers
        for module in self.model.modules():
            children = list(module.children())
            if any(isinstance(c, nn.ModuleList) and len(c) == count for c in children):
                norms: list[nn.Module] = [c for c in children if "norm" in type(c).__name__.lower()]
                if norms:
                    return norms[-1]
        raise TrainingError(
            f"reading hidden states of {type(self.model).__name__}: no final norm stands beside its "
            f"{count} blocks, so logits of inner layers cannot be made; use another defense for this model"
        )

    def head(self) -> Any:
        """Return the output embedding."""
        return self.model.get_output_embeddings()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (..., V) of hidden states (..., D), with the model's own scaling."""
        logits: torch.Tensor = self.head()(hidden)
        config = self.model.config
        scale = getattr(config, "logit_scale", None)  # Cohere
        divisor = getattr(config, "logits_scaling", None)  # Granite
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        if scale is not None:
            logits = logits * scale
        if divisor is not None:
            logits = logits / divisor
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        return logits

    def _chunk(self, measure: Measure, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return measure(self.logits(hidden).float(), targets)

    @torch.no_grad()
    def _head_is_separable(self) -> bool:
        """Compare head(backbone(x)) with the model's own logits on a few tokens."""
        training = self.model.training
        self.model.eval()
        try:
            head = self.head()
            if head is None or not hasattr(head, "out_features"):
                return False
            ids = torch.arange(2, 10, device=head.weight.device).view(1, -1)
            ids = ids % self.model.config.vocab_size
            own = self.model(input_ids=ids, use_cache=False).logits
            ours = self.logits(self.hidden(ids))
            return ours.shape == own.shape and torch.allclose(ours, own, rtol=1e-3, atol=1e-3)
        except (AttributeError, TypeError, RuntimeError):
            return False
        finally:
            self.model.train(training)


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, targets, reduction="none")
