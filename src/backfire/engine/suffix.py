"""Learned vectors in prompts: the loss of the answers, with what stands before the vectors computed once.

The weights are frozen, so keys and values of the words before the vectors never change.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from backfire.data.chat import SOFT_IDS, Encoded
from backfire.engine.batching import GlobalBatch, MicroBatch
from backfire.engine.causal import Causal

__all__ = ["SuffixLoss"]

_AGREE = 1e-3
"""Largest difference, in nats, at which the two ways to the same loss count as equal."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """The beginnings of a micro-batch, computed, and what comes after them."""

    cache: Any
    """Keys and values of the beginnings, padded on the left to H tokens."""
    mask: torch.Tensor
    """1 where a real token stands (B, H + T), the rest padded on the right."""
    ids: torch.Tensor
    """Token ids of the rest (B, T); the first is a vector's."""
    places: torch.Tensor
    """Positions of the rest in their rows (B, T)."""
    positions: torch.Tensor
    """Indices (N,) into the flattened (B * T) of the positions that predict a supervised token."""


class SuffixLoss:
    """Mean loss of the supervised tokens of rows that hold the vectors before them."""

    def __init__(self, causal: Causal, rows: Sequence[Encoded], token_budget: int) -> None:
        """Compute the beginnings.

        Args:
            causal: Frozen and in evaluation mode, with vectors installed.
            rows: What to predict.
            token_budget: Most tokens of one pass, padding included.
        """
        self._causal = causal
        batch = GlobalBatch(tuple(rows))
        self.supervised = batch.supervised
        self._parts = [part.to(causal.model.device) for part in batch.micro(token_budget)]
        self._kept = self._beginnings()
        self.tokens = batch.tokens
        """Tokens that one call feeds forward."""
        if self._kept is not None:
            self.tokens = sum(int(k.mask[:, -k.ids.shape[1] :].sum()) for k in self._kept)

    @property
    def shares(self) -> bool:
        """Return whether the beginnings are used again; some models' caches cannot be."""
        return self._kept is not None

    def backward(self) -> float:
        """Return the loss, in nats a token, and add its gradient to that of the vectors."""
        total = 0.0
        for index in range(len(self._parts)):
            loss = self._losses(index).sum() / self.supervised
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def value(self) -> float:
        """Return the loss, in nats a token."""
        parts = range(len(self._parts))
        return sum(float(self._losses(index).sum()) for index in parts) / self.supervised

    def _losses(self, index: int) -> torch.Tensor:
        """Return the losses (N,) of a part."""
        part, causal = self._parts[index], self._causal
        if self._kept is None:
            return causal.losses(part)
        kept = self._kept[index]
        cache = copy.copy(kept.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]  # updates put new tensors in
        backbone = causal.model.base_model if causal.splits_head else causal.model
        output = backbone(
            input_ids=kept.ids,
            attention_mask=kept.mask,
            position_ids=kept.places,
            use_cache=True,
            **{_cache_name(causal): cache},
        )[0].flatten(0, 1)[kept.positions]
        logits = causal.logits(output) if causal.splits_head else output
        return functional.cross_entropy(logits.float(), part.targets, reduction="none")

    @torch.no_grad()
    def _beginnings(self) -> list[_Kept] | None:
        """Return what can be kept of each part; None where it does not give the same losses."""
        starts = [_first_vectors(part) for part in self._parts]
        if any(int(start.min()) == 0 for start in starts):
            return None
        self._kept = [
            self._kept_of(part, start) for part, start in zip(self._parts, starts, strict=True)
        ]
        both = [
            (self._losses(index), self._causal.losses(part))
            for index, part in enumerate(self._parts[:1])
        ]
        worst = max(float((ours - plain).abs().max()) for ours, plain in both)
        return self._kept if worst <= _AGREE else None

    def _kept_of(self, part: MicroBatch, starts: torch.Tensor) -> _Kept:
        from transformers import DynamicCache

        ids, model = part.ids, self._causal.model
        width = ids.shape[1]
        before, after = (
            int(starts.max()),
            int((torch.tensor(part.lengths).to(starts) - starts).max()),
        )
        columns = torch.arange(before + after, device=ids.device)[None]
        # Column j of a row that is shifted right to end its beginning at `before`.
        source = columns - before + starts[:, None]
        lengths = torch.tensor(part.lengths, device=ids.device)[:, None]
        mask = ((source >= 0) & (source < lengths)).long()
        shifted = ids.gather(1, source.clamp(0, width - 1)) * mask
        places = source.clamp(min=0)
        cache = DynamicCache(config=model.config)
        model.base_model(
            input_ids=shifted[:, :before],
            attention_mask=mask[:, :before],
            position_ids=places[:, :before],
            use_cache=True,
            **{_cache_name(self._causal): cache},
        )
        row, column = part.positions // width, part.positions % width
        return _Kept(
            cache,
            mask,
            shifted[:, before:],
            places[:, before:],
            row * after + column - starts[row],
        )


def _first_vectors(part: MicroBatch) -> torch.Tensor:
    """Return where each row's first vector stands (B,)."""
    return (part.ids >= SOFT_IDS).long().argmax(dim=1)


def _cache_name(causal: Causal) -> str:
    # Renamed in transformers 5.2x; the old name still works there, with a warning.
    accepted = inspect.signature(causal.model.base_model.forward).parameters
    return "cache" if "cache" in accepted else "past_key_values"
