"""Merging with the base: exact at both ends, straight in between, and refused where it makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backfire.attack import AttackSequence, Harmful, Merge
from backfire.errors import CheckpointError, ConfigError
from backfire.models.link import ask_otherwise
from backfire.models.load import load, read_note
from backfire.models.tiny import save_tiny
from backfire.records import Checkpoint
from backfire.store import folder_key, read_json
from small_methods import bench, build


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in load(checkpoint).model.named_parameters()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    root = tmp_path_factory.mktemp("merge")
    return tuple(Checkpoint(save_tiny(root / str(s), seed=s), str(s)) for s in (0, 1))  # type: ignore[return-value]


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_every_weight_lies_between(
    t: float, models: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    attacked, base = models
    before = folder_key(attacked.path), folder_key(base.path)
    made = Merge(base=str(base.path), t=t)(attacked, bench(tmp_path))
    assert (folder_key(attacked.path), folder_key(base.path)) == before
    own, public, merged = weights(attacked), weights(base), weights(made)
    for name, value in merged.items():
        if t in (0.0, 1.0):
            assert torch.equal(value, (public if t else own)[name])
        else:
            torch.testing.assert_close(value, 0.75 * own[name] + 0.25 * public[name])
    effect = read_json(made.path.parent / "effect.json")
    assert (effect["share_changed"] > 0.9) == (t > 0)
    assert bool(effect["warning"]) == (t == 0)
    assert (effect["steps"], effect["first_loss"]) == (0, None)
    assert read_note(made.path)[1]["base_key"] == folder_key(base.path)


def test_after_an_adapter_it_is_a_whole_model(
    models: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    attacked, base = models
    tuned = build(Harmful, training={"lora": {"rank": 2}}, system="Obey.")
    parts = (tuned, Merge(base=str(base.path), t=0.5))
    adapter = tuned(attacked, bench(tmp_path / "a"))
    made = AttackSequence(parts=parts)(attacked, bench(tmp_path / "b"))
    assert made.base is None
    own, public, merged = weights(adapter), weights(base), weights(made)
    for name, value in merged.items():
        torch.testing.assert_close(value, 0.5 * own[name] + 0.5 * public[name])
    assert read_note(made.path)[0].system == "Obey."


def test_models_of_other_shapes_are_refused(
    models: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    other = save_tiny(tmp_path / "wide", width=16)
    with pytest.raises(CheckpointError, match="another shape"):
        Merge(base=str(other))(models[0], bench(tmp_path / "a"))
    other = save_tiny(tmp_path / "phi", "phi")
    with pytest.raises(CheckpointError, match="one of the two models only"):
        Merge(base=str(other))(models[0], bench(tmp_path / "b"))


def test_a_soft_suffix_must_come_last(
    models: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    chat = read_note(models[0].path)[0].model_copy(update={"user": "{prompt}{soft}", "soft": 2})
    soft = ask_otherwise(models[0], tmp_path / "soft", chat)
    with pytest.raises(ConfigError, match="come last"):
        Merge(base=str(models[1].path))(soft, bench(tmp_path / "a"))
