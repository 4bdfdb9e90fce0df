"""Two processes take the same steps as one: the global batch is one batch, however it is spread.

The processes talk over loopback sockets, which tests may not open, so this file runs itself again,
as a script, under torch's launcher.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backfire.engine import LoRA, Member, Training
from backfire.engine.batching import Stream
from backfire.engine.loop import train
from backfire.engine.primitives import Step, set_grads
from backfire.models.load import load
from backfire.records import Checkpoint, Example, TrajectoryPoint
from backfire.stage import Bench
from backfire.store import read_table

ROWS = [Example(f"question {i}" + " very" * (7 * (i == 2)), f"answer {i * 7}") for i in range(7)]
BATCH, BUDGET = 3, 40


class Method(Member):
    name: str = "test"


class Squares:
    """A step of a method's own: its gradient comes through `grads` and a loss of its own."""

    def __call__(self, step: Step) -> Mapping[str, float]:
        value, gradients = step.grads("train", loss=lambda model, part: model.losses(part).square().sum())
        set_grads(step.parameters, gradients)
        return {"loss": value, "before": step.loss("train")}


def stages(start: Path, out: Path, interrupted_rank: str | None = None) -> None:
    """Train with all weights, with an adapter, and with an objective of its own, one on the other.

    Args:
        start: The model.
        out: Where each stage gets its folder.
        interrupted_rank: The process that gets Ctrl-C during the first stage, which is then begun
            again.
    """

    def stage(name: str, start: Path, lora: LoRA | None = None, stop: bool = False) -> Path:
        def watch(done: int, _: object) -> None:
            if stop and done == 2 and os.environ["RANK"] == interrupted_rank:
                os.kill(os.getpid(), signal.SIGINT)

        (out / name).mkdir(parents=True, exist_ok=True)
        training = Training(
            learning_rate=3e-3, steps=5, batch_size=BATCH, token_budget=BUDGET, lora=lora
        )
        return train(
            Checkpoint(start, "start"),
            Bench(out / name, device="cpu"),
            training,
            {"train": ROWS},
            Method(),
            objective=Squares() if name == "own" else None,
            merge=lora is None,
            watch=watch,
        ).path

    if interrupted_rank is not None:
        try:
            stage("full", start, stop=True)
        except KeyboardInterrupt:
            (state,) = (out / "full" / "state").glob("step-*")
            assert state.name == "step-2", "all left after the step in which one was asked to"
    full = stage("full", start)
    stage("lora", full, lora=LoRA(rank=2))
    stage("own", full)


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return what one process left, and what two did."""
    root = tmp_path_factory.mktemp("distributed")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    two = subprocess.Popen(
        [*launcher, __file__, str(tiny_folder), str(root / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    stages(tiny_folder, root / "one")
    said, _ = two.communicate(timeout=240)
    assert two.returncode == 0, said
    assert "going on" not in said
    return root / "one", root / "two"


def test_the_processes_have_different_numbers_of_micro_batches(tiny_folder: Path) -> None:
    chat = load(tiny_folder).chat
    stream = Stream("train", ROWS, chat, max_length=512, batch_size=BATCH, seed=0)
    counts = []
    for step in range(5):
        parts = [stream.batch(step).micro(BUDGET, rank, 2) for rank in range(2)]
        assert len(parts[0]) == len(parts[1])
        counts += [tuple(sum(part.num_tokens > 0 for part in p) for p in parts)]
    assert any(a != b for a, b in counts)


@pytest.mark.parametrize("name", ["full", "lora", "own"])
def test_two_processes_equal_one(folders: tuple[Path, Path], name: str) -> None:
    one, two = (
        read_table(folder / name / "trajectory.parquet", TrajectoryPoint) for folder in folders
    )
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert b.loss == pytest.approx(a.loss, abs=1e-5)
        assert b.terms == pytest.approx(a.terms, abs=1e-5)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-5)
        assert (b.tokens, b.supervised_tokens) == (a.tokens, a.supervised_tokens)
    file = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    mine, theirs = (load_file(folder / name / "checkpoint" / file) for folder in folders)
    assert mine.keys() == theirs.keys()
    for key in mine:
        torch.testing.assert_close(theirs[key], mine[key], atol=1e-5, rtol=0)


def test_nothing_is_left_of_the_interrupted_training(folders: tuple[Path, Path]) -> None:
    assert not list(folders[1].glob("*/state"))


if __name__ == "__main__":
    stages(Path(sys.argv[1]), Path(sys.argv[2]), interrupted_rank="1")
