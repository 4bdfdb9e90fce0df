"""A cheap sign of what a model can still do: how well it predicts plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from backfire.data.chat import Encoded
from backfire.engine.batching import GlobalBatch
from backfire.models.load import Loaded, context_length

if TYPE_CHECKING:
    pass

__all__ = ["text_loss"]


def text_loss(
    loaded: Loaded, texts: Sequence[str], *, max_tokens: int = 256, token_budget: int = 2048
) -> float:
    """Return the mean negative log-likelihood a token of texts, in nats, without any chat format.

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
    limit = min(max_tokens, context_length(loaded.model) - 1)
    rows = [
        Encoded([first, *tokenizer(text, add_special_tokens=False)["input_ids"][:limit]], 1, False)
        for text in texts
    ]
    batch = GlobalBatch(tuple(rows))
    causal = Causal(loaded.model, 1 << 26).eval()
    device = causal.head().weight.device
    with torch.no_grad():
        total = sum(float(causal.losses(p.to(device)).sum()) for p in batch.micro(token_budget))
    return total / batch.supervised
