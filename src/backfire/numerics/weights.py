"""How far weights moved, how many moved, how much of it bf16 would swallow; and what does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

__all__ = ["Movement", "movement", "precise"]


@dataclass(frozen=True, slots=True)
class Movement:
    """The difference between two states of the same weights."""

    relative_distance: float
    """||after - before|| / ||before||, all tensors as one vector."""
    share_changed: float
    """Share of values that differ."""
    share_lost_in_bf16: float
    """Share of the differing values that are equal after rounding both to bf16; 0 if none differ."""


@torch.no_grad()
def movement(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> Movement:
    """Compare the floating-point tensors two mappings share by name and shape.

    Raises:
        ValueError: when they share none.
    """
    distance = length = 0.0
    changed = lost = total = 0
    for name, old in before.items():
        new = after.get(name)
        if new is None or new.shape != old.shape or not old.is_floating_point():
            continue
        old, new = old.detach().cpu(), new.detach().cpu()
        a, b = old.float(), new.float()
        distance += float((b - a).square().sum(dtype=torch.float64))
        length += float(a.square().sum(dtype=torch.float64))
        differs = a != b
        count = int(differs.sum())
        changed += count
        total += a.numel()
        if count:
            same = a.to(torch.bfloat16) == b.to(torch.bfloat16)
            lost += int((differs & same).sum())
    if not total:
        raise ValueError("the two states share no floating-point tensor")
    return Movement(
        (distance / length) ** 0.5 if length else float(distance > 0),
        changed / total,
        lost / changed if changed else 0.0,
    )


def precise(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in fp32, or as it is in fp64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
