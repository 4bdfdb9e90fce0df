"""A training that is stopped, however rudely, goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backfire.engine import LoRA, Member, Training
from backfire.engine.job import Job
from backfire.engine.loop import _Loop, train
from backfire.errors import TrainingError
from backfire.models.load import Loaded
from backfire.models.tiny import save_tiny
from backfire.records import Checkpoint, Example, TrajectoryPoint
from backfire.stage import Bench
from backfire.store import read_table

ROWS = [Example(f"question {i}" + " very" * (i % 3), f"answer {i * 7}") for i in range(9)]


class Method(Member):
    name: str = "test"


def run(
    start: Path,
    folder: Path,
    stop_after: int | None = None,
    number: int = signal.SIGINT,
    **over: object,
) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    training = Training.model_validate({"learning_rate": 1e-2, "steps": 7, "batch_size": 4, **over})

    def stop(done: int, _: Loaded) -> None:
        if done == stop_after:
            os.kill(os.getpid(), number)

    return train(
        Checkpoint(start, "start"),
        Bench(folder, seed=5),
        training,
        {"train": ROWS},
        Method(),
        watch=stop,
    )


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if checkpoint.base else "model.safetensors"
    return load_file(checkpoint.path / name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("lora", [None, LoRA(rank=2, dropout=0.3)])
def test_resume_is_bit_for_bit(
    tiny_folder: Path, tmp_path: Path, lora: LoRA | None, number: int
) -> None:
    whole = run(tiny_folder, tmp_path / "whole", lora=lora)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_folder, tmp_path / "broken", stop_after=3, number=number, lora=lora)
    assert not (tmp_path / "broken" / "checkpoint").exists()
    assert (tmp_path / "broken" / "state" / "step-3").is_dir() or (
        tmp_path / "broken" / "state" / "step-4"
    ).is_dir()
    resumed = run(tiny_folder, tmp_path / "broken", lora=lora)
    assert resumed.key == whole.key
    a, b = weights(whole), weights(resumed)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    points = [
        [
            (p.step, p.loss, p.grad_norm, p.tokens)
            for p in read_table(tmp_path / f / "trajectory.parquet", TrajectoryPoint)
        ]
        for f in ("whole", "broken")
    ]
    assert points[0] == points[1]
    assert not (tmp_path / "broken" / "state").exists()


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_an_interrupt_while_the_result_is_written_repeats_no_step(
    tiny_folder: Path, tmp_path: Path, lora: LoRA | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny_folder, tmp_path / "whole", lora=lora)
    real = Job.keep_trajectory

    def interrupted(self: Job, points: Sequence[TrajectoryPoint]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        real(self, points)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "keep_trajectory", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_folder, tmp_path / "broken", lora=lora)
    assert not (tmp_path / "broken" / "state").exists()
    stopped: list[int] = []
    training = Training.model_validate(
        {"learning_rate": 1e-2, "steps": 7, "batch_size": 4, "lora": lora}
    )
    monkeypatch.setattr(_Loop, "_step", lambda _, index: stopped.append(index))
    bench = Bench(tmp_path / "broken", seed=5)
    again = train(Checkpoint(tiny_folder, "start"), bench, training, {"train": ROWS}, Method())
    assert not stopped
    assert again.key == whole.key
    a, b = weights(whole), weights(again)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_dropout_of_the_model_is_resumed_too(tmp_path: Path) -> None:
    start = save_tiny(tmp_path / "gpt2", "gpt2")  # its configuration has dropout 0.1
    whole = run(start, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(start, tmp_path / "broken", stop_after=2)
    a, b = weights(whole), weights(run(start, tmp_path / "broken"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_state_of_other_settings_is_not_continued(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tiny_folder, tmp_path / "stage", stop_after=3)
    fresh = run(tiny_folder, tmp_path / "fresh", learning_rate=2e-2)
    other = run(tiny_folder, tmp_path / "stage", learning_rate=2e-2)
    a, b = weights(fresh), weights(other)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_damaged_state_is_skipped(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tiny_folder, tmp_path / "stage", stop_after=3)
    (state,) = (tmp_path / "stage" / "state").glob("step-*/state.json")
    state.write_text("{")
    a, b = (
        weights(run(tiny_folder, tmp_path / "stage")),
        weights(run(tiny_folder, tmp_path / "whole")),
    )
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(
    tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"diverged at step \d of 7: .*lower `learning_rate`"):
        _diverge(tiny_folder, tmp_path / "stage")
    (state,) = (tmp_path / "stage" / "state").glob("step-*")
    kept = load_file(state / "weights.safetensors")
    assert all(bool(value.isfinite().all()) for value in kept.values())
    assert not (tmp_path / "stage" / "checkpoint").exists()


def _diverge(start: Path, folder: Path) -> None:
    """Train with an objective whose gradient is lost at the third step."""
    folder.mkdir()

    def objective(step):  # type: ignore[no-untyped-def]
        loss = step.backward("train")
        if step.index == 2:
            step.parameters[0].grad.fill_(float("nan"))
        return {"loss": loss}

    training = Training(learning_rate=1e-3, steps=7, batch_size=4)
    train(
        Checkpoint(start, "s"),
        Bench(folder),
        training,
        {"train": ROWS},
        Method(),
        objective=objective,
    )


def test_tensorboard_mirrors_the_trajectory(tiny_folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tiny_folder, tmp_path / "stage", trackers=("tensorboard",))
    (log,) = (tmp_path / "stage" / "backfire").glob("events.out.tfevents.*")
    events = EventAccumulator(str(log))
    events.Reload()
    points = read_table(tmp_path / "stage" / "trajectory.parquet", TrajectoryPoint)
    shown = [event.value for event in events.Scalars("loss")]
    assert shown == pytest.approx([point.loss for point in points], rel=1e-5)
