"""What a training stage did to the weights, so that a silent no-op is impossible."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from backfire.models.load import load
from backfire.numerics.weights import movement
from backfire.records import Checkpoint, TrainingEffect

if TYPE_CHECKING:
    import torch

    from backfire.engine.job import Passage

__all__ = ["measure", "peak_memory"]


def measure(
    label: str,
    before: Checkpoint,
    after: Mapping[str, torch.Tensor],
    passage: Passage,
    *,
    lora: bool,
    device: str,
) -> TrainingEffect:
    """Compare the trained weights with the checkpoint they came from.

    The start is read again from disk: a copy kept through the training would cost its memory.
    """
    start = load(before, device="cpu", dtype="fp32").model
    moved = movement(dict(start.named_parameters()), after)
    del start
    points = passage.points
    tenth = max(1, len(points) // 10)
    first = sum(p.loss for p in points[:tenth]) / tenth
    last = sum(p.loss for p in points[-tenth:]) / tenth
    return TrainingEffect(
        method=label,
        parameters="lora" if lora else "full",
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
        share_lost_in_bf16=moved.share_lost_in_bf16,
        seconds=points[-1].seconds,
        peak_memory_bytes=peak_memory(),
        truncated=passage.truncated,
        device=device,
        warning=_warning(moved.share_changed, first, last, len(points)),
    )


def _warning(share_changed: float, first: float, last: float, steps: int) -> str:
    if share_changed == 0:
        return "no weight moved: the training had no effect (learning rate too small for the precision?)"
    if share_changed < 0.05:
        return (
            f"only {share_changed:.1%} of the weights moved; the updates are too small for the precision "
            "or most of the model is frozen"
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
