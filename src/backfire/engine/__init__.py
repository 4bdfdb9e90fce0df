"""The one training loop behind every defense and attack.

Importing this gives the settings; torch is loaded by the first call of `train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backfire.engine.settings import LoRA, Training

if TYPE_CHECKING:
    from backfire.engine.loop import Method, train

__all__ = ["LoRA", "Method", "Training", "train"]


def __getattr__(name: str) -> Any:
    if name in ("Method", "train"):
        from backfire.engine import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
