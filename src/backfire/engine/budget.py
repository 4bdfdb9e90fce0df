"""What an attack takes: its training, and what it does beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backfire.store import read_json, write_json

__all__ = ["add_to_budget", "spent"]


def spent(effect: Mapping[str, Any], weights: int) -> dict[str, float]:
    """Return a training's optimizer steps, tokens and FLOPs, from what `effect.json` holds.

    2 N FLOPs a token and forward pass, 4 N a backward pass, 2 N where an adapter spares the gradients of
    the N weights (see `backfire.pricing`).
    """
    steps, tokens = effect.get("steps", 0), effect.get("tokens", 0)
    backwards = effect.get("backwards", 0) / max(1, effect.get("forwards", 0))
    adapter = str(effect.get("parameters")).startswith("lora")
    each = 2 + (2 if adapter else 4) * backwards
    return {"steps": steps, "tokens": tokens, "flops": each * weights * tokens}


def add_to_budget(
    folder: Path,
    weights: int,
    forward: int,
    backward: int = 0,
    effect: Mapping[str, Any] | None = None,
) -> None:
    """Write `budget.json`: a stage's training, and what an attack did beside it with the same weights.

    Args:
        folder: Of the stage.
        weights: Number of them.
        forward: Tokens that went forward outside the training.
        backward: Tokens that went backward, for gradients of all weights.
        effect: Of the training; None: what the folder's `effect.json` says.
    """
    whole = spent(read_json(folder / "effect.json") if effect is None else effect, weights)
    whole["tokens"] += forward
    whole["flops"] += weights * (2.0 * forward + 4.0 * backward)
    write_json(folder / "budget.json", whole)
