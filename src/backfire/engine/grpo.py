"""Reinforcement learning against a reward, through TRL's GRPOTrainer.

Prompts are formatted, and answers ended, by the same chat object as everywhere; sampling, advantages and
the loss are TRL's. It is not resumable inside a stage.

Source: Shao et al. 2024, DeepSeekMath, arXiv 2402.03300, section 4.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backfire.data.chat import ChatFormat
from backfire.engine.job import Job, Passage
from backfire.engine.settings import Member, Training
from backfire.engine.trl import trainer_fields
from backfire.errors import ConfigError, DataError, DivergedError, PrerequisiteError
from backfire.models.load import context_length
from backfire.records import Checkpoint, Example, TrajectoryPoint
from backfire.seeding import child_seed
from backfire.stage import Bench

if TYPE_CHECKING:
    from backfire.models.load import Loaded

__all__ = ["Policy", "Reward", "Sampled", "train_with_grpo"]


@dataclass(frozen=True, slots=True)
class Sampled:
    """One answer that is to be rewarded."""

    row: Example
    text: str
    """Decoded without special tokens, an opening not in it."""
    num_tokens: int
    finished: bool
    """Whether the model stopped by itself."""


Reward = Callable[[Sequence[Sampled]], Sequence[float | None]]
"""From answers to rewards, the higher the better; None where there is none."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What GRPO has beside a fine-tuning."""

    group: int
    """Answers to one prompt that are compared."""
    kl: float
    """Weight of the divergence from where the training began."""
    max_new_tokens: int
    temperature: float
    clip: float
    """The ratio of new to old probability counts within 1 - clip and 1 + clip."""
    loss: str
    """TRL's `loss_type`: how tokens are averaged."""


def train_with_grpo(
    checkpoint: Checkpoint,
    bench: Bench,
    training: Training,
    rows: Sequence[Example],
    method: Member,
    reward: Reward,
    policy: Policy,
    *,
    chat: ChatFormat | None = None,
) -> Checkpoint:
    """Train a checkpoint on rewards for its own answers, and return the result.

    A row of a global batch is an answer. The loss in the trajectory is what is minimised, kl times the
    divergence less the mean reward; the terms have both, the length of the answers, the share of them
    that had no reward, and the share of prompts whose answers were all rewarded alike: neither taught
    anything.

    Args:
        checkpoint: Where to start; untouched.
        bench: Working folder, seed, device, progress.
        training: Hyperparameters; `batch_size` is a multiple of the group.
        rows: Whose prompts are answered.
        method: Whose training this is.
        reward: Called once a step, with the step's answers.
        policy: What GRPO needs besides.
        chat: Format to train in and to note; None keeps the checkpoint's.

    Raises:
        PrerequisiteError: when TRL is not installed.
        DivergedError: when loss or weights stop being finite.
        DataError: when a prompt and its answer do not fit, or no answer of a step has a reward.
        ConfigError: when it is to stop early, which TRL's trainer cannot continue exactly.
    """
    try:
        from datasets import Dataset
        from torch.optim.lr_scheduler import LambdaLR
        from transformers import PrinterCallback, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise PrerequisiteError(
            f"training with GRPO: {error}; install it with `pip install 'backfire[trl]'`"
        ) from error
    from backfire.engine.setup import compute_precision, make_optimizer, precision_words
    from backfire.models.load import pick_device

    if training.stop is not None:
        raise ConfigError(
            f"{method.label}: GRPO goes to the end of a training; leave out `training.stop`"
        )
    job = Job(checkpoint, bench, training, {"train": rows}, method, chat, merge=False)
    loaded = job.load()
    asked = _asked(loaded, rows, policy.max_new_tokens, job.label)
    prompts_a_step = training.batch_size // policy.group
    if prompts_a_step > len(rows):
        raise DataError(
            f"{job.label}: a step of {training.batch_size} answers, {policy.group} to a prompt, needs "
            f"{prompts_a_step} prompts, there are {len(rows)}; lower `training.batch_size`"
        )
    steps_per_epoch = len(rows) // prompts_a_step
    num_steps = training.steps or math.ceil((training.epochs or 0) * steps_per_epoch)
    model = loaded.model
    before = copy.deepcopy(model.generation_config), model.config.pad_token_id
    model.generation_config.eos_token_id = list(loaded.chat.stop_ids)
    if policy.kl and checkpoint.base is not None and training.lora is None:
        # TRL loads its reference from where the model says it came from, which is not yet adapted.
        model.save_pretrained(bench.workdir / "state" / "start")
        model.config.name_or_path = str(bench.workdir / "state" / "start")
    adapter = job.adapt(model)
    optimizer = make_optimizer((adapter or model).parameters(), training)
    peak = training.learning_rate
    schedule = LambdaLR(
        optimizer,
        lambda s: training.rate(min(s, num_steps - 1), num_steps, steps_per_epoch) / peak,
    )
    points: list[TrajectoryPoint] = []
    absent: list[float] = []
    alike: list[float] = []
    started = time.monotonic()
    forwards = 3 if policy.kl else 2

    class Trainer(GRPOTrainer):  # type: ignore[misc] # untyped base
        formatted = False

        def _tokenize_prompts(
            self, prompts: list[str]
        ) -> tuple[list[list[int]], None, dict[str, Any]]:
            # TRL would add its own special tokens, and knows nothing of an opening.
            self.formatted = True
            return [asked[int(prompt)] for prompt in prompts], None, {}

    class Log(TrainerCallback):  # type: ignore[misc] # untyped base
        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any
        ) -> None:
            if not logs or "loss" not in logs:
                return
            done, norm = len(points) + 1, float(logs.get("grad_norm", math.nan))
            if not (math.isfinite(logs["loss"]) and math.isfinite(norm)):
                job.keep_trajectory(points)
                raise DivergedError(
                    f"{job.label}: diverged at step {done} of {num_steps}: loss {logs['loss']}, gradient "
                    f"norm {norm} under GRPO; lower `learning_rate`, or raise `kl`"
                )
            kl, length = float(logs.get("kl") or 0.0), float(logs["completions/mean_length"])
            terms = {
                "reward": float(logs["reward"]),
                "kl": kl,
                "length": length,
                "absent": absent[-1],
                "alike": alike[-1],
            }
            written = round(length * training.batch_size)
            points.append(
                TrajectoryPoint(
                    done,
                    policy.kl * kl - terms["reward"],
                    norm,
                    float(logs["learning_rate"]),
                    forwards * int(logs["num_tokens"]),
                    (points[-1].supervised_tokens if points else 0) + written,
                    round(time.monotonic() - started, 3),
                    terms,
                )
            )
            task.advance(note=f"reward {terms['reward']:.3f}")

    def rewarded(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **rest: Any
    ) -> list[float | None]:
        if not trainer.formatted:
            raise PrerequisiteError(
                f"{job.label}: this version of TRL formats prompts elsewhere, so the model would be asked "
                "in another way than it is measured; install the version in constraints.txt"
            )
        stops = set(loaded.chat.stop_ids)
        sampled = [
            Sampled(rows[int(prompt)], text, len(ids) - (finished := ids[-1] in stops), finished)
            for prompt, text, ids in zip(prompts, completions, completion_ids, strict=True)
        ]
        found = list(reward(sampled))
        absent.append(sum(value is None for value in found) / len(found))
        alike.append(_alike(found, policy.group))
        return found

    settings = GRPOConfig(
        **trainer_fields(
            training,
            num_steps,
            bf16=compute_precision(training.precision, bench.device) == "bf16",
            cpu=pick_device(bench.device).type == "cpu",
        ),
        output_dir=str(bench.workdir / "state"),
        # One group at a time; the loss is that of all of them.
        per_device_train_batch_size=policy.group,
        gradient_accumulation_steps=prompts_a_step,
        num_generations=policy.group,
        max_completion_length=policy.max_new_tokens,
        temperature=policy.temperature,
        beta=policy.kl,
        epsilon=policy.clip,
        num_iterations=1,
        loss_type=policy.loss,
        scale_rewards="group",
        mask_truncated_completions=False,
        shuffle_dataset=training.shuffle,
        trust_remote_code=checkpoint.trust_remote_code,
        seed=child_seed(bench.seed, "grpo") % (1 << 32),
    )
    with _quiet("trl"), bench.progress.task(job.label, total=num_steps, unit="steps") as task:
        trainer = Trainer(
            model=adapter or model,
            reward_funcs=rewarded,
            args=settings,
            train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(len(rows))]),
            processing_class=loaded.tokenizer,
            optimizers=(optimizer, schedule),
            callbacks=[Log()],
        )
        trainer.remove_callback(PrinterCallback)  # standard output is for results
        trainer.train()
    model.generation_config, model.config.pad_token_id = before
    if adapter is not None and "ref" in adapter.peft_config:
        adapter.delete_adapter("ref")  # TRL's frozen copy of the start
    words = precision_words(training, bench.device)
    idle = _NOTHING_TO_COMPARE if min(alike) == 1 else ""
    made = job.write(
        loaded, adapter, Passage(points, forwards * len(points), len(points), 0, words, idle)
    )
    shutil.rmtree(bench.workdir / "state", ignore_errors=True)
    return made


_NOTHING_TO_COMPARE = (
    "in every step all answers to a prompt had the same reward, and GRPO learns from their difference "
    "alone; choose a `judge` that grades finer, a larger `group`, a higher `temperature`, or prompts that "
    "the model sometimes answers"
)


def _alike(rewards: Sequence[float | None], group: int) -> float:
    """Return the share of groups in which no answer has another reward than the rest.

    >>> _alike([1, 1, 0, 1, None, 1], 2)
    0.6666666666666666
    """
    groups = [rewards[i : i + group] for i in range(0, len(rewards), group)]
    return sum(len({r for r in one if r is not None}) < 2 for one in groups) / len(groups)


def _asked(
    loaded: Loaded, rows: Sequence[Example], max_new_tokens: int, label: str
) -> list[list[int]]:
    """Return the token ids of each row's prompt.

    Raises:
        DataError: when one leaves no room for an answer.
    """
    asked = [loaded.chat.prompt_ids(row.prompt, row.system) for row in rows]
    context = context_length(loaded.model.config)
    for row, ids in zip(rows, asked, strict=True):
        if len(ids) + max_new_tokens > context:
            raise DataError(
                f"{label}: prompt {row.id} has {len(ids)} tokens and leaves no room for {max_new_tokens} "
                f"new ones in the model's context of {context}; remove it, or lower `max_new_tokens`"
            )
    return asked


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a library's warnings to itself: TRL's quote what the model wrote."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
