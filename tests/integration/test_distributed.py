"""Two processes take the same steps as one: the global batch is one batch, however it is spread.

Both kinds of spreading are tried: whole weights in each process (DDP), and a part of each weight in each
process (FSDP2). The processes talk over loopback sockets, which tests may not open, so this file runs
itself again, as a script, under torch's launcher; one pair of processes does every case.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backfire.engine import LoRA, Member, Training
from backfire.engine.batching import Stream
from backfire.engine.loop import train
from backfire.engine.primitives import Step, add_, dot, global_norm, restore, set_grads, snapshot
from backfire.errors import PrerequisiteError
from backfire.models.load import load
from backfire.models.tiny import save_tiny
from backfire.records import Checkpoint, Example, TrajectoryPoint
from backfire.stage import Bench
from backfire.store import read_table
from small_methods import ATTACKS, DATA, TRAINED_DEFENSES, build, name_of

ROWS = [Example(f"question {i}" + " very" * (7 * (i == 2)), f"answer {i * 7}") for i in range(7)]
BATCH, BUDGET = 3, 40
_PATIENCE = 900
"""Seconds: three processes take turns on a busy machine, and every sum waits for the slowest."""
pytestmark = pytest.mark.timeout(_PATIENCE + 60)
WAYS = {"ddp": {}, "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}}
"""What the launcher sets for each way of spreading."""


class Method(Member):
    name: str = "test"


class Mechanics:
    """A step made of every primitive: a loss of its own, a move along its gradient, the way back."""

    def __call__(self, step: Step) -> Mapping[str, float]:
        value, there = step.grads("train", lambda model, part: model.losses(part).square().sum())
        norm = global_norm(there)
        saved = snapshot(step.parameters)
        add_(step.parameters, there, 0.05 / norm)
        moved, here = step.grads("train")
        restore(step.parameters, saved)
        block = step.causal.model.base_model.layers[0]
        _, seen = step.activation_grads([block.mlp, block])
        set_grads(step.parameters, [a - 0.5 * b for a, b in zip(there, here, strict=True)])
        return {
            "loss": value,
            "moved": moved,
            "after": step.loss("train"),
            "norm": norm,
            "cosine": dot(there, here) / (norm * global_norm(here)),
            "activations": step.activation_norm(seen),
        }


@dataclass(frozen=True)
class Case:
    """One training, in one process and in two."""

    name: str
    way: str = "ddp"
    architecture: str = "llama"
    lora: bool = False
    own: bool = False
    interrupted: bool = False
    """The second process gets Ctrl-C after two steps; the training is then begun again."""
    checkpointing: bool = False
    bf16: bool = False
    scope: bool = False
    """Only the feed-forward part of the last block moves, or gets an adapter."""
    method: str = ""
    """A defense, or an attack with a step of its own."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the method, beside the small ones."""

    def run(self, root: Path) -> None:
        out = root / self.name
        out.mkdir(parents=True, exist_ok=True)
        start = Checkpoint(root.parent / self.architecture, "start")
        if self.method:
            (member,) = (m for m in METHODS if name_of(m) == self.method)
            # Plain SGD shows the gradient; AdamW would show the sign of its rounding errors.
            training: dict[str, Any] = {
                "steps": 2, "batch_size": BATCH, "optimizer": "sgd", "learning_rate": 0.1,
                "token_budget": 160, "lora": {"rank": 2} if self.lora else None,
            }  # fmt: skip
            build(member, **self.settings, training=training)(
                start, Bench(out, device="cpu", data=DATA)
            )
            return
        training = Training(
            learning_rate=3e-3,
            steps=5,
            batch_size=BATCH,
            token_budget=BUDGET,
            lora=LoRA(rank=2) if self.lora else None,
            gradient_checkpointing=self.checkpointing,
            precision="bf16" if self.bf16 else "fp32",
            trainable="mlp" if self.scope else "all",
            last_layers=1 if self.scope else None,
        )

        def watch(done: int, _: object) -> None:
            if self.interrupted and done == 2 and os.environ.get("RANK") == "1":
                os.kill(os.getpid(), signal.SIGINT)

        def once(watch: Any) -> None:
            train(
                start,
                Bench(out, device="cpu"),
                training,
                {"train": ROWS},
                Method(),
                objective=Mechanics() if self.own else None,
                merge=not self.lora,
                watch=watch,
            )

        if self.interrupted and "RANK" in os.environ:
            try:
                once(watch)
            except KeyboardInterrupt:
                (state,) = (out / "state").glob("step-*")
                assert state.name == "step-2", "all left after the step in which one was asked to"
            else:
                raise AssertionError("nobody was asked to leave")
        once(None)


METHODS = [
    *TRAINED_DEFENSES,
    *(m for m in ATTACKS if name_of(m) in ("dpo", "interleaved", "kl_anchored")),
]


def _cases() -> Iterator[Case]:
    for way in WAYS:
        yield Case(f"{way}-full", way, interrupted=True)
        yield Case(f"{way}-lora", way, lora=True, interrupted=True)
        yield Case(f"{way}-own", way, own=True)
        yield Case(f"{way}-own-lora", way, own=True, lora=True)
        yield Case(f"{way}-tied", way, architecture="gemma2", checkpointing=True)
        yield Case(f"{way}-bf16", way, bf16=True)
        yield Case(f"{way}-scope", way, scope=True)
        yield Case(f"{way}-scope-lora", way, scope=True, lora=True)
        for member in METHODS:
            for lora in (False, True) if member in TRAINED_DEFENSES else (False,):
                name = name_of(member)
                yield Case(f"{way}-{name}{'-lora' * lora}", way, lora=lora, method=name)
        adapter = {"inner_lora": {"rank": 2, "rates": [1e-2]}}
        yield Case(f"{way}-meta_sdd-adapter", way, method="meta_sdd", settings=adapter)
        more = {"collapse": "unlikely", "hold": "start", "second_order": True, "scale": "gradient"}
        yield Case(f"{way}-meta_sdd-more", way, method="meta_sdd", settings=more)


CASES = {case.name: case for case in _cases()}
LOOP = [name for name, case in CASES.items() if not case.method]
METHODICAL = [name for name, case in CASES.items() if case.method]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return what one process left, and what two did."""
    root = tmp_path_factory.mktemp("distributed")
    for architecture in ("llama", "gemma2"):
        save_tiny(root / architecture, architecture)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    two = subprocess.Popen(
        [*launcher, __file__, str(root / "two")],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for case in CASES.values():
        if case.way == "ddp":
            case.run(root / "one")
    said, _ = two.communicate(timeout=_PATIENCE)
    assert two.returncode == 0, said
    return root / "one", root / "two"


def _result(folder: Path) -> tuple[list[TrajectoryPoint], dict[str, torch.Tensor]]:
    (weights,) = (folder / "checkpoint").glob("*.safetensors")
    return read_table(folder / "trajectory.parquet", TrajectoryPoint), load_file(weights)


def _both(folders: tuple[Path, Path], name: str) -> Any:
    case = CASES[name]
    return _result(folders[0] / name.replace(case.way, "ddp", 1)), _result(folders[1] / name)


def test_the_processes_have_different_numbers_of_micro_batches(tiny_folder: Path) -> None:
    chat = load(tiny_folder).chat
    stream = Stream("train", ROWS, chat, max_length=512, batch_size=BATCH, seed=0)
    counts = []
    for step in range(5):
        parts = [stream.batch(step).micro(BUDGET, rank, 2) for rank in range(2)]
        assert len(parts[0]) == len(parts[1])
        counts += [tuple(sum(part.num_tokens > 0 for part in p) for p in parts)]
    assert any(a != b for a, b in counts)


@pytest.mark.parametrize("name", LOOP)
def test_two_processes_equal_one(folders: tuple[Path, Path], name: str) -> None:
    """Losses, norms and weights within 1e-5 over five steps of AdamW, an interrupt between them.

    Where products are rounded to bf16, 8 bits, within a few of their rounding errors.
    """
    (one, mine), (two, theirs) = _both(folders, name)
    near = 5e-3 if CASES[name].bf16 else 1e-5
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert b.loss == pytest.approx(a.loss, abs=near)
        assert b.terms == pytest.approx(a.terms, abs=near)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=near)
        assert (b.tokens, b.supervised_tokens) == (a.tokens, a.supervised_tokens)
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert mine[key].dtype == torch.float32
        torch.testing.assert_close(theirs[key], mine[key], atol=near, rtol=0)


@pytest.mark.parametrize("name", METHODICAL)
def test_a_method_moves_the_weights_alike(folders: tuple[Path, Path], name: str) -> None:
    """Two steps of SGD: the ways the weights went differ by less than a thousandth of their length."""
    (one, mine), (two, theirs) = _both(folders, name)
    for a, b in zip(one, two, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-4, abs=1e-4)
        assert (b.tokens, b.supervised_tokens) == (a.tokens, a.supervised_tokens)
    start = load_file(folders[0].parent / "llama" / "model.safetensors")
    assert mine.keys() == theirs.keys() == start.keys()
    went = torch.cat([(mine[key] - start[key]).flatten() for key in start])
    apart = torch.cat([(theirs[key] - mine[key]).flatten() for key in start])
    assert went.norm() > 0
    assert apart.norm() < 1e-3 * went.norm()


def test_nothing_is_left_of_the_interrupted_trainings(folders: tuple[Path, Path]) -> None:
    assert not list(folders[1].glob("*/state"))


def test_the_first_version_of_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from backfire.engine.sharding import asked_for

    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert not asked_for()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(PrerequisiteError, match="fsdp_version 2"):
        asked_for()


def _main(root: Path) -> None:
    for case in CASES.values():
        for key in WAYS["fsdp2"]:
            os.environ.pop(key, None)
        os.environ.update(WAYS[case.way])
        case.run(root)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
