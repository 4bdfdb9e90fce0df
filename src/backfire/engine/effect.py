"""What a training stage did to the weights, so that a silent no-op is impossible."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING

from backfire.models.load import load
from backfire.numerics.weights import movement
from backfire.records import Checkpoint, TrainingEffect

if TYPE_CHECKING:
    import torch

    from backfire.engine.job import Passage

__all__ = ["edited", "measure", "peak_memory"]


def measure(
    label: str,
    before: Checkpoint,
    after: Mapping[str, torch.Tensor],
    passage: Passage,
    *,
    trained: str,
    movable: Set[str],
    device: str,
) -> TrainingEffect:
    """Compare the trained weights with the checkpoint they came from.

    The start is read again from disk: a copy kept through the training would cost its memory.

    Args:
        label: Of the method.
        before: Where the training began.
        after: The weights by name, adapters merged.
        passage: What the trainer counted.
        trained: What was trained, in words.
        movable: Names of the weights that could move.
        device: Where it ran.
    """
    start = dict(load(before, device="cpu", dtype="fp32").model.named_parameters())
    moved = movement(start, after)
    sizes = {name: weight.numel() for name, weight in start.items()}
    share_movable = sum(size for name, size in sizes.items() if name in movable) / sum(
        sizes.values()
    )
    del start
    points = passage.points
    tenth = max(1, len(points) // 10)
    first = sum(p.loss for p in points[:tenth]) / tenth
    last = sum(p.loss for p in points[-tenth:]) / tenth
    return TrainingEffect(
        method=label,
        parameters=trained,
        precision=passage.precision,
        steps=len(points),
        tokens=points[-1].tokens,
        supervised_tokens=points[-1].supervised_tokens,
        forwards=passage.forwards,
        backwards=passage.backwards,
        first_loss=first,
        last_loss=last,
        relative_distance=moved.relative_distance,
        share_changed=moved.share_changed,
        share_movable=share_movable,
        share_lost_in_bf16=moved.share_lost_in_bf16,
        seconds=points[-1].seconds,
        peak_memory_bytes=peak_memory(),
        truncated=passage.truncated,
        device=device,
        warning=_warning(
            passage.idle, moved.share_changed / share_movable, first, last, len(points)
        ),
    )


def edited(
    label: str, before: Checkpoint, after: Mapping[str, torch.Tensor], seconds: float, device: str
) -> TrainingEffect:
    """Compare weights that were changed without training with the checkpoint they came from.

    Args:
        label: Of the method.
        before: Read again from disk, as in `measure`.
        after: The weights by name.
        seconds: How long it took.
        device: Where it was done.
    """
    start = load(before, device="cpu", dtype="fp32").model
    moved = movement(dict(start.named_parameters()), after)
    return TrainingEffect(
        method=label,
        parameters="edited",
        precision="fp32 weights",
        steps=0,
        tokens=0,
        supervised_tokens=0,
        forwards=0,
        backwards=0,
        first_loss=None,
        last_loss=None,
        relative_distance=moved.relative_distance,
        share_changed=moved.share_changed,
        share_lost_in_bf16=moved.share_lost_in_bf16,
        seconds=round(seconds, 3),
        peak_memory_bytes=peak_memory(),
        truncated=0,
        device=device,
        warning="" if moved.share_changed else "no weight moved: the attack changed nothing",
    )


def _warning(idle: str, share_changed: float, first: float, last: float, steps: int) -> str:
    if idle:
        return f"the training taught nothing: {idle}"
    if share_changed == 0:
        return "no weight moved: the training had no effect (learning rate too small for the precision?)"
    if share_changed < 0.05:
        return (
            f"only {share_changed:.1%} of the weights that were trained moved; the updates are too small "
            "for the precision"
        )
    if steps >= 10 and last >= first:
        return (
            f"the training loss did not fall ({first:.3f} at first, {last:.3f} at the end): the method is "
            "probably not installed"
        )
    return ""


def peak_memory() -> int:
    """Return the process's peak memory on the training device, in bytes."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
