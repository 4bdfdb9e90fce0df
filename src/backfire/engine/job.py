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

from backfire import __version__
from backfire.data.chat import ChatFormat
from backfire.engine.batching import Stream
from backfire.engine.effect import measure
from backfire.engine.settings import Member, Training
from backfire.errors import ConfigError, DataError
from backfire.models.load import NOTE, DType, Loaded, context_length, load, pick_device, read_note
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

    @cached_property
    def key(self) -> str:
        """Return what identifies the result."""
        return content_key(
            self.checkpoint.key, self.method, self.training, self.data, self.chat, self.bench.seed
        )

    @property
    def keeps_adapter(self) -> bool:
        """Return whether the result is an adapter folder."""
        return self.training.lora is not None and not self.merge

    def load(self, device: str | None = None) -> Loaded:
        """Load the start in the precision the weights are to be stored in.

        Args:
            device: Where to; None: the bench's device.

        Raises:
            ConfigError: when the model is asked with learned vectors, which belong to its weights as
                they are.
        """
        if (self.chat or read_note(self.checkpoint.path)[0]).soft:
            raise ConfigError(
                f"{self.label}: the model is asked with a learned soft suffix, which weights that move "
                "would leave behind; let the soft suffix come last"
            )
        dtype: DType = "bf16" if self.training.precision == "bf16-pure" else "fp32"
        return load(
            self.checkpoint, device=device or self.bench.device, dtype=dtype, chat=self.chat
        )

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
            max_length=min(training.max_length, context_length(loaded.model)),
            batch_size=batch_size or training.batch_size,
            seed=self.bench.seed,
            shuffle=training.shuffle,
            drop_last=training.drop_last,
            order=order,
        )

    def adapt(self, model: PreTrainedModel) -> PeftModel | None:
        """Make the trained parameters trainable: an adapter's (returned), or all (None)."""
        lora = self.training.lora
        if lora is None:
            model.requires_grad_(True)
            return None
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers.pytorch_utils import Conv1D

        torch.manual_seed(child_seed(self.bench.seed, "adapter"))
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            bias="none",
        )
        return get_peft_model(model, config)

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
        folder = self.bench.workdir
        with replace_folder(folder / "checkpoint") as new:
            model = loaded.model
            if adapter is not None:
                if self.keeps_adapter:
                    adapter.save_pretrained(str(new))
                model = adapter.merge_and_unload()
            effect = measure(
                self.method.label,
                self.checkpoint,
                dict(model.named_parameters()),
                passage,
                lora=adapter is not None,
                device=str(pick_device(self.bench.device)),
            )
            if not self.keeps_adapter:
                self._save_model(model, new)
            tokenizer = loaded.tokenizer
            if not tokenizer.chat_template:
                tokenizer.chat_template = loaded.chat.template
            tokenizer.save_pretrained(new)
            note = {
                "backfire": __version__,
                "method": self.method.model_dump(mode="json"),
                "chat": loaded.chat.format.model_dump(mode="json"),
                "parent": self.checkpoint.key,
                "key": self.key,
                "seed": self.bench.seed,
                "data": self.data,
                "effect": asdict(effect),
            }
            write_json(new / NOTE, note)
        write_table(folder / "trajectory.parquet", passage.points, TrajectoryPoint)
        write_json(folder / "effect.json", effect)
        if effect.warning:
            self.bench.progress.warn(f"{self.label}: {effect.warning}")
        return self.output

    @property
    def output(self) -> Checkpoint:
        """Return the record of the written checkpoint."""
        base = (self.checkpoint.base or self.checkpoint.path) if self.keeps_adapter else None
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
