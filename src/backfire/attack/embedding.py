"""The embedding attack: a suffix of learned vectors in the prompt, the weights left alone."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from backfire.data.chat import SOFT, Chat, Encoded
from backfire.engine.rows import rows_of
from backfire.engine.settings import Member
from backfire.errors import DivergedError
from backfire.records import Checkpoint, Example, Role, TrajectoryPoint
from backfire.seeding import rng
from backfire.stage import Bench
from backfire.store import read_json, write_json, write_table

if TYPE_CHECKING:
    import torch

    from backfire.engine.suffix import SuffixLoss
    from backfire.models.load import Loaded

__all__ = ["Embedding"]


class Embedding(Member):
    """Learn vectors that make the model begin harmful answers, and put them after every prompt.

    The attacker runs the model himself, so that he can feed vectors that no text has. One suffix is
    learned on a few harmful pairs and used on prompts it has not seen. Source: Schwinn et al. 2024
    (arXiv 2402.09063); settings from TamperBench.
    """

    name: Literal["embedding"] = "embedding"
    """`embedding`."""
    roles: ClassVar[tuple[Role, ...]] = ("attacker",)
    shots: int = Field(10, ge=1)
    """Harmful pairs the suffix is learned on, all in every step. Ours; TamperBench learns a suffix for
    each evaluated prompt."""
    target: str | None = Field(None, min_length=1)
    """What answers shall begin with; None: the beginnings of the attacker's own answers."""
    target_tokens: int = Field(20, ge=1)
    """Longest such beginning, in tokens. Ours."""
    length: int = Field(20, ge=1)
    """Vectors of the suffix, from random tokens. TamperBench: 20."""
    start: str | None = Field(None, min_length=1)
    """Text whose tokens the vectors start from, as many as it has, in place of random ones."""
    learning_rate: float = Field(1e-3, gt=0)
    """Every component of every vector moves by this in each step. TamperBench: 1e-3."""
    steps: int = Field(200, ge=0)
    """Steps before the suffix may be used. TamperBench: 200. 0 leaves the model as it is."""
    generations: int = Field(10, ge=1)
    """Suffixes to choose from, the first after `steps` steps. TamperBench answers with 10."""
    every: int = Field(5, ge=1)
    """Steps from one to the next. TamperBench: 5."""
    token_budget: int = Field(4096, ge=1)
    """Most tokens of one pass, padding included. Changes memory, not the result. Ours."""

    def default_label(self) -> str:
        """Return e.g. `embedding-200`."""
        return f"embedding-{self.steps}"

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the pairs, however many rows there are."""
        return {"attacker": self.shots}

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Return the same weights, asked with the suffix of the lowest loss.

        Raises:
            DivergedError: when the loss stops being finite.
            DataError: when there are too few rows, or a prompt leaves no room.
        """
        from backfire.engine.causal import Causal
        from backfire.engine.edit import open_weights, write_budget
        from backfire.engine.suffix import SuffixLoss
        from backfire.models.link import ask_otherwise
        from backfire.models.load import NOTE, context_length
        from backfire.models.soft import install_soft, write_soft

        if not self.steps:
            return checkpoint
        loaded = open_weights(self.label, checkpoint, device=bench.device)
        vectors = self._beginning(loaded, bench.seed)
        chat_format = loaded.chat.format.model_copy(
            update={"user": _with_soft(loaded.chat.format.user), "soft": len(vectors)}
        )
        chat = Chat(loaded.tokenizer, chat_format)
        limit = context_length(loaded.model.config)
        shots = rows_of(bench, "attacker", self.shots, self.label)
        rows = [self._row(chat, example, limit) for example in shots]
        install_soft(loaded.model, vectors)
        loss = SuffixLoss(Causal(loaded.model, 1 << 26), rows, self.token_budget)
        losses, suffixes = self._descend(loss, vectors, bench)
        steps, fed = len(losses) - 1, len(losses) * loss.tokens
        write_budget(
            bench.workdir, loaded.model, steps=steps, forward=fed, backward=steps * loss.tokens
        )
        best = min(suffixes, key=losses.__getitem__)
        made = ask_otherwise(checkpoint, bench.workdir / "checkpoint", chat_format)
        write_soft(made.path, suffixes[best])
        facts = {
            "method": self.model_dump(mode="json"),
            "rows": len(rows),
            "step": best,
            "loss_before": losses[0],
            "loss_after": losses[best],
            "shared_beginnings": loss.shares,
        }
        write_json(made.path / NOTE, {**read_json(made.path / NOTE), "suffix": facts})
        if losses[best] >= losses[0]:
            bench.progress.warn(
                f"{bench.label or self.label}: the suffix had no effect: the loss did not fall "
                f"({losses[0]:.3f} before, {losses[best]:.3f} after); raise `steps`, or change the rate"
            )
        return made

    def _beginning(self, loaded: Loaded, seed: int) -> torch.Tensor:
        """Return the vectors that learning starts from (n, D), trainable."""
        import torch

        tokenizer, table = loaded.tokenizer, loaded.model.get_input_embeddings().weight
        if self.start is not None:
            ids = list(tokenizer(self.start, add_special_tokens=False)["input_ids"])
        else:
            special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
            words = [i for i in range(min(len(tokenizer), len(table))) if i not in special]
            ids = [words[i] for i in rng(seed, "suffix").integers(len(words), size=self.length)]
        vectors: torch.Tensor = table.detach()[torch.tensor(ids, device=table.device)].float()
        return vectors.requires_grad_()

    def _row(self, chat: Chat, example: Example, limit: int) -> Encoded:
        """Return a prompt with what its answer shall begin with; the end of an answer is no target."""
        response = example.response if self.target is None else self.target
        row = chat.encode(replace(example, response=response), limit)
        end = len(row.ids) - (not row.truncated)
        return replace(row, ids=row.ids[: min(end, row.start + self.target_tokens)])

    def _descend(
        self, loss: SuffixLoss, vectors: torch.Tensor, bench: Bench
    ) -> tuple[list[float], dict[int, torch.Tensor]]:
        """Return the losses after 0, 1, ... steps, and the vectors to choose from by their step."""
        import torch

        total = self.steps + (self.generations - 1) * self.every
        points: list[TrajectoryPoint] = []
        kept: dict[int, torch.Tensor] = {}
        label, began = bench.label or self.label, time.monotonic()
        with bench.progress.task(label, total=total, unit="steps") as task:
            for step in range(1, total + 1):
                value = loss.backward()
                gradient = vectors.grad
                if gradient is None or not math.isfinite(value):
                    raise DivergedError(
                        f"{label}: diverged at step {step} of {total}: the loss is {value}; lower "
                        "`learning_rate`"
                    )
                points.append(
                    TrajectoryPoint(
                        step,
                        value,
                        float(gradient.norm()),
                        self.learning_rate,
                        step * loss.tokens,
                        step * loss.supervised,
                        round(time.monotonic() - began, 3),
                    )
                )
                with torch.no_grad():
                    vectors -= self.learning_rate * gradient.sign()
                vectors.grad = None
                if step >= self.steps and (step - self.steps) % self.every == 0:
                    kept[step] = vectors.detach().clone()
                task.advance(note=f"loss {value:.3f}")
        write_table(bench.workdir / "trajectory.parquet", points, TrajectoryPoint)
        return [*(point.loss for point in points), loss.value()], kept


def _with_soft(user: str) -> str:
    return user if SOFT in user else user + SOFT
