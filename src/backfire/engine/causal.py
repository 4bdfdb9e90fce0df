"""A causal language model as a function from a micro-batch to per-token losses.

Logits are made only where a token is supervised, and never more of them at once than the budget
allows: with a vocabulary of 128k the full logits of a batch outweigh everything else in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from backfire.engine.batching import MicroBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Causal", "Loss"]

Loss = Callable[["Causal", MicroBatch], torch.Tensor]
"""From the model and a micro-batch to the summed loss of its supervised tokens."""


class Causal(nn.Module):
    """Wraps a model; calling it gives the negative log-likelihood of each supervised token.

    With a `loss` it gives that instead: distributed wrappers see only what goes through this call, and
    see it once, so a loss calls `losses`, `hidden` and `logits`, never the model itself.
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

    def losses(self, batch: MicroBatch) -> torch.Tensor:
        """Return the loss of each supervised token (N,), in nats, fp32."""
        if not self.splits_head:
            # Some models transform logits in ways of their own; then ask for all of them.
            logits = self.model(input_ids=batch.ids, use_cache=False).logits
            return _losses(logits.flatten(0, 1)[batch.positions], batch.targets)
        hidden = self.hidden(batch.ids).flatten(0, 1)[batch.positions]
        head = self.head()
        rows = max(1, self._budget // head.out_features)
        if len(hidden) <= rows:
            return _losses(self.logits(hidden), batch.targets)
        parts = [
            checkpoint(self._chunk, h, t, use_reentrant=False)
            for h, t in zip(
                torch.split(hidden, rows), torch.split(batch.targets, rows), strict=True
            )
        ]
        return torch.cat(parts)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states (B, T, D), final norm applied, of token ids (B, T)."""
        states: torch.Tensor = self.model.base_model(input_ids=ids, use_cache=False)[0]
        return states

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

    def _chunk(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _losses(self.logits(hidden), targets)

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
    return functional.cross_entropy(logits.float(), targets, reduction="none")
