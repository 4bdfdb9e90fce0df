"""Hyperparameters of one training stage. Methods set their own defaults; these are neutral ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from backfire.records import Example, Role
from backfire.stage import Settings

__all__ = ["LoRA", "Member", "Point", "Precision", "Trained", "Training", "reached"]

Precision = Literal["auto", "fp32", "bf16", "bf16-pure"]

Point = Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, lt=1, strict=True)]
"""A place in a training: a number of optimizer steps, or a share of them."""


class LoRA(Settings):
    """Train a low-rank adapter and leave the weights alone (through PEFT)."""

    rank: int = Field(16, ge=1)
    """Rank of the update. TamperBench and the durability study attack with 16."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank. Twice the rank, as in TamperBench."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input. TamperBench's sweep uses 0."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the modules that get an adapter; `all-linear` is every linear layer but the head."""


class Training(Settings):
    """How a model is fine-tuned: the same fields for every defense and attack."""

    later: ClassVar[frozenset[str]] = frozenset({"momentum", "trainable", "last_layers", "stop"})
    learning_rate: float = Field(gt=0, lt=1)
    """Peak learning rate."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the rows. Give this or `steps`."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps. Give this or `epochs`."""
    stop: Point | None = None
    """Stop early: after so many optimizer steps, or after this share of them. Rates are those of the
    whole training. None: go to its end."""
    batch_size: int = Field(8, ge=1)
    """Rows of the global batch, over all devices and micro-batches."""
    schedule: Literal["constant", "linear", "cosine", "epoch-decay"] = "constant"
    """Learning rate after warm-up: constant, to zero linearly or as a cosine, or times
    `epoch_decay` after each epoch (Qi et al. 2023)."""
    epoch_decay: float = Field(0.85, gt=0, le=1)
    """Factor per epoch of the `epoch-decay` schedule. Qi et al. 2023: 0.85."""
    warmup: float = Field(0.0, ge=0, le=1)
    """Share of the steps over which the rate rises linearly from 0."""
    optimizer: Literal["adamw", "sgd", "adafactor"] = "adamw"
    """AdamW with decoupled decay; SGD with `momentum`; or Adafactor, whose rate is relative to the size
    of each matrix's weights (PyTorch's, without momentum)."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """SGD's momentum. 0: plain SGD, PyTorch's default."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decays. PyTorch's defaults."""
    epsilon: float = Field(1e-8, gt=0)
    """AdamW's denominator offset. PyTorch's default."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of matrices (never of biases and norms, as in the HF trainer)."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Global gradient norm is cut to this before the step; None: no clipping. HF's default is 1."""
    max_length: int = Field(512, ge=8)
    """Longest row in tokens; longer answers are cut and counted."""
    shuffle: bool = True
    """Reshuffle the rows each epoch; False keeps the given order."""
    drop_last: bool = False
    """Drop an epoch's last incomplete batch (kept when it is the only one)."""
    precision: Precision = "auto"
    """`fp32`: fp32 weights and compute. `bf16`: fp32 weights, bf16 compute. `auto`: `bf16` where the
    hardware computes in it, else `fp32`. `bf16-pure`: bf16 weights too; small updates are then lost
    (at a learning rate of 5e-7 about 99 % of them), so this warns."""
    lora: LoRA | None = None
    """Train an adapter; None trains the weights themselves."""
    trainable: Literal["all", "no-embeddings", "attention", "mlp"] = "all"
    """Which weights may move, or get an adapter: all, all but embeddings (and a head that shares their
    weights), the attention of every block, or its feed-forward part. The rest is frozen."""
    last_layers: int | None = Field(None, ge=1)
    """Of these, only what stands in so many last blocks; nothing outside blocks then moves. None: no
    such limit."""
    token_budget: int = Field(2048, ge=8)
    """Largest micro-batch, rows times longest row, in tokens. Changes memory and speed, not the
    gradient. Ours."""
    logits_budget: int = Field(1 << 26, ge=1)
    """Most logits held at once, tokens times vocabulary. Changes memory, not the gradient. Ours."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    save_minutes: float = Field(5.0, gt=0)
    """How often a resumable state is written. Ours."""
    save_dtype: Literal["fp32", "bf16", "source"] = "fp32"
    """Type of the written weights. fp32, so that what is attacked is exactly what was trained."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Accelerate trackers that mirror loss, gradient norm and learning rate."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"give exactly one of `epochs` and `steps` (met epochs={self.epochs}, steps={self.steps})"
            )
        return self

    def num_steps(self, rows: int) -> int:
        """Return the optimizer steps of the whole training.

        Args:
            rows: Of stream `train`, which make an epoch.
        """
        import math

        return self.steps or math.ceil((self.epochs or 0) * self._steps_per_epoch(rows))

    def rows_a_step(self, rows: int, steps: int) -> float:
        """Return the rows of a global batch, on average over so many steps: an epoch's last may be smaller.

        >>> Training(learning_rate=0.1, steps=9, batch_size=4).rows_a_step(10, 6)  # 4, 4, 2, 4, 4, 2
        3.3333333333333335

        Args:
            rows: Of stream `train`, which make an epoch.
            steps: Optimizer steps, from the first.
        """
        batch = min(self.batch_size, rows)
        epoch = min(rows, batch * self._steps_per_epoch(rows))
        epochs, rest = divmod(steps, self._steps_per_epoch(rows))
        return (epochs * epoch + min(rest * batch, epoch)) / max(1, steps)

    def _steps_per_epoch(self, rows: int) -> int:
        import math

        batches = rows / self.batch_size
        return max(1, math.floor(batches) if self.drop_last else math.ceil(batches))

    def rate(self, step: int, num_steps: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: From 0.
            num_steps: Of the whole training.
            steps_per_epoch: Of the first stream, for `epoch-decay`.
        """
        import math

        warm = round(self.warmup * num_steps)
        if step < warm:
            return self.learning_rate * step / warm
        share = (step - warm) / max(1, num_steps - warm)
        factor = {
            "constant": 1.0,
            "linear": 1.0 - share,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * share)),
            "epoch-decay": self.epoch_decay ** (step // steps_per_epoch),
        }[self.schedule]
        return self.learning_rate * factor


def reached(point: Point | None, num_steps: int) -> int:
    """Return after how many of a training's steps a point is reached.

    >>> reached(0.5, 25), reached(7, 25), reached(None, 25)
    (12, 7, 25)
    """
    if point is None:
        return num_steps
    return point if isinstance(point, int) else max(1, round(point * num_steps))


class Member(Settings):
    """A defense or an attack: what every one of them has."""

    reads_answers: ClassVar[bool] = True
    """Whether it learns from the answers of the harmful rows it reads, or from their prompts alone."""
    name: str
    """Which method this is."""
    label: str = ""
    """What it is called in tables; unique in a run. Empty: made from the settings."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.label:
            object.__setattr__(self, "label", self.default_label())
        return self

    def own_rows(self) -> Sequence[Example]:
        """Return the rows that it brings itself, from a file or its own: no role of the run gives them."""
        return ()

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return how many rows of each role it reads.

        Args:
            counts: Rows the run has of each role.
        """
        return {role: counts.get(role, 0) for role in getattr(self, "roles", ())}

    def default_label(self) -> str:
        """Return a label that tells apart the settings people vary most."""
        return self.name.replace("_", "-")


class Trained(Member):
    """A member that fine-tunes. A run file may give a part of `training`; the rest is the method's."""

    copies: ClassVar[int] = 0
    """Most copies of the trained weights' size (saved weights, gradients) that a step holds at once,
    beside the weights, their gradient and the optimizer's moments."""
    training: Training
    """How the model is fine-tuned."""

    def epoch_rows(self, counts: Mapping[str, int]) -> int:
        """Return the rows of stream `train`, which make an epoch.

        Args:
            counts: Rows the run has of each role.
        """
        return sum(self.rows_used(counts).values())

    def passes(self, steps: int) -> tuple[int, int]:
        """Return the forward and the backward passes over a global batch that a training takes.

        Args:
            steps: Optimizer steps.
        """
        return steps, steps

    def rows_a_pass(self, batch: float) -> float:
        """Return the rows that a pass goes over, on average.

        Args:
            batch: Rows that a step takes from stream `train`; their mean where steps differ.
        """
        return batch

    @model_validator(mode="before")
    @classmethod
    def _over_the_methods_own(cls, given: Any) -> Any:
        default = cls.model_fields["training"].default
        if not isinstance(given, Mapping) or not isinstance(given.get("training"), Mapping):
            return given
        if not isinstance(default, Training):
            return given
        part = dict(given["training"])
        own = default.model_dump()
        if part.get("steps") is not None or part.get("epochs") is not None:
            own["steps"] = own["epochs"] = None  # the user's length replaces the method's
        return {**given, "training": {**own, **part}}
