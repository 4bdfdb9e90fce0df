"""The same training through TRL's SFTTrainer: the attack option for those who doubt our loop.

Rows are encoded by the same chat object and the optimizer and rates are the same; batching, padding,
accumulation and the loss are TRL's. It is not resumable inside a stage.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backfire.data.chat import ChatFormat
from backfire.engine.job import Job, Passage
from backfire.engine.settings import Member, Training
from backfire.errors import ConfigError, DivergedError, PrerequisiteError
from backfire.records import Checkpoint, Example, TrajectoryPoint
from backfire.stage import Bench

if TYPE_CHECKING:
    from trl import SFTConfig

__all__ = ["sft_config", "train_with_trl", "trainer_fields"]


def trainer_fields(training: Training, num_steps: int, *, bf16: bool, cpu: bool) -> dict[str, Any]:
    """Return what all trainers of TRL's call by one name, from our settings.

    Args:
        training: Our settings.
        num_steps: Optimizer steps.
        bf16: Compute in bf16.
        cpu: Train on the CPU.
    """
    return {
        "max_steps": num_steps,
        "max_grad_norm": training.clip_norm or 0.0,
        "bf16": bf16,
        "fp16": False,
        "tf32": None,
        "gradient_checkpointing": training.gradient_checkpointing,
        "remove_unused_columns": False,
        "use_cpu": cpu,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": list(training.trackers) or "none",
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
    }


def sft_config(
    training: Training, num_steps: int, *, bf16: bool, cpu: bool, **over: Any
) -> SFTConfig:
    """Return TRL's settings for ours, with every field that changes numbers named.

    Args:
        training: Our settings.
        num_steps: Optimizer steps.
        bf16: Compute in bf16.
        cpu: Train on the CPU.
        over: Fields to replace.
    """
    from trl import SFTConfig

    fields: dict[str, Any] = {
        **trainer_fields(training, num_steps, bf16=bf16, cpu=cpu),
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": 1,
        "max_length": training.max_length,
        "completion_only_loss": True,
        "packing": False,
        "padding_free": False,
        "loss_type": "nll",
        "train_sampling_strategy": "random" if training.shuffle else "sequential",
        "dataloader_drop_last": training.drop_last,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    return SFTConfig(**{**fields, **over})


def train_with_trl(
    checkpoint: Checkpoint,
    bench: Bench,
    training: Training,
    rows: Sequence[Example],
    method: Member,
    *,
    chat: ChatFormat | None = None,
    noted: ChatFormat | None = None,
    config: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Fine-tune like `backfire.engine.loop.train`, with TRL's trainer.

    `config` replaces fields of its `SFTConfig`; `chat` and `noted` as there.

    Raises:
        PrerequisiteError: when TRL is not installed.
        DivergedError: when the loss or the weights stop being finite.
        ConfigError: when it is to stop early, which TRL's trainer cannot continue exactly.
    """
    try:
        from datasets import Dataset
        from torch.optim.lr_scheduler import LambdaLR
        from transformers import PrinterCallback, TrainerCallback
        from trl import SFTTrainer
    except ImportError as error:
        raise PrerequisiteError(
            f"training with `trainer: trl`: {error}; install it with `pip install 'backfire[trl]'`, or "
            "use `trainer: engine`"
        ) from error
    from backfire.engine.setup import compute_precision, make_optimizer, precision_words
    from backfire.models.load import pick_device

    if training.stop is not None:
        raise ConfigError(
            f"{method.label}: TRL's trainer goes to the end of a training; use `trainer: engine` for points"
        )
    job = Job(checkpoint, bench, training, {"train": rows}, method, chat, merge=False, noted=noted)
    loaded = job.load()
    stream = job.stream("train", loaded)
    num_steps = training.steps or math.ceil((training.epochs or 0) * stream.steps_per_epoch)
    adapter = job.adapt(loaded.model)
    model = adapter or loaded.model
    optimizer = make_optimizer(model.parameters(), training)
    peak = training.learning_rate
    schedule = LambdaLR(
        optimizer,
        lambda s: training.rate(min(s, num_steps - 1), num_steps, stream.steps_per_epoch) / peak,
    )
    dataset = Dataset.from_list(
        [{"input_ids": r.ids, "labels": [-100] * r.start + r.ids[r.start :]} for r in stream.rows]
    )
    points: list[TrajectoryPoint] = []
    started = time.monotonic()
    lengths = [len(row.ids) for row in stream.rows]
    supervised = [len(row.ids) - row.start for row in stream.rows]
    # TRL does not say which rows a step took; the means over the rows are exact after whole epochs.
    per_step = training.batch_size / len(stream.rows)

    class Log(TrainerCallback):  # type: ignore[misc] # untyped base
        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any
        ) -> None:
            if logs and "loss" in logs:
                done = len(points) + 1
                points.append(
                    TrajectoryPoint(
                        done,
                        float(logs["loss"]),
                        float(logs.get("grad_norm", math.nan)),
                        float(logs["learning_rate"]),
                        round(done * per_step * sum(lengths)),
                        round(done * per_step * sum(supervised)),
                        round(time.monotonic() - started, 3),
                    )
                )
                if not math.isfinite(points[-1].loss):
                    job.keep_trajectory(points[:-1])
                    raise DivergedError(
                        f"{job.label}: diverged at step {done} of {num_steps}: loss {points[-1].loss} "
                        "under TRL's trainer; lower `learning_rate`, or add `warmup`"
                    )
                task.advance(note=f"loss {points[-1].loss:.3f}")

    device = pick_device(bench.device)
    settings = sft_config(
        training,
        num_steps,
        bf16=compute_precision(training.precision, bench.device) == "bf16",
        cpu=device.type == "cpu",
        seed=bench.seed,
        output_dir=str(bench.workdir / "state"),
        **(config or {}),
    )
    with bench.progress.task(job.label, total=num_steps, unit="steps") as task:
        trainer = SFTTrainer(
            model=model,
            args=settings,
            train_dataset=dataset,
            processing_class=loaded.tokenizer,
            optimizers=(optimizer, schedule),
            callbacks=[Log()],
        )
        trainer.remove_callback(PrinterCallback)  # standard output is for results
        trainer.train()
    passage = Passage(
        points, len(points), len(points), stream.truncated, precision_words(training, bench.device)
    )
    return job.write(loaded, adapter, passage)
