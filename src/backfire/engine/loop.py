"""The one training loop: checkpoint and rows in, checkpoint, trajectory and effect out.

stage folder/
├── checkpoint/          what `transformers` (or PEFT) loads, with backfire.json
├── trajectory.parquet   one row a step
├── effect.json          what the training did to the weights
└── state/               only while unfinished: what a resume begins from
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backfire.data.chat import ChatFormat
from backfire.engine.batching import Stream
from backfire.engine.effect import Passage, measure, weights_of
from backfire.engine.objective import Objective, Supervised
from backfire.engine.settings import Member, Training
from backfire.engine.state import Interrupts, find_state, load_state, save_state
from backfire.errors import TrainingError
from backfire.models.load import NOTE, Loaded, load, pick_device
from backfire.records import Checkpoint, Example, TrainingEffect, TrajectoryPoint
from backfire.seeding import child_seed
from backfire.stage import Bench
from backfire.store import content_key, replace_folder, write_json, write_table

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from peft import PeftModel

__all__ = ["train"]

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
    chat: ChatFormat | None = None,
    merge: bool = True,
    watch: Watch | None = None,
) -> Checkpoint:
    """Fine-tune a checkpoint and return the result, written to `bench.workdir`.

    Args:
        checkpoint: Where to start; untouched.
        bench: Working folder, seed, device, progress. An interrupted run in the same folder with the
            same settings, rows and start is continued, bit for bit.
        training: Hyperparameters.
        streams: Rows by name; `train` sets the length of an epoch.
        method: Whose training this is; its settings are noted beside the weights.
        objective: The step; plain cross-entropy on `train` by default.
        batch_sizes: Global batch of each stream where it is not `training.batch_size`.
        chat: Format to train in and to note; None keeps the checkpoint's.
        merge: Write full weights even when an adapter was trained; False writes the adapter alone.
        watch: Called before the first and after every step.

    Raises:
        TrainingError: when loss or gradient stop being finite; the last good state is kept.
        DataError: when a row cannot be encoded.
        KeyboardInterrupt: after Ctrl-C, once the current step is done and the state is written.
    """
    return _Run(
        checkpoint, bench, training, streams, method, objective, batch_sizes, watch
    ).result()


class _Run:
    """One call of `train`, in the order it happens."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        bench: Bench,
        training: Training,
        streams: Mapping[str, Sequence[Example]],
        method: Member,
        objective: Objective | None,
        batch_sizes: Mapping[str, int],
        chat: ChatFormat | None,
        merge: bool,
        watch: Watch | None,
    ) -> None:
        self.checkpoint, self.bench, self.training, self.method = (
            checkpoint,
            bench,
            training,
            method,
        )
        self.objective = objective or Supervised()
        self.merge, self.watch = merge, watch
        self.data = {
            name: {"rows": len(rows), "sha256": content_key([row.id for row in rows])}
            for name, rows in streams.items()
        }
        self.key = content_key(checkpoint.key, method, training, self.data, chat, bench.seed)
        self.state = bench.workdir / "state"
        self.log = self.state / "trajectory.jsonl"
        self.loaded = load(
            checkpoint,
            device=bench.device,
            dtype="bf16" if training.precision == "bf16-pure" else "fp32",
            chat=chat,
        )
        self.streams = {
            name: Stream(
                name,
                rows,
                self.loaded.chat,
                max_length=training.max_length,
                batch_size=batch_sizes.get(name, training.batch_size),
                seed=bench.seed,
                shuffle=training.shuffle,
                drop_last=training.drop_last,
            )
            for name, rows in streams.items()
        }
        self.steps_per_epoch = self.streams["train"].steps_per_epoch
        self.num_steps = training.steps or math.ceil((training.epochs or 0) * self.steps_per_epoch)
        self.passage = Passage(truncated=sum(s.truncated for s in self.streams.values()))

    def result(self) -> Checkpoint:
        points = self._steps()
        return self._written(points)

    # ------------------------------------------------------------------------------------- training

    def _steps(self) -> list[TrajectoryPoint]:
        import torch

        from backfire.engine.causal import Causal
        from backfire.engine.primitives import Passes, Step

        training, bench = self.training, self.bench
        precision = _compute(training.precision, bench.device)
        pure = training.precision == "bf16-pure"
        self.passage.precision = f"{'bf16' if pure else 'fp32'} weights, {precision} compute"
        if pure:
            bench.progress.warn(
                "bf16 weights without an fp32 copy lose small updates; see the training effect"
            )
        self.accelerator = _accelerator(precision, bench, training, self.method.label)
        torch.manual_seed(child_seed(bench.seed, "adapter"))
        self.adapter = self._adapted()
        model = self.loaded.model
        if training.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        causal = Causal(model, training.logits_budget).to(self.accelerator.device)
        named = {n: p for n, p in causal.named_parameters() if p.requires_grad}
        optimizer = _optimizer(named, training)
        wrapped, optimizer = self.accelerator.prepare(causal, optimizer)
        # Distributed wrappers may replace the parameters.
        named = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
        inner = getattr(optimizer, "optimizer", optimizer)

        points: list[TrajectoryPoint] = []
        found = find_state(self.state, self.key)
        passes = Passes()
        if found is not None:
            folder, facts = found
            load_state(folder, named, inner)
            passes = Passes(facts["forwards"], facts["backwards"])
            points = _read_log(self.log)[: facts["step"]]
            bench.progress.say(
                f"{bench.label or self.method.label}: resuming after step {len(points)}"
            )
        self._rewrite_log(points)
        before = points[-1].seconds if points else 0.0
        started = saved = time.monotonic()
        tokens = points[-1].tokens if points else 0
        supervised = points[-1].supervised_tokens if points else 0
        self._watch(len(points))
        with (
            Interrupts() as interrupts,
            bench.progress.task(
                bench.label or self.method.label, total=self.num_steps, unit="steps"
            ) as task,
        ):
            task.skip(len(points))
            for index in range(len(points), self.num_steps):
                batches = {name: stream.batch(index) for name, stream in self.streams.items()}
                rate = training.rate(index, self.num_steps, self.steps_per_epoch)
                # Dropout is a function of seed and step, so that a resumed run draws the same masks.
                torch.manual_seed(child_seed(bench.seed, "step", index))
                wrapped.train()
                step = Step(
                    index, wrapped, list(named.values()), batches, self.accelerator,
                    training.token_budget, passes,
                )  # fmt: skip
                step.clear()
                terms = dict(self.objective(step))
                loss = terms.pop("loss")
                norm = self._clip(step)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    self._save(index, named, inner, passes)
                    raise TrainingError(
                        f"{self.method.label}: step {index + 1} of {self.num_steps} gave loss {loss} and "
                        f"gradient norm {norm}, which no step can follow. The weights after step {index} "
                        f"are kept in {self.state}; lower `learning_rate` (now {rate:g}), add `warmup`, "
                        "or look at the rows of this batch"
                    )
                for group in inner.param_groups:
                    group["lr"] = rate
                optimizer.step()
                step.clear()
                tokens += sum(batch.tokens for batch in batches.values())
                supervised += sum(batch.supervised for batch in batches.values())
                points.append(
                    TrajectoryPoint(
                        index + 1,
                        loss,
                        norm,
                        rate,
                        tokens,
                        supervised,
                        round(before + time.monotonic() - started, 3),
                        terms,
                    )
                )
                self._append(points[-1])
                self.accelerator.log(
                    {"loss": loss, "grad_norm": norm, "learning_rate": rate, **terms},
                    step=index + 1,
                )
                self._watch(index + 1)
                task.advance(note=f"loss {loss:.3f}")
                due = time.monotonic() - saved > 60 * training.save_minutes
                if interrupts.wanted or (due and index + 1 < self.num_steps):
                    self._save(index + 1, named, inner, passes)
                    saved = time.monotonic()
                if interrupts.wanted:
                    raise KeyboardInterrupt
        self.accelerator.end_training()
        self.passage.passes = passes
        self.wrapped = wrapped
        return points

    def _adapted(self) -> PeftModel | None:
        """Prepare the parameters to train: an adapter's, or all."""
        lora = self.training.lora
        if lora is None:
            self.loaded.model.requires_grad_(True)
            return None
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
            bias="none",
        )
        return get_peft_model(self.loaded.model, config)

    def _clip(self, step: Any) -> float:
        """Clip the combined gradient; return its global norm before."""
        limit = self.training.clip_norm
        norm = self.accelerator.clip_grad_norm_(step.parameters, limit or math.inf)
        return float(norm)

    def _watch(self, done: int) -> None:
        if self.watch is not None:
            model = self.loaded.model
            training = model.training
            model.eval()
            self.watch(done, self.loaded)
            model.train(training)

    # ------------------------------------------------------------------------------- state and log

    def _save(
        self,
        step: int,
        named: Mapping[str, torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        passes: Any,
    ) -> None:
        if self.accelerator.is_main_process:
            save_state(self.state, step, self.key, named, optimizer, asdict(passes))

    def _append(self, point: TrajectoryPoint) -> None:
        if self.accelerator.is_main_process:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(point)) + "\n")

    def _rewrite_log(self, points: Sequence[TrajectoryPoint]) -> None:
        if self.accelerator.is_main_process:
            self.state.mkdir(parents=True, exist_ok=True)
            self.log.write_text(
                "".join(json.dumps(asdict(point)) + "\n" for point in points), encoding="utf-8"
            )

    # -------------------------------------------------------------------------------------- results

    def _written(self, points: list[TrajectoryPoint]) -> Checkpoint:
        """Write checkpoint, trajectory and effect; then the state is no longer needed."""
        bench, target = self.bench, self.bench.workdir / "checkpoint"
        self.accelerator.wait_for_everyone()
        state = (
            self.accelerator.get_state_dict(self.wrapped) if _sharded(self.accelerator) else None
        )
        alone = self.adapter is not None and not self.merge
        if self.accelerator.is_main_process:
            with replace_folder(target) as folder:
                self._write_weights(folder, state, alone)
                effect = self._effect(points)
                write_json(folder / NOTE, self._note(effect))
            write_table(bench.workdir / "trajectory.parquet", points, TrajectoryPoint)
            write_json(bench.workdir / "effect.json", effect)
            shutil.rmtree(self.state, ignore_errors=True)
            if effect.warning:
                bench.progress.warn(f"{bench.label or self.method.label}: {effect.warning}")
        self.accelerator.wait_for_everyone()
        base = (self.checkpoint.base or self.checkpoint.path) if alone else None
        return replace(self.checkpoint, path=target, key=self.key, base=base)

    def _write_weights(self, folder: Path, state: dict[str, Any] | None, alone: bool) -> None:
        import torch

        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        if self.adapter is not None:
            if alone:
                self.adapter.save_pretrained(str(folder))
            model = self.adapter.merge_and_unload()
            self.after = weights_of(model)
        else:
            self.after = weights_of(model)
        if not alone:
            kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "source": None}[
                self.training.save_dtype
            ]
            if kind is None:
                kind = _stored_dtype(self.checkpoint)
            if state is not None:
                state = {
                    name.removeprefix("model."): value.to(kind) for name, value in state.items()
                }
            if model.dtype != kind:
                model = model.to(kind)
            model.save_pretrained(folder, state_dict=state)
        if not tokenizer.chat_template:
            tokenizer.chat_template = self.loaded.chat.template
        tokenizer.save_pretrained(folder)

    def _effect(self, points: list[TrajectoryPoint]) -> TrainingEffect:
        training = self.training
        return measure(
            self.method.label,
            self.checkpoint,
            self.after,
            points,
            self.passage,
            lora=training.lora is not None,
            device=str(pick_device(self.bench.device)),
        )

    def _note(self, effect: TrainingEffect) -> dict[str, Any]:
        from backfire import __version__

        return {
            "backfire": __version__,
            "method": self.method.model_dump(mode="json"),
            "chat": self.loaded.chat.format.model_dump(mode="json"),
            "parent": self.checkpoint.key,
            "key": self.key,
            "seed": self.bench.seed,
            "data": self.data,
            "effect": asdict(effect),
        }


def _optimizer(
    named: Mapping[str, torch.nn.Parameter], training: Training
) -> torch.optim.Optimizer:
    import torch

    # The HF trainer's convention: matrices decay, biases and norm scales do not.
    matrices = [p for p in named.values() if p.ndim >= 2]
    vectors = [p for p in named.values() if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": training.weight_decay}]
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate)
    fused = all(p.device.type in ("cpu", "cuda") for p in named.values())
    return torch.optim.AdamW(
        groups, lr=training.learning_rate, betas=training.betas, eps=training.epsilon, fused=fused
    )


def _accelerator(precision: str, bench: Bench, training: Training, label: str) -> Accelerator:
    """Return an Accelerate context for this stage; an earlier stage's settings do not linger."""
    import os

    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    device = pick_device(bench.device)
    if device.type == "cuda" and device.index:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        cpu=device.type == "cpu",
        log_with=list(training.trackers) or None,
        project_dir=str(bench.workdir),
    )
    if training.trackers:
        accelerator.init_trackers("backfire", config={"label": label, "seed": bench.seed})
    return accelerator


def _compute(precision: str, device: str) -> str:
    """Return what matrix products are computed in."""
    import torch

    if precision != "auto":
        return "bf16" if precision.startswith("bf16") else "fp32"
    target = pick_device(device)
    if target.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if target.type == "cpu":
        # Without these instructions bf16 is emulated, slower than fp32 and less exact.
        flags = torch.backends.cpu.get_cpu_capability()
        return "bf16" if "AMX" in flags or "BF16" in flags else "fp32"
    return "fp32"


def _sharded(accelerator: Accelerator) -> bool:
    return str(accelerator.distributed_type).rpartition(".")[2] in ("FSDP", "DEEPSPEED")


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    import torch
    from transformers import AutoConfig

    folder = checkpoint.base or checkpoint.path
    config = AutoConfig.from_pretrained(folder, trust_remote_code=checkpoint.trust_remote_code)
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def _read_log(path: Path) -> list[TrajectoryPoint]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [TrajectoryPoint(**json.loads(line)) for line in lines]
