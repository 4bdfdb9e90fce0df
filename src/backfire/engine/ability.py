"""A cheap sign of what a model can still do: how well it predicts plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from backfire.data.chat import Encoded
from backfire.engine.batching import GlobalBatch
from backfire.models.load import Loaded, context_length

__all__ = ["TextLoss", "text_loss"]


class TextLoss(NamedTuple):
    """How well a model predicts texts, and what it took to see."""

    mean: float
    """Negative log-likelihood a token, in nats."""
    tokens: int
    """That went forward."""
    weights: int
    """Of the model."""


def text_loss(
    loaded: Loaded, texts: Sequence[str], *, max_tokens: int = 256, token_budget: int = 2048
) -> TextLoss:
    """Return how well a model predicts texts, without any chat format.

    Args:
        loaded: In evaluation mode.
        texts: At least one.
        max_tokens: What is longer is cut.
        token_budget: Texts that go together, times the longest of them.
    """
    import torch

    from backfire.engine.causal import Causal

    tokenizer = loaded.tokenizer
    first = tokenizer.bos_token_id
    first = loaded.chat.end_id if first is None else first
    limit = min(max_tokens, context_length(loaded.model.config) - 1)
    rows = [
        Encoded([first, *tokenizer(text, add_special_tokens=False)["input_ids"][:limit]], 1, False)
        for text in texts
    ]
    batch = GlobalBatch(tuple(rows))
    causal = Causal(loaded.model, 1 << 26).eval()
    device = causal.head().weight.device
    with torch.no_grad():
        total = sum(float(causal.losses(p.to(device)).sum()) for p in batch.micro(token_budget))
    weights = sum(p.numel() for p in loaded.model.parameters())
    return TextLoss(total / batch.supervised, batch.tokens, weights)
