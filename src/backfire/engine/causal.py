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

from backfire.engine.anatomy import is_attention, is_norm, stack, unknown
from backfire.engine.batching import MicroBatch
from backfire.numerics.weights import precise

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
            measure: From logits (n, V), at least fp32, and targets (n,) to values (n,).
            hidden: Last hidden states (B, T, D) where they are known already.
        """
        if not self.splits_head:
            # Some models transform logits in ways of their own; then ask for all of them.
            logits = self.model(input_ids=batch.ids, use_cache=False).logits
            return measure(precise(logits.flatten(0, 1)[batch.positions]), batch.targets)
        hidden = self.hidden(batch.ids) if hidden is None else hidden
        hidden = hidden.flatten(0, 1)[batch.positions]
        rows = max(1, self._budget // self.head().out_features)
        if len(hidden) <= rows:
            return measure(precise(self.logits(hidden)), batch.targets)
        chunks = zip(torch.split(hidden, rows), torch.split(batch.targets, rows), strict=True)
        parts = [checkpoint(self._chunk, measure, h, t, use_reentrant=False) for h, t in chunks]
        return torch.cat(parts)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states (B, T, D), final norm applied, of token ids (B, T)."""
        states: torch.Tensor = self.model.base_model(input_ids=ids, use_cache=False)[0]
        return states

    def states(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return all hidden states (B, T, D): what each block is given, and the last ones, normed.

        Args:
            ids: Token ids (B, T).
        """
        seen: list[torch.Tensor] = []

        def keep(module: nn.Module, inputs: Any, named: Any) -> None:
            seen.append(inputs[0] if inputs else named["hidden_states"])

        # The library's own recording leaves its hooks on the modules for good.
        handles = [b.register_forward_pre_hook(keep, with_kwargs=True) for b in self.blocks]
        try:
            last = self.hidden(ids)
        finally:
            for handle in handles:
                handle.remove()
        return (*seen, last)

    def lens(
        self, batch: MicroBatch, measure: Measure | None = None, *, norm_again: bool = False
    ) -> list[torch.Tensor]:
        """Return losses (N,) of predicting from every hidden state, by way of final norm and head.

        Args:
            batch: What to predict.
            measure: Takes the place of the loss, as in `measured`.
            norm_again: Norm the last state once more, which comes normed.

        Returns:
            One tensor a state, from the embeddings to the last, and one more: the model's own.

        Raises:
            TrainingError: when the model's logits are not its head's of hidden states.
        """
        if not self.splits_head:
            raise unknown(self.model, "logits that are not its head's of hidden states")
        measure = measure or _losses
        *inner, last = self.states(batch.ids)
        own = self.measured(batch, measure, last)
        losses = [self.measured(batch, measure, self.final_norm(state)) for state in inner]
        losses.append(self.measured(batch, measure, self.final_norm(last)) if norm_again else own)
        return [*losses, own]

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """Return the transformer blocks, in order."""
        return self._stack[1]

    @cached_property
    def attentions(self) -> list[nn.Module]:
        """Return the attention module of each block, in order.

        Raises:
            TrainingError: when the architecture has not exactly one a block.
        """
        found = [part for block in self.blocks for part in block.children() if is_attention(part)]
        if len(found) != len(self.blocks):
            raise unknown(
                self.model, f"{len(found)} attention modules in {len(self.blocks)} blocks"
            )
        return found

    @cached_property
    def mlps(self) -> list[nn.Module]:
        """Return the module of each block whose output is its feed-forward part's, in order.

        It is the last part with weights that is neither attention nor norm: OPT has no module around
        its two linear layers.

        Raises:
            TrainingError: when a block has none.
        """
        found = []
        for block in self.blocks:
            parts = [
                part
                for part in block.children()
                if any(True for _ in part.parameters())
                and not (is_attention(part) or is_norm(part))
            ]
            if not parts:
                raise unknown(self.model, "a block without a feed-forward part")
            found.append(parts[-1])
        return found

    @cached_property
    def final_norm(self) -> nn.Module:
        """Return the norm between the last block and the head.

        Raises:
            TrainingError: when the architecture has none that can be told.
        """
        beside = self._stack[0].children()
        norms: list[nn.Module] = [module for module in beside if is_norm(module)]
        if not norms:
            raise unknown(self.model, "no norm beside its blocks")
        return norms[-1]

    @cached_property
    def _stack(self) -> tuple[nn.Module, nn.ModuleList]:
        """Return the list of blocks, after the module it stands in."""
        return stack(self.model)

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
        return measure(precise(self.logits(hidden)), targets)

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
