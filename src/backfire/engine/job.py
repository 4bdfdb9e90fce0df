"""One training stage as a thing: where it starts, what identifies it, what it leaves behind.

stage folder/
├── checkpoint/          what `transformers` (or PEFT) loads, with backfire.json
├── trajectory.parquet   one row a step
├── effect.json          what the training did to the weights
└── state/               only while unfinished: what a resume begins from
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backfire.data.chat import ChatFormat
from backfire.engine.batching import Stream
from backfire.engine.edit import complete, open_weights
from backfire.engine.effect import measure
from backfire.engine.settings import Member, Point, Training
from backfire.errors import ConfigError, DataError, DivergedError
from backfire.models.load import DType, Loaded, context_length, pick_device, read_note
from backfire.records import Checkpoint, Example, TrajectoryPoint
from backfire.seeding import child_seed
from backfire.stage import Bench
from backfire.store import content_key, replace_folder, write_json, write_table

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["Job", "Passage"]


@dataclass(frozen=True, slots=True)
class Passage:
    """What a trainer counted on its way."""

    points: Sequence[TrajectoryPoint]
    forwards: int
    backwards: int
    truncated: int
    """Rows cut at the length limit."""
    precision: str
    """Storage and compute, in words."""
    idle: str = ""
    """Why no step had anything to learn from; empty when one had."""


@dataclass(frozen=True)
class Job:
    """A training stage; equal keys mean equal results."""

    checkpoint: Checkpoint
    bench: Bench
    training: Training
    streams: Mapping[str, Sequence[Example]]
    method: Member
    chat: ChatFormat | None = None
    """Format to train in and to note; None keeps the checkpoint's."""
    merge: bool = True
    """Write full weights even when an adapter was trained; False writes the adapter alone."""
    noted: ChatFormat | None = None
    """Format to note where the model is to be asked otherwise than it was trained."""

    @property
    def label(self) -> str:
        """Return what to call the stage in front of the user."""
        return self.bench.label or self.method.label

    @cached_property
    def data(self) -> dict[str, dict[str, Any]]:
        """Return rows and content hash of each stream."""
        return {
            name: {"rows": len(rows), "sha256": content_key([row.id for row in rows])}
            for name, rows in self.streams.items()
        }

    @property
    def key(self) -> str:
        """Return what identifies the result."""
        return self._key(self.training.stop)

    @property
    def course(self) -> str:
        """Return what identifies the way that the weights take, wherever the training stops on it."""
        return self._key(None)

    def _key(self, stop: Point | None) -> str:
        training = self.training.model_copy(update={"stop": stop})
        method = self.method
        if getattr(method, "training", None) == self.training:
            method = method.model_copy(update={"training": training})
        return content_key(
            self.checkpoint.key, method, training, self.data, self.chat, self.bench.seed
        )

    @property
    def keeps_adapter(self) -> bool:
        """Return whether the result is an adapter folder.

        An adapter belongs to weights on disk. Where the start is an adapter itself there are none, so
        the whole model is written.
        """
        lora = self.training.lora is not None
        return lora and not self.merge and self.checkpoint.base is None

    def load(self, device: str | None = None) -> Loaded:
        """Load the start in the precision the weights are to be stored in.

        Args:
            device: Where to; None: the bench's device.

        Raises:
            ConfigError: when the model is asked with learned vectors, which belong to its weights as
                they are.
        """
        dtype: DType = "bf16" if self.training.precision == "bf16-pure" else "fp32"
        device = device or self.bench.device
        return open_weights(self.label, self.checkpoint, device=device, dtype=dtype, chat=self.chat)

    def stream(
        self, name: str, loaded: Loaded, batch_size: int | None = None, order: str = ""
    ) -> Stream:
        """Return a stream's rows, encoded; none is longer than the model's context.

        Args:
            name: Of the stream.
            loaded: The model that is to read them.
            batch_size: Rows of a global batch; None takes the training's.
            order: The stream whose rows these belong to; empty: none.

        Raises:
            DataError: when there are none, one cannot be encoded, or the other stream has more or fewer.
        """
        training = self.training
        if order and len(self.streams[name]) != len(self.streams[order]):
            raise DataError(
                f"preparing the training rows {name!r}: there are {len(self.streams[name])}, and they "
                f"belong to the {len(self.streams[order])} rows {order!r}, one to one; give as many of both"
            )
        return Stream(
            name,
            self.streams[name],
            loaded.chat,
            max_length=min(training.max_length, context_length(loaded.model.config)),
            batch_size=batch_size or training.batch_size,
            seed=self.bench.seed,
            shuffle=training.shuffle,
            drop_last=training.drop_last,
            order=order,
        )

    def adapt(self, model: PreTrainedModel) -> PeftModel | None:
        """Make the trained parameters trainable: an adapter's (returned), or the model's own (None).

        Raises:
            ConfigError: when nothing is left to train.
        """
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers.pytorch_utils import Conv1D

        from backfire.engine.anatomy import movable, scope_words

        training, lora = self.training, self.training.lora
        names = movable(model, training)
        if lora is None:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in names)
            return None
        everywhere = training.trainable == "all" and training.last_layers is None
        elsewhere = [
            name
            for name, module in model.named_modules()
            if not everywhere and hasattr(module, "weight") and f"{name}.weight" not in names
        ]
        torch.manual_seed(child_seed(self.bench.seed, "adapter"))
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
            exclude_modules=elsewhere or None,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            bias="none",
        )
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            linear = sorted(
                {
                    n.rsplit(".", 1)[-1]
                    for n, m in model.named_modules()
                    if isinstance(m, (torch.nn.Linear, Conv1D))
                }
            )
            raise ConfigError(
                f"{self.label}: putting an adapter on {lora.targets} ({scope_words(training)}): {error}; "
                f"the model's linear layers are called {', '.join(linear)}"
            ) from error

    def write(
        self,
        loaded: Loaded,
        adapter: PeftModel | None,
        passage: Passage,
    ) -> Checkpoint:
        """Write checkpoint, trajectory and effect to the stage folder; return the checkpoint.

        Args:
            loaded: The trained model.
            adapter: The adapter that was trained, if one was.
            passage: What the trainer counted.
        """
        from backfire.engine.anatomy import scope_words

        folder = self.bench.workdir
        _check_finite(self.label, loaded.model, len(passage.points))
        with replace_folder(folder / "checkpoint") as new:
            model, movable = loaded.model, _trained(loaded.model, adapter)
            if adapter is not None:
                if self.keeps_adapter:
                    adapter.save_pretrained(str(new))
                model = adapter.merge_and_unload()
            effect = measure(
                self.method.label,
                self.checkpoint,
                dict(model.named_parameters()),
                passage,
                trained=scope_words(self.training),
                movable=movable,
                device=str(pick_device(self.bench.device)),
            )
            if not self.keeps_adapter:
                self._save_model(model, new)
            note = {
                "method": self.method.model_dump(mode="json"),
                "parent": self.checkpoint.key,
                "key": self.key,
                "seed": self.bench.seed,
                "data": self.data,
                "effect": asdict(effect),
            }
            complete(new, loaded, note, self.noted)
            # Before the checkpoint has its name, so that where there is one all is there.
            self.keep_trajectory(passage.points)
            write_json(folder / "effect.json", effect)
        if effect.warning:
            self.bench.progress.warn(f"{self.label}: {effect.warning}")
        return self.output

    def keep_trajectory(self, points: Sequence[TrajectoryPoint]) -> None:
        """Write the steps that were made to the stage folder."""
        write_table(self.bench.workdir / "trajectory.parquet", points, TrajectoryPoint)

    @property
    def written(self) -> bool:
        """Return whether the stage folder holds the whole result already."""
        _, note = read_note(self.output.path)
        return bool(note.get("key") == self.key)

    @property
    def output(self) -> Checkpoint:
        """Return the record of the written checkpoint."""
        base = self.checkpoint.path if self.keeps_adapter else None
        return replace(
            self.checkpoint, path=self.bench.workdir / "checkpoint", key=self.key, base=base
        )

    def _save_model(self, model: PreTrainedModel, folder: Path) -> None:
        import torch

        wanted = self.training.save_dtype
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(wanted) or self._stored_dtype()
        if model.dtype != kind:
            model = model.to(kind)
        model.save_pretrained(folder)

    def _stored_dtype(self) -> torch.dtype:
        import torch
        from transformers import AutoConfig

        folder = self.checkpoint.base or self.checkpoint.path
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=self.checkpoint.trust_remote_code
        )
        return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def _trained(model: PreTrainedModel, adapter: PeftModel | None) -> frozenset[str]:
    """Return the names of the weights that were trained, or that an adapter adds to."""
    if adapter is None:
        return frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    return frozenset(f"{name}.weight" for name in adapter.base_model.targeted_module_names)


def _check_finite(label: str, model: PreTrainedModel, step: int) -> None:
    """Refuse weights that the last step has ruined, which no loss has shown yet."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise DivergedError(
                f"{label}: diverged at step {step}: weights of {name} are not finite; lower "
                "`learning_rate`, or add `warmup`"
            )
