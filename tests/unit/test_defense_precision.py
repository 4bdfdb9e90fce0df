"""Every defense under bf16 compute, recomputed activations and small budgets of logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backfire.models.load import load
from backfire.records import Checkpoint, TrajectoryPoint
from backfire.store import read_table
from small_methods import TRAINED_DEFENSES, bench, build, name_of

SGD = {"optimizer": "sgd", "learning_rate": 0.05, "clip_norm": None, "warmup": 0, "steps": 2}


def run(
    member: Any, start: Path, place: Path, **training: Any
) -> tuple[Any, list[TrajectoryPoint]]:
    made = build(member, training={**SGD, **training})(Checkpoint(start, "k"), bench(place))
    return load(made).model, read_table(place / "trajectory.parquet", TrajectoryPoint)


@pytest.mark.parametrize("member", TRAINED_DEFENSES, ids=name_of)
def test_bf16_compute_comes_close(member: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """Weights stay fp32, and move."""
    _, exact = run(member, tiny_folder, tmp_path / "a", precision="fp32")
    model, near = run(member, tiny_folder, tmp_path / "b", precision="bf16")
    assert model.dtype == torch.float32
    for a, b in zip(exact, near, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=0.02)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=0.1)


@pytest.mark.parametrize("member", TRAINED_DEFENSES, ids=name_of)
@pytest.mark.parametrize(
    "way", [{"gradient_checkpointing": True}, {"logits_budget": 261 * 3}], ids=["again", "chunks"]
)
def test_what_saves_memory_changes_no_number(
    member: Any, way: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    plain, wanted = run(member, tiny_folder, tmp_path / "a")
    saving, found = run(member, tiny_folder, tmp_path / "b", **way)
    for a, b in zip(wanted, found, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-5)
        assert b.terms == pytest.approx(a.terms, rel=1e-4)
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
