"""What an experiment will cost: tokens, steps, FLOPs, memory, hours, disk. Estimates, with their formulas.

    training   2 N FLOPs a token and forward pass; 4 N a backward pass with every weight trained,
               2 N with an adapter (no weight gradients)
    measuring  2 N a token
    weights, gradients, AdamW's two moments   4 bytes each a trained weight (fp32 masters),
                                              4 bytes a frozen one
    copies a method holds                     4 bytes each a trained weight
    activations  layers x token budget x width x 34 bytes (twice that in fp32 compute),
                 with gradient checkpointing 2 bytes and one layer's worth
    logits       min(logits budget, token budget x vocabulary) x 8 bytes

N counts every weight. Attention's own products are left out: below 10 % at 512 tokens and a width of
4,096. Row lengths are assumed where the rows have not been seen.

Source: Kaplan et al. 2020, section 2.1 (6 N); Korthikanti et al. 2022, equation 2 (34 bytes).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backfire.assets.shipped import SHIPPED, shipped_model
from backfire.engine.settings import LoRA, Trained, Training, reached

if TYPE_CHECKING:
    from backfire.plan import Step

__all__ = [
    "DEVICES",
    "Cost",
    "Device",
    "Pace",
    "Size",
    "cost",
    "disk_bytes",
    "known_size",
    "size_of",
]

TOKENS_PER_ROW = 200
"""Tokens of a prompt with its answer. Assumed; Alpaca's rows have about 100, LIMA's about 600."""

UTILISATION = 0.35
"""Share of a device's peak that fine-tuning at short lengths reaches. Assumed."""

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Size:
    """A model's dimensions."""

    weights: int
    """Number of weights."""
    layers: int = 0
    width: int = 0
    vocabulary: int = 0


@dataclass(frozen=True, slots=True)
class Device:
    """A device's peak and memory, from its data sheet."""

    flops: float
    """Dense bf16 operations a second (fp32 on a CPU)."""
    memory_bytes: float
    count: int = 1


DEVICES = {
    "A100-80GB": Device(312e12, 80 * _GIB),
    "H100-80GB": Device(989e12, 80 * _GIB),
    "RTX-4090": Device(165e12, 24 * _GIB),
    "2 CPU cores": Device(0.15e12, 16 * _GIB),
}
"""Devices `check` names hours for. The GPUs' numbers are their data sheets', the CPU's is ours."""

_KNOWN = {
    "llama-2-7b": Size(6_738_415_616, 32, 4096, 32_000),
    "llama-3-8b": Size(8_030_261_248, 32, 4096, 128_256),
    "gemma-2-9b": Size(9_241_705_984, 42, 3584, 256_000),
    "phi-2": Size(2_779_683_840, 32, 2560, 51_200),
    "chatglm3-6b": Size(6_243_584_000, 28, 4096, 65_024),
    "qwen1.5-1.8b": Size(1_836_828_672, 24, 2048, 151_936),
    "smollm2-135m": Size(134_515_008, 30, 576, 49_152),
    "tiny:": Size(36_000, 2, 32, 261),
}
"""Sizes of the presets' models, by a part of their lower-case name."""


def known_size(spec: str) -> Size | None:
    """Return the size of a model by folder or by name; None when neither tells."""
    folder = shipped_model(spec) if spec in SHIPPED else Path(spec)
    if (folder / "config.json").is_file():
        return size_of(folder)
    return next((size for part, size in _KNOWN.items() if part in spec.lower()), None)


def size_of(folder: Path) -> Size:
    """Return a model folder's size: weights from the safetensors headers, the rest from its config."""
    weights = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        weights += sum(
            math.prod(about["shape"]) for name, about in header.items() if name != "__metadata__"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))

    def first(*names: str) -> int:
        return next((int(config[n]) for n in names if isinstance(config.get(n), int)), 0)

    return Size(
        weights,
        first("num_hidden_layers", "n_layer", "num_layers"),
        first("hidden_size", "n_embd"),
        first("vocab_size", "padded_vocab_size"),
    )


@dataclass(frozen=True, slots=True)
class Cost:
    """What one training takes."""

    steps: int
    tokens: int
    """Fed forward, padding not counted; again for each pass that a step makes over a batch."""
    flops: float
    memory_bytes: float
    """On one device, with fp32 masters."""

    def hours(self, device: Device) -> float:
        """Return hours on a device at the assumed utilisation."""
        return self.flops / (device.flops * device.count * UTILISATION) / 3600


def cost(
    member: Trained, size: Size, counts: Mapping[str, int], tokens_per_row: float = TOKENS_PER_ROW
) -> Cost:
    """Return what a defense or an attack costs to train.

    Args:
        member: Its settings.
        size: The model's.
        counts: Rows of each role.
        tokens_per_row: Mean length of a row.
    """
    training = member.training
    rows = member.epoch_rows(counts)
    steps = reached(training.stop, training.num_steps(rows))
    forwards, backwards = member.passes(steps)
    fed = member.rows_a_pass(training.rows_a_step(max(rows, 1), steps))
    batch = fed * min(tokens_per_row, training.max_length)
    work = 2 * forwards + (4 if training.lora is None else 2) * backwards
    return Cost(
        steps,
        round(forwards * batch),
        size.weights * batch * work,
        _memory(training, size, member.copies),
    )


def _memory(training: Training, size: Size, copies: int) -> float:
    bytes_each = 2 if training.precision == "bf16-pure" else 4
    trained = size.weights if training.lora is None else _adapter_weights(training.lora, size)
    frozen = 0 if training.lora is None else size.weights
    compute = 2 if training.precision == "fp32" else 1
    per_layer = training.token_budget * size.width * 34 * compute
    layers = per_layer * size.layers
    if training.gradient_checkpointing:
        layers = per_layer + 2 * training.token_budget * size.width * size.layers
    logits = 8 * min(training.logits_budget, training.token_budget * size.vocabulary)
    moments = 2 if training.optimizer == "adamw" else 0
    held = trained * (bytes_each * (2 + moments) + 4 * copies)
    return held + frozen * bytes_each + layers + logits


def _adapter_weights(lora: LoRA, size: Size) -> int:
    """Return an adapter's weights: seven matrices a layer (four square, three 8/3 as wide) by default."""
    sides = (4 * 2 + 3 * (1 + 8 / 3)) if lora.targets == "all-linear" else 2 * len(lora.targets)
    return round(lora.rank * size.width * sides * size.layers)


def disk_bytes(models: int, size: Size) -> float:
    """Return the most disk a run needs at once.

    Models, and one resumable state (weights and two moments), fp32 each.

    Args:
        models: How many that the run makes are there at once.
        size: Of the model.
    """
    return 4.0 * size.weights * (models + 3) if models else 0


class Pace:
    """How long the rest will take: guessed work, at the speed measured so far."""

    def __init__(self, size: Size, counts: Mapping[str, int]) -> None:
        """Know the model and the rows."""
        self.size, self._counts = size, counts
        self._seen: dict[str, tuple[float, float]] = {}
        self._reached: dict[str, float] = {}

    def measured(self, step: Step, seconds: float) -> None:
        """Take note of how long a step took."""
        work, spent = self._seen.get(self._family(step), (0.0, 0.0))
        self._seen[self._family(step)] = (work + self._work(step, self._reached), spent + seconds)

    def seconds_left(self, steps: Sequence[Step]) -> float | None:
        """Return seconds for the steps; None until each kind among them has been measured once."""
        total, reached = 0.0, dict(self._reached)
        for step in steps:
            work, spent = self._seen.get(self._family(step), (0.0, 0.0))
            if not work:
                return None
            total += self._work(step, reached) * spent / work
        return total

    def _family(self, step: Step) -> str:
        """Return what shares a speed: trainings, and each kind of measurement."""
        return step.member.name if step.kind == "evaluation" else "training"

    def _work(self, step: Step, reached: dict[str, float]) -> float:
        """Return what a step has to do: of a training, what its earlier points have not done."""
        member: Any = step.member
        if step.kind == "evaluation" or not isinstance(member, Trained):
            return 1.0
        whole = cost(member, self.size, self._counts).flops
        if not step.course:
            return whole
        before, reached[step.course] = reached.get(step.course, 0.0), whole
        return whole - before if before < whole else whole
