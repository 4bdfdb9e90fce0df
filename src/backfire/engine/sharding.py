"""Weights spread over processes: FSDP2, torch's own, on accelerators and on CPUs alike.

    accelerate launch --use_fsdp --fsdp_version 2 --num_processes 8 ...

Every process then holds a part of each weight, of its gradient and of its moments; blocks are gathered
one at a time. Accelerate starts the processes and shards on accelerators only; here the sharding is
torch's `fully_shard`, so that what two CPU processes test is what eight GPUs run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn

from backfire.errors import PrerequisiteError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "asked_for",
    "hidden_switch",
    "local",
    "placed_like",
    "shard",
    "spread_sum",
    "unsynced",
    "whole",
]

_SWITCH = "ACCELERATE_USE_FSDP"
"""What `accelerate launch --use_fsdp` sets."""


def asked_for() -> bool:
    """Return whether the launcher asked for sharded weights.

    Raises:
        PrerequisiteError: when it asked for the first version of FSDP.
    """
    if os.environ.get(_SWITCH, "").lower() not in ("1", "true"):
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise PrerequisiteError(
            "starting the processes: FSDP version 1 was asked for, and only version 2 is supported; add "
            "`--fsdp_version 2` to `accelerate launch`, or set FSDP_VERSION=2"
        )
    return True


@contextmanager
def hidden_switch() -> Iterator[None]:
    """Let Accelerate start without sharding anything itself."""
    value = os.environ.pop(_SWITCH, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[_SWITCH] = value


def shard(model: nn.Module, blocks: Sequence[str], device: torch.device) -> nn.Module:
    """Spread a model's weights over all processes, in place.

    Args:
        model: On any device; each part moves to `device` as it is spread.
        blocks: Class names of the modules that are gathered one at a time; the rest is gathered at once.
        device: This process's.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in model.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    # The root is let go after a forward pass too: a gathered copy would miss what a method does to the
    # weights between two passes.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return model


@contextmanager
def unsynced(model: nn.Module) -> Iterator[None]:
    """Keep gradients on each process while the body runs."""
    sharded: Any = model
    sharded.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        sharded.set_requires_gradient_sync(True)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's full value; every process must ask, if it is spread."""
    return tensor.full_tensor() if _is_spread(tensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this process holds; all of it, if it is not spread."""
    return tensor.to_local() if _is_spread(tensor) else tensor


def placed_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a full value, which all processes know, spread as another tensor is."""
    if not _is_spread(like):
        return value.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    mesh = like.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, like.placements, src_data_rank=None)


def spread_sum(value: float, like: Sequence[torch.Tensor]) -> float:
    """Return the sum of each process's value, if the tensors it was made of are spread."""
    first = next(iter(like), None)
    if first is None or not _is_spread(first):
        return value
    own = torch.tensor(value, dtype=torch.float64, device=first.device_mesh.device_type)
    torch.distributed.all_reduce(own, group=first.device_mesh.get_group())
    return float(own)


def _is_spread(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
