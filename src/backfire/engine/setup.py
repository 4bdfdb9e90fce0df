"""What a trainer needs before its first step: the optimizer, the precision, Accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from backfire.engine.settings import Precision, Training
from backfire.models.load import pick_device

if TYPE_CHECKING:
    from accelerate import Accelerator

    from backfire.engine.causal import Causal
    from backfire.engine.job import Job

__all__ = ["accelerator_for", "compute_precision", "make_optimizer", "precision_words", "spread"]


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], training: Training
) -> torch.optim.Optimizer:
    """Return the optimizer of the settings over the trainable parameters."""
    trainable = [p for p in parameters if p.requires_grad]
    # The HF trainer's convention: matrices decay, biases and norm scales do not.
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=training.momentum)
    if training.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=training.learning_rate)
    fused = all(p.device.type in ("cpu", "cuda") for p in trainable)
    return torch.optim.AdamW(
        groups, lr=training.learning_rate, betas=training.betas, eps=training.epsilon, fused=fused
    )


def compute_precision(precision: Precision, device: str) -> str:
    """Return what matrix products are computed in: `fp32` or `bf16`."""
    if precision != "auto":
        return "bf16" if precision.startswith("bf16") else "fp32"
    target = pick_device(device)
    if target.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # On a CPU without these instructions bf16 is emulated: slower than fp32, and less exact.
    native = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
        or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    )
    return "bf16" if target.type == "cpu" and native else "fp32"


def precision_words(training: Training, device: str) -> str:
    """Return storage and compute precision as reports show it."""
    stored = "bf16" if training.precision == "bf16-pure" else "fp32"
    return f"{stored} weights, {compute_precision(training.precision, device)} compute"


def spread(causal: Causal, accelerator: Accelerator, *, sharded: bool) -> nn.Module:
    """Return the model as this process runs it: on its device, in its precision.

    Args:
        causal: The model.
        accelerator: Who knows the processes.
        sharded: Leave each process a part of every weight, instead of all of them.
    """
    model: nn.Module = accelerator.prepare_model(
        causal, device_placement=not sharded, evaluation_mode=sharded
    )
    if not sharded:
        return model
    from backfire.engine.sharding import shard

    blocks = getattr(causal.model, "_no_split_modules", None) or ()
    return shard(model, tuple(blocks), accelerator.device)


def accelerator_for(job: Job) -> Accelerator:
    """Return an Accelerate context for one stage; an earlier stage's settings do not linger."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from backfire.engine.sharding import hidden_switch

    AcceleratorState._reset_state()
    training, bench = job.training, job.bench
    device = pick_device(bench.device)
    if device.type == "cuda" and device.index:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    with hidden_switch():
        accelerator = Accelerator(
            mixed_precision="bf16"
            if compute_precision(training.precision, bench.device) == "bf16"
            else "no",
            cpu=device.type == "cpu",
            log_with=list(training.trackers) or None,
            project_dir=str(bench.workdir),
        )
    if training.trackers:
        accelerator.init_trackers("backfire", config={"label": job.label, "seed": bench.seed})
    return accelerator
