"""What makes a training stage survive Ctrl-C, a crash and a restart, bit for bit.

The state is the trainable weights and the optimizer's tensors (safetensors) and the step. Batches,
learning rates and dropout masks are pure functions of seed and step, so nothing else is needed.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from backfire.engine.sharding import placed_like, whole
from backfire.store import replace_folder, write_json

__all__ = ["Interrupts", "find_state", "gathered", "load_state", "save_state"]


def save_state(
    folder: Path,
    step: int,
    key: str,
    named: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
    *,
    writes: bool = True,
) -> None:
    """Write the state after `step` steps; the previous one is removed once this one is whole.

    Every process must call it, as spread tensors are gathered; one of them `writes`.
    """
    from safetensors.torch import save_file

    weights = gathered(named, keep=writes)
    moments = gathered(
        {
            f"{name}::{kind}": value
            for name, p in named.items()
            for kind, value in optimizer.state.get(p, {}).items()
        },
        keep=writes,
    )
    if not writes:
        return
    target = folder / f"step-{step}"
    with replace_folder(target) as new:
        save_file(weights, new / "weights.safetensors")
        save_file(moments, new / "optimizer.safetensors")
        write_json(new / "state.json", {"step": step, "key": key, **facts})
    for old in folder.glob("step-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def gathered(named: Mapping[str, torch.Tensor], *, keep: bool = True) -> dict[str, torch.Tensor]:
    """Return the full values of tensors, on the CPU.

    Args:
        named: The same ones in every process, in the same order.
        keep: Whether this process wants them; all take part all the same.
    """
    values: dict[str, torch.Tensor] = {}
    for name, tensor in named.items():
        value = whole(tensor.detach())
        if keep:
            values[name] = value.cpu().contiguous()
    return values


def find_state(
    folder: Path, key: str, most: int | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """Return the latest whole state that belongs to `key`, after `most` steps at most (None: any).

    Equal keys: same settings, data and parent.
    """
    found: list[tuple[int, Path, dict[str, Any]]] = []
    for path in folder.glob("step-*/state.json"):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if facts.get("key") == key and (most is None or facts["step"] <= most):
            found.append((facts["step"], path.parent, facts))
    if not found:
        return None
    _, latest, facts = max(found, key=lambda item: item[0])
    return latest, facts


@torch.no_grad()
def load_state(
    folder: Path, named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Put a saved state back into the parameters and the optimizer."""
    from safetensors.torch import load_file

    weights = load_file(folder / "weights.safetensors")
    for name, parameter in named.items():
        parameter.copy_(placed_like(weights[name], parameter))
    for full, value in load_file(folder / "optimizer.safetensors").items():
        name, kind = full.rsplit("::", 1)
        parameter = named[name]
        if kind == "step":
            placed = value.to(parameter.device if _fused(optimizer) else "cpu")
        else:
            placed = placed_like(value, parameter)
        optimizer.state[parameter][kind] = placed


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.defaults.get("fused"))


class Interrupts:
    """Turns the first Ctrl-C (or SIGTERM) into a request to stop after what is under way: a step, a write.

    A second one stops at once; the last written state is then what a resume begins from.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
