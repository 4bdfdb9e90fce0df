"""The one training loop: checkpoint and rows in, checkpoint, trajectory and effect out."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from backfire.data.chat import ChatFormat
from backfire.engine import sharding
from backfire.engine.job import Job, Passage
from backfire.engine.objective import Anchored, Objective, Remembering, Supervised
from backfire.engine.settings import Member, Training, reached
from backfire.engine.state import Interrupts, find_state, gathered, load_state, save_state
from backfire.errors import ConfigError, DivergedError
from backfire.models.load import Loaded
from backfire.progress import Task
from backfire.records import Checkpoint, Example, TrajectoryPoint
from backfire.seeding import child_seed
from backfire.stage import Bench

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Watch", "train"]

Watch = Callable[[int, Loaded], None]
"""Called with the number of steps done (0: before the first) and the model, in evaluation mode."""


def train(
    checkpoint: Checkpoint,
    bench: Bench,
    training: Training,
    streams: Mapping[str, Sequence[Example]],
    method: Member,
    *,
    objective: Objective | None = None,
    batch_sizes: Mapping[str, int] | None = None,
    aligned: Sequence[str] = (),
    chat: ChatFormat | None = None,
    noted: ChatFormat | None = None,
    merge: bool = True,
    watch: Watch | None = None,
) -> Checkpoint:
    """Fine-tune a checkpoint and return the result, written to `bench.workdir`.

    Args:
        checkpoint: Where to start; untouched.
        bench: Working folder, seed, device, progress. An interrupted run in the same folder with the
            same settings, rows and start is continued, bit for bit; with `bench.state`, one that
            stopped earlier on the same course, too.
        training: Hyperparameters.
        streams: Rows by name; `train` sets the length of an epoch.
        method: Whose training this is; its settings are noted beside the weights.
        objective: The step; plain cross-entropy on `train` by default.
        batch_sizes: Global batch of each stream where it is not `training.batch_size`.
        aligned: Streams whose rows belong to those of `train`, one to one, and go with them.
        chat: Format to train in and to note; None keeps the checkpoint's.
        noted: Format to note where the model is to be asked otherwise than it was trained.
        merge: Write full weights even when an adapter was trained; False writes the adapter alone.
        watch: Called before the first and after every step.

    Raises:
        DivergedError: when loss, gradient or weights stop being finite; the last good state is kept.
        ConfigError: when the training is to stop after its end.
        DataError: when a row cannot be encoded.
        KeyboardInterrupt: after Ctrl-C, once the current step is done and the state is written, or the
            result, where it was being written.
    """
    job = Job(checkpoint, bench, training, streams, method, chat, merge, noted)
    if watch is None and job.written:
        return job.output
    return _Loop(job, objective or Supervised(), batch_sizes or {}, aligned, watch).run()


class _Loop:
    """One call of `train`."""

    def __init__(
        self,
        job: Job,
        objective: Objective,
        batch_sizes: Mapping[str, int],
        aligned: Sequence[str],
        watch: Watch | None,
    ) -> None:
        from backfire.engine.causal import Causal
        from backfire.engine.primitives import Passes
        from backfire.engine.setup import accelerator_for, make_optimizer, spread

        training, bench = job.training, job.bench
        self.job, self.objective, self.watch = job, objective, watch
        self.accelerator = accelerator_for(job)  # first: it gives each process its device
        self.sharded = self.accelerator.num_processes > 1 and sharding.asked_for()
        if self.sharded and training.optimizer == "adafactor":
            raise ConfigError(
                f"{job.label}: Adafactor keeps means over whole rows and columns of each matrix, of which "
                "FSDP2 leaves every process a part; use `optimizer: adamw`, or start without FSDP"
            )
        with sharding.hidden_switch():  # else only the first process would read the weights
            self.loaded = job.load("cpu" if self.sharded else None)
        self.streams = {
            name: job.stream(
                name, self.loaded, batch_sizes.get(name), "train" if name in aligned else ""
            )
            for name in job.streams
        }
        self.steps_per_epoch = self.streams["train"].steps_per_epoch
        self.num_steps = training.steps or math.ceil((training.epochs or 0) * self.steps_per_epoch)
        self.stop = reached(training.stop, self.num_steps)
        if self.stop > self.num_steps:
            raise ConfigError(
                f"{job.label}: it is to stop after {self.stop} optimizer steps and has {self.num_steps} in "
                "all; give an earlier point, or a share between 0 and 1"
            )
        self.adapter = job.adapt(self.loaded.model)
        if training.gradient_checkpointing:
            self.loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.loaded.model.enable_input_require_grads()
        causal = Causal(self.loaded.model, training.logits_budget)
        self.model = spread(causal, self.accelerator, sharded=self.sharded)
        # Read afterwards: distributed wrappers may replace the parameters, and prefix their names.
        self.named: dict[str, nn.Parameter] = {
            name.removeprefix("module."): p
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }
        self.optimizer = make_optimizer(self.named.values(), training)
        self.passes = Passes()
        self.points: list[TrajectoryPoint] = []
        self.began = time.monotonic()
        self.state = bench.state or bench.workdir / "state"
        self.log = self.state / "trajectory.jsonl"

    def run(self) -> Checkpoint:
        """Train, write the result, and drop the state it no longer needs."""
        from backfire.engine.setup import precision_words

        training, bench = self.job.training, self.job.bench
        if training.precision == "bf16-pure":
            bench.progress.warn(
                f"{self.job.label}: bf16 weights without an fp32 copy lose small updates; the training "
                "effect will say how many"
            )
        if isinstance(self.objective, Anchored):
            self.objective.begin(list(self.named.values()))
        self._resume()
        with bench.progress.task(self.job.label, total=self.stop, unit="steps") as task:
            task.skip(len(self.points))
            self._steps(task)
        goes_on = bench.state is not None and self.stop < self.num_steps
        if goes_on:
            self._save()
        for tracker in self.accelerator.trackers:
            tracker.finish()  # not `end_training`, which also cuts the line between the processes
        passage = Passage(
            self.points,
            self.passes.forwards,
            self.passes.backwards,
            sum(stream.truncated for stream in self.streams.values()),
            precision_words(training, bench.device),
        )
        main = self.accelerator.is_main_process
        tensors = gathered(self.named, keep=main) if self.sharded else None
        with Interrupts() as interrupts:
            if main:
                if tensors is not None:
                    self._gather(tensors)
                self.job.write(self.loaded, self.adapter, passage)
                if not goes_on:
                    shutil.rmtree(self.state, ignore_errors=True)
            self.accelerator.wait_for_everyone()
        if interrupts.wanted:
            raise KeyboardInterrupt
        return self.job.output

    def _gather(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put whole weights into a model of one piece, in place of the one in parts."""
        import torch

        self.loaded = self.job.load("cpu")
        self.adapter = self.job.adapt(self.loaded.model)
        named = dict(self.loaded.model.named_parameters())
        with torch.no_grad():
            for name, value in tensors.items():
                named[name.removeprefix("model.")].copy_(value)

    def _steps(self, task: Task) -> None:
        training = self.job.training
        before = self.points[-1].seconds if self.points else 0.0
        saved = time.monotonic()
        self.began = saved - before
        self._watch()
        with Interrupts() as interrupts:
            for index in range(len(self.points), self.stop):
                self._step(index)
                task.advance(note=f"loss {self.points[-1].loss:.3f}")
                last = index + 1 == self.stop
                due = time.monotonic() - saved > 60 * training.save_minutes
                leave, save = self._agreed(interrupts.wanted, due and not last)
                if leave:
                    self._save_to_leave()
                    raise KeyboardInterrupt
                if save:
                    self._save()
                    saved = time.monotonic()

    def _agreed(self, *wanted: bool) -> tuple[bool, ...]:
        """Return what any process wants: all must save and leave after the same step."""
        import torch

        if self.accelerator.num_processes == 1:
            return wanted
        asked = torch.tensor(wanted, dtype=torch.float32, device=self.accelerator.device)
        return tuple((self.accelerator.reduce(asked, reduction="sum") > 0).tolist())

    def _step(self, index: int) -> None:
        """Make one optimizer step, or none at all when it would not be finite."""
        import torch

        from backfire.engine.primitives import Step

        training = self.job.training
        batches = {name: stream.batch(index) for name, stream in self.streams.items()}
        rate = training.rate(index, self.num_steps, self.steps_per_epoch)
        # Dropout is a function of seed and step, so that a resumed run draws the same masks.
        torch.manual_seed(child_seed(self.job.bench.seed, "step", index))
        self.model.train()
        parameters = list(self.named.values())
        step = Step(
            index,
            self.model,
            parameters,
            batches,
            self.accelerator,
            training.token_budget,
            self.passes,
            self.streams,
            self.job.bench.seed,
        )
        step.clear()
        terms = dict(self.objective(step))
        loss = terms.pop("loss")
        norm = float(self.accelerator.clip_grad_norm_(parameters, training.clip_norm or math.inf))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._save_to_leave()
            self.job.keep_trajectory(self.points)
            raise DivergedError(
                f"{self.job.label}: diverged at step {index + 1} of {self.num_steps}: loss {loss}, "
                f"gradient norm {norm}, which no step can follow; lower `learning_rate` (now {rate:g}), "
                "add `warmup`, or look at the rows"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        step.clear()
        point = TrajectoryPoint(
            step=index + 1,
            loss=loss,
            grad_norm=norm,
            learning_rate=rate,
            tokens=self.passes.tokens,
            supervised_tokens=self.passes.supervised,
            seconds=round(time.monotonic() - self.began, 3),
            terms=terms,
        )
        self.points.append(point)
        self._note([point], "a")
        self.accelerator.log(
            {"loss": loss, "grad_norm": norm, "learning_rate": rate, **terms}, step=index + 1
        )
        self._watch()

    def _watch(self) -> None:
        if self.watch is not None:
            self.loaded.model.eval()
            self.watch(len(self.points), self.loaded)

    def _resume(self) -> None:
        """Continue from the latest state of the same job, if there is one."""
        from backfire.engine.primitives import Passes

        found = find_state(self.state, self.job.course, self.stop)
        if found is not None:
            folder, facts = found
            load_state(folder, self.named, self.optimizer)
            self.passes = Passes(**facts["passes"])
            if isinstance(self.objective, Remembering):
                self.objective.memory = facts["memory"]
            self.points = _read_log(self.log)[: facts["step"]]
            self.job.bench.progress.say(f"{self.job.label}: going on after step {len(self.points)}")
        self.accelerator.wait_for_everyone()  # all have read the log that one now writes anew
        self._note(self.points, "w")

    def _save(self) -> None:
        memory = self.objective.memory if isinstance(self.objective, Remembering) else {}
        save_state(
            self.state,
            len(self.points),
            self.job.course,
            self.named,
            self.optimizer,
            {"passes": asdict(self.passes), "memory": memory},
            writes=self.accelerator.is_main_process,
        )

    def _save_to_leave(self) -> None:
        """Save; no process may leave before that, as launchers then end the others."""
        self._save()
        self.accelerator.wait_for_everyone()

    def _note(self, points: Sequence[TrajectoryPoint], mode: str) -> None:
        if self.accelerator.is_main_process:
            self.state.mkdir(parents=True, exist_ok=True)
            with self.log.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(point)) + "\n" for point in points)


def _read_log(path: Path) -> list[TrajectoryPoint]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [TrajectoryPoint(**json.loads(line)) for line in lines]
