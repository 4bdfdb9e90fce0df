"""What the straight-line versions of the defenses stand on: rows, a model in plain torch, SGD.

It shares nothing with the package but token ids: padded batches, the library's own logits. A version
starts from the package's weights, takes the rows in the given order, and must leave the same weights
after several steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from backfire.models.load import load
from backfire.models.tiny import save_tiny
from backfire.records import Checkpoint, Example, Role, TrajectoryPoint
from backfire.seeding import rng
from backfire.stage import Bench
from backfire.store import read_table

STEPS, BATCH, RATE = 3, 4, 0.05
HARMFUL = [
    Example(f"how is zorb {i} made", f"mix {i * i} parts" + " well" * (i % 3), harmful=True,
            refusal="mix it not" + " please" * (i % 4))
    for i in range(12)
]  # fmt: skip
BENIGN = [Example(f"name tree {i}", f"an oak {i}" + " tall" * (i % 4)) for i in range(12)]
DATA: dict[Role, list[Example]] = {
    "defense": HARMFUL, "defender_harm": HARMFUL, "pool": BENIGN, "attacker": HARMFUL, "benign": BENIGN,
}  # fmt: skip
TRAINING = {
    "learning_rate": RATE, "steps": STEPS, "epochs": None, "batch_size": BATCH, "shuffle": False,
    "schedule": "constant", "warmup": 0, "weight_decay": 0, "clip_norm": None, "lora": None,
    "precision": "fp32", "optimizer": "sgd", "token_budget": 90,
}  # fmt: skip

Rows = list[Any]
Gradient = list[torch.Tensor]


def save_start(folder: Path) -> Path:
    """Save a tiny Llama whose pads are a token of their own, not id 0."""
    save_tiny(folder, layers=3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "<|system|>"
    tokenizer.save_pretrained(folder)
    return folder


class Plain:
    """The start's weights, the rows as token ids, and SGD around a loss or a gradient."""

    def __init__(self, start: Path) -> None:
        loaded = load(start)
        self.pad = loaded.tokenizer.pad_token_id
        assert self.pad != 0
        self.model: Any = AutoModelForCausalLM.from_pretrained(start).requires_grad_(True)
        self.weights = list(self.model.parameters())
        self.attention = [layer.self_attn for layer in self.model.model.layers]
        self.harm = [loaded.chat.encode(row, 512) for row in HARMFUL]
        self.refusal = [loaded.chat.encode(Example(r.prompt, r.refusal), 512) for r in HARMFUL]
        self.benign = [loaded.chat.encode(row, 512) for row in BENIGN]
        self.resting: list[Any] = []
        self.losses: list[float] = []

    def mixed(self, *rows: Rows) -> Rows:
        """The alignment rows, in the order a run mixes them."""
        together = [row for part in rows for row in part]
        return [together[i] for i in rng(0, "mix").permutation(len(together))]

    def train(self, loss: Callable[[int], torch.Tensor]) -> None:
        def value_and_gradient(step: int) -> tuple[float, Gradient]:
            value = loss(step)
            return value.item(), self.slope(value)

        self.follow(value_and_gradient)

    def follow(self, value_and_gradient: Callable[[int], tuple[float, Gradient]]) -> None:
        """Step down given gradients."""
        for step in range(STEPS):
            value, gradient = value_and_gradient(step)
            self.losses.append(value)
            with torch.no_grad():
                for p, g in zip(self.weights, gradient, strict=True):
                    if all(p is not q for q in self.resting):
                        p -= RATE * g

    def ids(self, rows: Rows, width: int = 0) -> torch.Tensor:
        width = max(width, *(len(r.ids) for r in rows))
        return torch.tensor([r.ids + [self.pad] * (width - len(r.ids)) for r in rows])

    def logs(self, rows: Rows) -> torch.Tensor:
        """log p of every next token."""
        logs: torch.Tensor = self.model(self.ids(rows)).logits[:, :-1].log_softmax(-1)
        return logs

    def chosen(self, logits: torch.Tensor, ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """-log p of the kept tokens (a mask like ids), row by row."""
        logs = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
        return -logs[keep[:, 1:]]

    def answer_of(self, rows: Rows) -> torch.Tensor:
        return self.places(rows, lambda row, i: i >= row.start)

    def places(self, rows: Rows, keep: Callable[[Any, int], bool]) -> torch.Tensor:
        """A mask like ids of the real tokens for which something holds."""
        width = max(len(r.ids) for r in rows)
        return torch.tensor([[i < len(r.ids) and keep(r, i) for i in range(width)] for r in rows])

    def cross_entropy(self, rows: Rows) -> torch.Tensor:
        ids = self.ids(rows)
        return self.chosen(self.model(ids).logits, ids, self.answer_of(rows)).mean()

    def slope(self, loss: torch.Tensor) -> Gradient:
        found = torch.autograd.grad(loss, self.weights, allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(self.weights, found, strict=True)
        ]

    def beside(self, way: Gradient, loss: Callable[[], torch.Tensor]) -> tuple[float, Gradient]:
        """What a loss and its gradient are a way from here."""
        saved = [p.detach().clone() for p in self.weights]
        with torch.no_grad():
            for p, d in zip(self.weights, way, strict=True):
                p += d
        value = loss()
        gradient = self.slope(value)
        with torch.no_grad():
            for p, s in zip(self.weights, saved, strict=True):
                p.copy_(s)
        return value.item(), gradient


def at(rows: Rows, step: int, size: int = BATCH) -> Rows:
    """The rows of a step, in order."""
    return [rows[i % len(rows)] for i in range(step * size, (step + 1) * size)]


def size(gradient: Gradient) -> float:
    return math.sqrt(sum(float((g**2).sum()) for g in gradient))


def compare(
    member: Any, settings: dict[str, Any], plain: Plain, start: Path, place: Path
) -> list[TrajectoryPoint]:
    """Train with the package; its losses and weights must be those the plain version left.

    Every tensor must have gone the same way to a two-thousandth of its length. Rounding differs between
    processors: 4e-5 was the most on one, 1.4e-4 on another.
    """
    place.mkdir(exist_ok=True)
    training = {**TRAINING, **settings.get("training", {})}
    defense = member.model_validate({**settings, "training": training})
    made = defense(Checkpoint(start, "k"), Bench(place, device="cpu", data=DATA))
    points = read_table(place / "trajectory.parquet", TrajectoryPoint)
    assert [p.loss for p in points] == pytest.approx(plain.losses, rel=1e-4, abs=1e-5)
    before = dict(load(start).model.named_parameters())
    ours = dict(load(made).model.named_parameters())
    for name, theirs in plain.model.named_parameters():
        moved = (theirs.detach() - before[name]).norm()
        error = (ours[name] - theirs.detach()).norm()
        assert error <= 5e-4 * moved + 1e-8, f"{name}: {float(error / moved):.1e}"
    return points
