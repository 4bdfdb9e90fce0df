"""TAR, tampering attack resistance (Tamirisa et al.; arXiv 2408.00761), first order.

Each outer step simulates attacks on the weights w: K steps of a fresh AdamW on harmful rows. Every
`every` of them, at the attacked weights, the gradient of a tamper-resistance loss on one held-out harmful
batch is put aside; it counts more the later it is taken. Back at w, these gradients are added to that of
retaining what the model can do:

    grad retain(w) + lam * sum_i exp(c (i - (K - 1))) * grad resist(w_i)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from backfire.engine.rows import refusals, rows_of
from backfire.engine.settings import Trained, Training
from backfire.records import Checkpoint, Role
from backfire.seeding import rng, torch_generator
from backfire.stage import Bench

if TYPE_CHECKING:
    import torch
    from numpy.random import Generator
    from torch import nn

    from backfire.engine.batching import GlobalBatch, MicroBatch
    from backfire.engine.causal import Causal, Loss
    from backfire.engine.primitives import Gradients, Step

__all__ = ["TAR"]

Adversary = Literal["pairs", "text", "switch"]


class TAR(Trained):
    """Make the harmful objective stay bad after K simulated steps of an attacker's.

    Sees harmful prompts, harmful answers and their refusals. A step takes
    tasks * (K + K / every) + 1 forward and backward passes, and one forward pass more at the original
    weights for the retained representations and for each task's preferences. Holds, beside plain
    fine-tuning, five copies of the trained weights: the original ones, those to come back to, the
    gradient put aside, and the attacker's two moments.
    Source: arXiv 2408.00761, algorithm 1; defaults of its refusal setting (table 12, as quoted by
    TamperBench).
    """

    name: Literal["tar"] = "tar"
    """`tar`."""
    roles: ClassVar[tuple[Role, ...]] = ("defender_harm", "pool")
    copies: ClassVar[int] = 5
    lam: float = Field(0.1, ge=0)
    """Weight of tamper resistance. Paper: 0.1 for refusals; 4 for hazardous knowledge. 0: plain
    fine-tuning on helpful rows, if `represent` is 0 too."""
    retain: float = Field(1.0, ge=0)
    """Weight of retaining. Paper: 1."""
    represent: float = Field(1.0, ge=0)
    """Weight, within retaining, of the distance of hidden states from the original model's. Official
    scripts: on, weight 1."""
    squared: bool = False
    """Square that distance. The paper does; the official code does not."""
    inner_steps: int = Field(64, ge=0)
    """K, steps of a simulated attack. Paper: 64."""
    every: int = Field(4, ge=1)
    """Steps of the attacker's from one held-out gradient to the next. Official scripts: 4."""
    curve: float | None = Field(0.0625, ge=0)
    """c: a gradient after step i (from 0) counts exp(c (i - (K - 1))). None: each counts 1 / K, as in
    the official code without its schedule. Official scripts: 0.0625."""
    tasks: int = Field(1, ge=1)
    """Simulated attacks a step. Official scripts: 1."""
    inner_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field((2e-6, 2e-5, 4e-5), min_length=1)
    """Learning rates an attack draws from. Paper: these three; for cyber knowledge the last two."""
    inner_decay: float = Field(0.01, ge=0)
    """Weight decay of the attacker's AdamW. PyTorch's default, which the official code leaves."""
    inner_batch_size: int = Field(64, ge=1)
    """Rows of an attacker's batch. Paper: 64 for refusals, 4 on each of 8 devices for knowledge."""
    adversaries: tuple[Adversary, ...] = Field(("pairs",), min_length=1)
    """Kinds of attack to draw from: harmful answers (`pairs`, the refusal setting's), prompts and
    answers as text (`text`), or first helpful rows and then harmful answers (`switch`, after a
    Beta(6, 3) share of the steps). The knowledge setting draws from all three."""
    resist: Literal["dpo", "entropy"] = "dpo"
    """Tamper-resistance loss: preference of the refusal over the harmful answer, or minus the entropy
    of the next token over whole rows. Paper: `dpo` for refusals, `entropy` for hazardous knowledge."""
    dpo_beta: float = Field(0.1, gt=0)
    """Inverse temperature of `dpo`. Official code: 0.1."""
    bound: float | None = None
    """Drop a step's resistance gradients when their weighted losses sum to less than this. The official
    code's is -11.76; its scripts switch it off, which is None."""
    mapping_steps: int = Field(0, ge=0)
    """First steps, which instead turn the hidden states of harmful text towards a fixed random vector
    for each token. The knowledge setting starts from a model so made; the refusal setting does not."""
    sft_steps: int = Field(0, ge=0)
    """Last steps, which only fine-tune on helpful rows. The refusal setting ends with 100 such steps;
    ours: none, so that every step defends."""
    compat: bool = False
    """Multiply the attacker's rates by K / 20, as the official code's inner warm-up in effect does."""
    training: Training = Training(
        learning_rate=6e-5, steps=100, batch_size=64, warmup=0.32, max_length=256, clip_norm=None
    )
    """Paper, refusal setting: all weights, 100 steps, rate 6e-5 with 32 steps of warm-up, batch 64, length
    256, no clipping. Its optimizer is schedule-free AdamW; ours is AdamW at a constant rate."""

    @model_validator(mode="after")
    def _the_steps_fit(self) -> Self:
        if 0 < self.inner_steps < self.every:
            raise ValueError(
                f"an attack of {self.inner_steps} `inner_steps` ends before the first held-out gradient "
                f"after `every` {self.every}; lower `every`, or set `inner_steps` to 0"
            )
        if self.sft_steps and not self.training.steps:
            raise ValueError("`sft_steps` are counted from the end; give `training.steps`")
        if self.training.steps and self.mapping_steps + self.sft_steps > self.training.steps:
            raise ValueError(
                f"`mapping_steps` {self.mapping_steps} and `sft_steps` {self.sft_steps} are more than all "
                f"{self.training.steps} `training.steps`"
            )
        return self

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return all harmful and all helpful rows."""
        return {role: counts.get(role, 0) for role in self.roles}

    def epoch_rows(self, counts: Mapping[str, int]) -> int:
        """Return the number of helpful rows."""
        return counts.get("pool", 0)

    def passes(self, steps: int) -> tuple[int, int]:
        """Return those of the attacks, of their held-out losses, of retaining, and of the original."""
        mapping, last = min(self.mapping_steps, steps), min(self.sft_steps, steps)
        outer = steps - mapping - last
        held_out = self.inner_steps // self.every
        both = 2 * mapping + last + outer * (self.tasks * (self.inner_steps + held_out) + 1)
        original = (self.represent > 0) + self.tasks * (self.resist == "dpo" and held_out > 0)
        return both + outer * original, both

    def rows_a_pass(self, batch: float) -> float:
        """Return the mean over attacks, held-out batches (two answers each for `dpo`) and retaining."""
        held_out = self.inner_steps // self.every
        answers = 2 if self.resist == "dpo" else 1
        attack = self.inner_steps * self.inner_batch_size + held_out * answers * batch
        return (self.tasks * attack + batch) / (self.tasks * (self.inner_steps + held_out) + 1)

    def weight(self, i: int) -> float:
        """Return what a held-out gradient after the attacker's step i (from 0) counts, in all."""
        last = self.inner_steps - 1
        share = 1 / self.inner_steps if self.curve is None else math.exp(self.curve * (i - last))
        return self.lam * share / self.tasks

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on helpful rows, with the harmful ones as attackers' and as held-out rows."""
        from backfire.engine.loop import train

        helpful = rows_of(bench, "pool", None, self.label)
        streams = {"train": helpful, "harm": rows_of(bench, "defender_harm", None, self.label)}
        if self.resist == "dpo":
            streams["refusal"] = refusals(bench, "defender_harm", None, self.label)
        if "switch" in self.adversaries:
            streams["helpful"] = helpful
        return train(
            checkpoint,
            bench,
            self.training,
            streams,
            self,
            objective=_Resistance(self),
            batch_sizes={"harm": self.inner_batch_size, "helpful": self.inner_batch_size},
        )


@dataclass(frozen=True)
class _HeldOut:
    """A batch and the resistance loss on it, to be taken at any weights."""

    batch: GlobalBatch
    over: int
    """What the loss is a mean over."""
    loss: Callable[[], Loss]
    """Makes the loss for one pass over the batch."""


class _Resistance:
    """TAR's step, with the weights the training started from."""

    def __init__(self, settings: TAR) -> None:
        from backfire.engine.original import Original

        self.tar = settings
        self.original = Original()
        self.vectors: torch.Tensor | None = None

    def begin(self, parameters: list[nn.Parameter]) -> None:
        """Keep the original weights, if a loss asks for them."""
        if self.tar.represent or self.tar.resist == "dpo":
            self.original.keep(parameters)

    def __call__(self, step: Step) -> Mapping[str, float]:
        """Compute the gradient of one outer step, or of a step before or after these."""
        from backfire.engine.primitives import add_grads

        tar = self.tar
        if step.index < tar.mapping_steps:
            return self._map(step)
        if tar.sft_steps and step.index >= (tar.training.steps or 0) - tar.sft_steps:
            return {"loss": step.backward("train")}
        aside: Gradients = []
        resist = sum(self._attack(step, task, aside) for task in range(tar.tasks))
        if aside and (tar.bound is None or resist >= tar.bound):
            add_grads(step.parameters, aside)
        aside.clear()
        retain, distance = self._retain(step)
        return {
            "loss": tar.retain * (retain + tar.represent * distance) + resist,
            "retain": retain,
            "distance": distance,
            "resist": resist,
        }

    def _attack(self, step: Step, task: int, aside: Gradients) -> float:
        """Simulate an attack; add its weighted held-out gradients to `aside`, and return their losses."""
        from backfire.engine.inner import fine_tune, fresh_adamw
        from backfire.engine.primitives import excursion

        tar, choose = self.tar, rng(step.seed, "attack", step.index, task)
        if not tar.inner_steps:
            return 0.0
        rate = tar.inner_rates[choose.integers(len(tar.inner_rates))]
        rate *= tar.inner_steps / 20 if tar.compat else 1
        batches = self._batches(step, task, choose)
        held_out = (
            self._preferences(step, choose) if tar.resist == "dpo" else self._text(step, choose)
        )
        total = 0.0
        with step.randomness(f"attack {task}"), excursion(step.parameters):
            attacker = fresh_adamw(step.parameters, rate, tar.inner_decay)
            for i, _ in enumerate(fine_tune(step, batches, attacker)):
                if (i + 1) % tar.every:
                    continue
                weight, loss = tar.weight(i), held_out.loss()
                total += weight * step.put_aside(aside, weight, held_out.batch, loss, held_out.over)
        return total

    def _batches(self, step: Step, task: int, choose: Generator) -> Iterator[GlobalBatch]:
        """Return the batches of one attack: those of a stream that follow on the attack before."""
        from backfire.engine.batching import as_text

        tar = self.tar
        kind = tar.adversaries[choose.integers(len(tar.adversaries))]
        switch = int(choose.beta(6, 3) * tar.inner_steps) if kind == "switch" else 0
        first = (step.index * tar.tasks + task) * tar.inner_steps
        for i in range(tar.inner_steps):
            batch = step.streams["helpful" if i < switch else "harm"].batch(first + i)
            yield as_text(batch) if kind == "text" else batch

    def _places(self, step: Step, choose: Generator) -> list[int]:
        """Draw the held-out rows."""
        have = len(step.streams["harm"].rows)
        wanted = min(self.tar.training.batch_size, have)
        places: list[int] = choose.choice(have, wanted, replace=False).tolist()
        return places

    def _text(self, step: Step, choose: Generator) -> _HeldOut:
        """Return minus the entropy of the next token, all over held-out prompts and answers."""
        from backfire.engine.batching import GlobalBatch, as_text
        from backfire.numerics.losses import entropy

        rows = step.streams["harm"].rows
        batch = as_text(GlobalBatch(tuple(rows[i] for i in self._places(step, choose))))

        def certainty(model: Causal, part: MicroBatch) -> torch.Tensor:
            return -model.measured(part, lambda logits, _: entropy(logits)).sum()

        return _HeldOut(batch, batch.supervised, lambda: certainty)

    def _preferences(self, step: Step, choose: Generator) -> _HeldOut:
        """Return the preference for held-out refusals over harmful answers, next to the original's."""
        from backfire.engine.batching import GlobalBatch
        from backfire.numerics.losses import dpo

        harmful, refused = step.streams["harm"].rows, step.streams["refusal"].rows
        places = self._places(step, choose)
        pairs = tuple(row for i in places for row in (refused[i], harmful[i]))
        batch = GlobalBatch(pairs, together=2)
        original: list[torch.Tensor] = []

        def note(model: Causal, part: MicroBatch) -> torch.Tensor:
            original.append(-part.row_sums(model.losses(part)))
            return original[-1].sum()

        with self.original.at_work(step):
            step.loss(batch, note)

        def one_pass() -> Loss:
            known = iter(original)  # every pass cuts the batch alike

            def preference(model: Causal, part: MicroBatch) -> torch.Tensor:
                gains = (-part.row_sums(model.losses(part)) - next(known)).view(-1, 2)
                return dpo(gains[:, 0], gains[:, 1], self.tar.dpo_beta).sum()

            return preference

        return _HeldOut(batch, len(places), one_pass)

    def _retain(self, step: Step) -> tuple[float, float]:
        """Add the gradient of retaining; return cross-entropy and the mean distance of hidden states."""
        import torch

        from backfire.numerics.losses import distances

        tar, batch = self.tar, step.batches["train"]
        if not tar.represent:
            return step.backward("train", tar.retain), 0.0
        original: list[tuple[torch.Tensor, ...]] = []

        def note(model: Causal, part: MicroBatch) -> torch.Tensor:
            original.append(model.states(part.ids))
            return original[-1][0].new_zeros(())

        with self.original.at_work(step):
            step.loss("train", note)
        known, seen = iter(original), []

        def retained(model: Causal, part: MicroBatch) -> torch.Tensor:
            states = model.states(part.ids)
            answer = model.losses(part, states[-1]).sum() / batch.supervised
            gaps = [
                distances(now, then, squared=tar.squared)[part.real].sum()
                for now, then in zip(states, next(known), strict=True)
            ]
            distance = torch.stack(gaps).sum() / (len(gaps) * batch.tokens)
            seen.append((float(answer.detach()), float(distance.detach())))
            return answer + tar.represent * distance

        step.backward("train", tar.retain, retained, over=1)
        answers, gaps = zip(*seen, strict=True)
        return step.total(sum(answers)), step.total(sum(gaps))

    def _map(self, step: Step) -> Mapping[str, float]:
        """Retain, and turn the hidden states of harmful text towards random vectors, one a token."""
        import torch
        from torch.nn.functional import cosine_similarity

        from backfire.engine.batching import as_text

        if self.vectors is None:
            config = step.causal.model.config
            draw = torch_generator(step.seed, "random vectors")
            vectors = torch.randn(config.vocab_size, config.hidden_size, generator=draw)
            self.vectors = vectors.to(step.accelerator.device)
        vectors, batch = self.vectors, as_text(step.batches["harm"])

        def turned(model: Causal, part: MicroBatch) -> torch.Tensor:
            wanted = vectors[part.ids]
            states = model.states(part.ids)
            angles = [1 - cosine_similarity(s.float(), wanted, dim=-1).abs() for s in states]
            return torch.stack(angles).mean(0)[part.real].sum()

        mapped = step.backward(batch, loss=turned, over=batch.tokens)
        retain = step.backward("train")
        return {"loss": retain + mapped, "retain": retain, "mapped": mapped}
