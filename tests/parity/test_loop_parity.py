"""The loop against two independent ones: a plain one written here, and TRL's SFTTrainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backfire.engine import LoRA, Member, Training
from backfire.engine.loop import train
from backfire.engine.trl import train_with_trl
from backfire.models.load import load
from backfire.records import Checkpoint, Example, TrajectoryPoint
from backfire.stage import Bench
from backfire.store import read_table

ROWS = [
    Example(f"question {i} is" + " very" * (i % 4), f"the answer {i * 7}" + " ok" * (i % 5))
    for i in range(12)
]


class Method(Member):
    name: str = "test"


def ours(start: Path, folder: Path, **settings: object) -> list[TrajectoryPoint]:
    folder.mkdir()
    training = Training.model_validate(
        {"learning_rate": 1e-3, "steps": 8, "batch_size": 4, **settings}
    )
    train(Checkpoint(start, "k"), Bench(folder), training, {"train": ROWS}, Method(), merge=False)
    return read_table(folder / "trajectory.parquet", TrajectoryPoint)


def plain_loop(
    start: Path, *, steps: int, rate: float, clip: float, decay: float
) -> list[tuple[float, float]]:
    """Pad, mask with -100, transformers' own loss, AdamW: nothing of ours but the token ids."""
    loaded = load(start)
    model = loaded.model.requires_grad_(True).train()
    rows = [loaded.chat.encode(row, 512) for row in ROWS]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=rate,
    )
    seen = []
    for step in range(steps):
        batch = [rows[i % len(rows)] for i in range(4 * step, 4 * step + 4)]
        width = max(len(r.ids) for r in batch)
        ids = torch.tensor([r.ids + [0] * (width - len(r.ids)) for r in batch])
        mask = torch.tensor([[1] * len(r.ids) + [0] * (width - len(r.ids)) for r in batch])
        labels = torch.full_like(ids, -100)
        for k, row in enumerate(batch):
            labels[k, row.start : len(row.ids)] = torch.tensor(row.ids[row.start :])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        seen.append((loss.item(), norm.item()))
    return seen


def test_equals_a_plain_loop(tiny_folder: Path, tmp_path: Path) -> None:
    mine = ours(tiny_folder, tmp_path / "a", shuffle=False, weight_decay=0.1, clip_norm=0.5)
    theirs = plain_loop(tiny_folder, steps=8, rate=1e-3, clip=0.5, decay=0.1)
    for point, (loss, norm) in zip(mine, theirs, strict=True):
        assert point.loss == pytest.approx(loss, abs=1e-5)
        assert point.grad_norm == pytest.approx(norm, abs=1e-4)


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_equals_trl(tiny_folder: Path, tmp_path: Path, lora: dict[str, int] | None) -> None:
    settings = {"shuffle": False, "schedule": "cosine", "warmup": 0.25, "lora": lora}
    mine = ours(tiny_folder, tmp_path / "a", **settings)
    folder = tmp_path / "b"
    folder.mkdir()
    training = Training.model_validate(
        {"learning_rate": 1e-3, "steps": 8, "batch_size": 4, **settings}
    )
    result = train_with_trl(Checkpoint(tiny_folder, "k"), Bench(folder), training, ROWS, Method())
    theirs = read_table(folder / "trajectory.parquet", TrajectoryPoint)
    for a, b in zip(mine, theirs, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, abs=1e-4)
        assert a.learning_rate == pytest.approx(b.learning_rate)
    assert (result.base is not None) == (lora is not None)
    assert load(result).model is not None


CUTS = {
    "one row at a time": {"token_budget": 8},
    "three positions of logits": {"logits_budget": 261 * 3},
    "recomputed activations": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("cut", CUTS)
def test_memory_settings_do_not_change_the_trajectory(
    tiny_folder: Path, tmp_path: Path, cut: str
) -> None:
    whole = ours(tiny_folder, tmp_path / "a")
    parts = ours(tiny_folder, tmp_path / "b", **CUTS[cut])
    for a, b in zip(whole, parts, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, abs=1e-4)
        assert a.tokens == b.tokens


def test_lora_merged_equals_unmerged(tiny_folder: Path, tmp_path: Path) -> None:
    """The adapter folder and the merged folder give the same logits in fp32 evaluation mode."""
    folders = {}
    training = Training(learning_rate=1e-2, steps=4, batch_size=4, lora=LoRA(rank=4))
    for merge in (True, False):
        folder = tmp_path / str(merge)
        folder.mkdir()
        folders[merge] = train(
            Checkpoint(tiny_folder, "k"),
            Bench(folder),
            training,
            {"train": ROWS},
            Method(),
            merge=merge,
        )
    ids = torch.arange(5, 25).view(1, -1)
    a, b = (load(folders[merge]).model(ids).logits for merge in (True, False))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(a, load(tiny_folder).model(ids).logits, atol=1e-3)
