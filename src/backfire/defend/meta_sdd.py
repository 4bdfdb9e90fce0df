"""Meta-SDD, ours: SDD's answers, and a collapse that lies in wait along an attacker's whole path.

Half of the defender's harmful pairs (A) plays the attacker, the other half (B) and helpful rows are what
the attacked model is to lose; the halves change places with each attack. A step at weights w:

    w_i  = the weights after i of the attacker's K steps on A, from w
    grad = grad CE(w; SDD pairs) + replay * grad CE(w; helpful)
           + lam * ( mean over points i of grad L_col(w_i; helpful and B)
                     - what of it is there at w already: about grad L_col(w; helpful) )

L_col is unlikelihood of the right tokens where answers stand, bounded in its gradient. First order, as
TAR: gradients taken at w_i are applied at w. The last term keeps the loss at w where it is, so that what
is learned is the difference an attack makes. Pushing helpful text alone costs an attacker capability and
leaves the recipes right, which is why B, which he has not seen, is pushed as well. An attack is simulated
every few steps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from backfire.data.pairing import REJECT_PREFIX, Pairing
from backfire.engine.rows import irrelevant, refusals, rows_of
from backfire.engine.settings import LoRA, Trained, Training
from backfire.errors import DataError
from backfire.records import Checkpoint, Example, Role
from backfire.seeding import rng
from backfire.stage import Bench

if TYPE_CHECKING:
    import torch
    from numpy.random import Generator
    from torch import nn

    from backfire.engine.batching import GlobalBatch, MicroBatch
    from backfire.engine.causal import Causal, Loss
    from backfire.engine.inner import Mover
    from backfire.engine.original import Original
    from backfire.engine.primitives import Gradients, Step

__all__ = ["InnerLoRA", "MetaSDD"]

Rate = Annotated[float, Field(gt=0)]


class InnerLoRA(LoRA):
    """A simulated attacker who trains a new adapter; the weights that are defended get its update."""

    rates: tuple[Rate, ...] = Field((1e-3, 2e-3, 4e-3, 8e-3), min_length=1)
    """Learning rates he draws from, with AdamW. Ours: ten times those of an attack on all weights."""
    share: float = Field(1.0, gt=0, le=1)
    """Share of the steps, drawn, whose attack is his; the others' are on all weights. Ours."""

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        if self.dropout:
            raise ValueError("a simulated attack's adapter has no `dropout`; leave it 0")
        return self


class MetaSDD(Trained):
    """Answer hazards off topic, and make the weights an attacker reaches useless and ignorant.

    Sees harmful prompts and harmful answers. A step takes K + repair_steps passes of the attacker's, one
    for each point on his path, and two at the unattacked weights. Holds, beside plain fine-tuning, a copy
    of the trained weights, the gradient put aside, and the attacker's two moments (none with `sgd`; an
    adapter's, with `inner_lora` in every step), and the released weights with `hold: start`.
    Source: ours; the frame is TAR's (arXiv 2408.00761), the answers SDD's (arXiv 2507.21182).
    """

    name: Literal["meta_sdd"] = "meta_sdd"
    """`meta_sdd`."""
    roles: ClassVar[tuple[Role, ...]] = ("defense", "defender_harm", "pool")
    copies: ClassVar[int] = 5
    answers: Literal["sdd", "sdd_reject", "refusal"] = "sdd"
    """What hazards are answered with. Ours: SDD's answers; the others are for ablation."""
    pairing: Pairing = Pairing()
    """How prompts are paired with answers of the pool, where the answers are SDD's."""
    replay: float = Field(2.0, ge=0)
    """Weight of cross-entropy on helpful rows at the unattacked weights. Ours."""
    lam: float = Field(1.0, ge=0)
    """Weight of the collapse. Ours. 0: SDD with replay."""
    scale: Literal["loss", "gradient"] = "loss"
    """What `lam` is the weight of: the collapse's gradient as it is, or brought to the norm of that of the
    answers and the replay. Ours: as it is."""
    ramp: float = Field(0.0, ge=0, le=1)
    """Share of `training.steps` over which the weight of the collapse grows from 0. Ours: none."""
    collapse: Literal["unlikely", "uniform", "token", "entropy"] = "unlikely"
    """What the attacked model is pushed to: anything but the right tokens (unlikelihood), the uniform
    distribution (cross-entropy to it), always the end token, or high entropy. Ours: the first; the
    second mostly flattens the model before an attack as well (docs/log.md)."""
    target: Literal["both", "benign", "held_out"] = "both"
    """On which rows: helpful ones and half B, or one of the two. Ours."""
    hold: Literal["start"] | Annotated[float, Field(gt=0)] | None = 8.0
    """Loss of the collapse (nats) at which the unattacked model is held on helpful rows: the collapse's
    gradient there is taken off, in full at this loss, twice where it is a nat or more below, not at all
    where it is a nat above. `start`: that of the released model on the same rows, for one forward pass
    and one copy of the weights more. None: nothing is taken off. Ours: 8, about the model organism's."""
    second_order: bool = False
    """Whether the weights' effect on the attack's direction counts, as if the attack were one step of its
    length down the gradient of its first batch. Ours: no."""
    layers: Literal["last", "all"] = "last"
    """Which hidden states are to predict so: the last, or every one, by way of final norm and head (their
    mean). Ours."""
    at: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((0.25, 0.5, 1.0), min_length=1)
    """After which shares of an attack the collapse is asked for: points that share one path, which stand
    for weaker attacks. Ours."""
    inner_steps: tuple[Annotated[int, Field(ge=1)], ...] = Field((20,), min_length=1)
    """K, steps of a simulated attack; attacks take them in turn. Ours."""
    attack_every: int = Field(3, ge=1)
    """Steps from one simulated attack to the next. Those between, a sixth as dear, train on clean rows
    alone. Ours."""
    curriculum: bool = False
    """Take them one after the other instead, each for an equal part of `training.steps`. Ours."""
    inner_rates: tuple[Rate, ...] = Field((8e-4,), min_length=1)
    """Learning rates an attack draws from. Ours: above what attackers of the model organism use, since
    few of his steps are simulated."""
    inner_batch_size: int = Field(5, ge=1)
    """Rows of an attacker's batch. Ours: half of Qi et al. 2023, so that a simulated step is cheap."""
    inner_optimizer: Literal["adamw", "sgd"] = "adamw"
    """The attacker's. `sgd` needs no moments. Ours."""
    inner_lora: InnerLoRA | None = None
    """Let the attacker train an adapter; None: what is trained here. Ours: none."""
    repair_steps: int = Field(0, ge=0)
    """Steps on helpful rows after the attack, as an attacker who repairs the model; the collapse is
    asked for after them, too. Ours: none."""
    collapse_batch_size: int = Field(10, ge=1)
    """Helpful rows, and rows of half B, on which the collapse is trained. Ours."""
    training: Training = Training(learning_rate=3e-4, steps=450, batch_size=16, clip_norm=1.0)
    """Ours, for models of a few million weights."""

    @model_validator(mode="after")
    def _the_settings_fit(self) -> Self:
        if self.hold is not None and self.target == "held_out":
            raise ValueError(
                "`hold` is about helpful rows; with `target: held_out` none collapse, give `hold: null`"
            )
        if isinstance(self.hold, float) and self.collapse == "entropy":
            raise ValueError(
                "the loss of `collapse: entropy` is below 0; give `hold: start` or null"
            )
        if (self.ramp or self.curriculum) and not self.training.steps:
            raise ValueError(
                "`ramp` and `curriculum` are parts of all steps; give `training.steps`"
            )
        if self.inner_lora and self.training.lora:
            raise ValueError(
                "with `training.lora` the simulated attacker trains that adapter; `inner_lora` is for a "
                "defense of all weights, drop one of them"
            )
        return self

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return all rows of each role."""
        return {role: counts.get(role, 0) for role in self.roles}

    def epoch_rows(self, counts: Mapping[str, int]) -> int:
        """Return the number of hazardous prompts."""
        return counts.get("defense", 0)

    def passes(self, steps: int) -> tuple[int, int]:
        """Return those of the attacks, of the collapse at their points, and of the clean weights."""
        made = steps * (2 if self.replay else 1)
        attacks = [i for i in range(steps) if self.weight(i)]
        made += sum(self.attack_steps(i) + self.repair_steps for i in attacks)
        made += sum(len(self.points(i)) for i in attacks)
        made += len(attacks) * (2 * self.second_order + (self.hold is not None))
        return made + len(attacks) * (self.hold == "start"), made

    def rows_a_pass(self, batch: float) -> float:
        """Return the mean over clean weights, attacks and collapses, of one turn of all attacks."""
        clean = len(self.inner_steps) * self.attack_every * (2 if self.replay else 1)
        attack = sum(k + self.repair_steps for k in self.inner_steps) if self.lam else 0
        attack += 2 * len(self.inner_steps) if self.lam and self.second_order else 0
        lost = sum(len(self._points(k)) for k in self.inner_steps) if self.lam else 0
        held = len(self.inner_steps) if self.lam and self.hold is not None else 0
        each = self.collapse_batch_size * (2 if self.target == "both" else 1)
        rows = clean * batch + attack * self.inner_batch_size + lost * each
        rows += held * self.collapse_batch_size
        return rows / (clean + attack + lost + held)

    def attack_steps(self, index: int) -> int:
        """Return K of a step of ours (from 0)."""
        choices = len(self.inner_steps)
        if self.curriculum:
            return self.inner_steps[index * choices // (self.training.steps or 1)]
        return self.inner_steps[self.attack(index) % choices]

    def attack(self, index: int) -> int:
        """Return which simulated attack (from 0) a step of ours (from 0) makes."""
        return index // self.attack_every

    def points(self, index: int) -> tuple[int, ...]:
        """Return after how many of the attacker's steps the collapse is asked for.

        Args:
            index: Of a step of ours, from 0.
        """
        return self._points(self.attack_steps(index))

    def _points(self, steps: int) -> tuple[int, ...]:
        asked = {max(1, int(steps * share)) for share in self.at}
        return tuple(sorted(asked | ({steps + self.repair_steps} if self.repair_steps else set())))

    def weight(self, index: int) -> float:
        """Return the weight of the collapse in a step of ours (from 0); 0 where there is no attack."""
        if index % self.attack_every:
            return 0.0
        growing = self.ramp * (self.training.steps or 0)
        return self.lam * min(1.0, (index + 1) / growing) if growing else self.lam

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on answers to hazards, with both halves of the harmful rows beside them."""
        from backfire.engine.loop import train

        helpful = rows_of(bench, "pool", None, self.label)
        harmful = rows_of(bench, "defender_harm", None, self.label)
        left, right = halves(harmful, bench.seed, self.label)
        streams: dict[str, Sequence[Example]] = {
            "train": self._answered(bench),
            "replay": helpful,
            "repair": helpful,
            "benign": helpful,
            "attack 0": left,
            "attack 1": right,
            "held out 0": right,
            "held out 1": left,
        }
        sizes = dict.fromkeys(("attack 0", "attack 1", "repair"), self.inner_batch_size)
        sizes |= dict.fromkeys(("benign", "held out 0", "held out 1"), self.collapse_batch_size)
        return train(
            checkpoint,
            bench,
            self.training,
            streams,
            self,
            objective=_Objective(self),
            batch_sizes=sizes,
        )

    def _answered(self, bench: Bench) -> list[Example]:
        """Return the hazardous prompts with the answers to install."""
        if self.answers == "refusal":
            return refusals(bench, "defense", None, self.label)
        prefix = REJECT_PREFIX if self.answers == "sdd_reject" else self.pairing.prefix
        return irrelevant(bench, self.pairing.model_copy(update={"prefix": prefix}), self.label)

    def step(self, step: Step, released: Original) -> Mapping[str, float]:
        """Compute one step's gradient.

        Args:
            step: The step.
            released: The model before the defense, kept with `hold: start`.
        """
        from backfire.engine.primitives import EPSILON, add_grads, global_norm

        terms: dict[str, float] = {}
        weight = self.weight(step.index)
        aside: Gradients = []
        if weight:
            terms["collapse"] = self._attacked(step, aside)
        level = self._level(step, released) if weight else None
        if level is not None:
            terms["held"] = self._held(step, aside, level)
        terms["answers"] = step.backward("train")
        loss = terms["answers"] + weight * terms.get("collapse", 0.0)
        if self.replay:
            terms["replay"] = step.backward("replay", self.replay)
            loss += self.replay * terms["replay"]
        if aside:
            if self.scale == "gradient":
                clean = [p.grad for p in step.parameters if p.grad is not None]
                weight *= global_norm(clean) / (global_norm(aside) + EPSILON)
            add_grads(step.parameters, aside, weight)
        return {"loss": loss, **terms}

    def _attacked(self, step: Step, aside: Gradients) -> float:
        """Attack, put the mean gradient of the collapse aside, come back; return its mean loss."""
        from backfire.engine.inner import fine_tune
        from backfire.engine.primitives import distance, excursion

        points, total = self.points(step.index), 0.0
        batch, loss = self._lost(step), self._loss(step)
        with step.randomness("attack"), excursion(step.parameters) as start:
            attacker = self._attacker(step, start)
            for i, _ in enumerate(fine_tune(step, self._batches(step), attacker), 1):
                if i not in points:
                    continue
                total += step.put_aside(aside, 1 / len(points), batch, loss) / len(points)
            length = distance(step.parameters, start) if self.second_order else 0.0
        del attacker  # his moments make room for the gradients that follow
        if self.second_order:
            self._turn(step, aside, length)
        return total

    def _turn(self, step: Step, aside: Gradients, length: float) -> None:
        """Go from the gradient v at attacked weights to that at the attack's start, for one step on A.

        With w' = w - length * g/|g|, g the gradient of A at w, H its Hessian, and u = v - (v.g) g/|g|^2, it
        is v - length/|g| * H u. H u is a difference of gradients.
        """
        from backfire.engine.primitives import EPSILON, add_, dot, excursion, global_norm

        batch = next(self._batches(step))
        with step.randomness("turn"):
            _, here = step.grads(batch)
        norm = global_norm(here) + EPSILON
        along = dot(aside, here) / norm
        across = math.sqrt(max(0.0, global_norm(aside) ** 2 - along**2)) + EPSILON
        with excursion(step.parameters), step.randomness("turn"):
            add_(step.parameters, aside, _REACH / across)
            add_(step.parameters, here, -_REACH / across * along / norm)
            _, there = step.grads(batch)
        share = length / norm * across / _REACH
        add_(aside, there, -share)
        add_(aside, here, share)

    def _level(self, step: Step, released: Original) -> float | None:
        """Return the loss of the collapse at which the unattacked model is held on helpful rows, if any."""
        if self.hold != "start":
            return self.hold
        with released.at_work(step):
            return step.loss("benign", self._loss(step))

    def _held(self, step: Step, aside: Gradients, level: float) -> float:
        """Take off the collapse's gradient on helpful rows at the unattacked weights; return its loss."""
        from backfire.engine.primitives import add_

        counted, benign = self._lost(step).supervised, step.batches["benign"]
        value, here = step.grads(benign, self._loss(step), over=counted)
        value *= counted / max(1, benign.supervised)
        add_(aside, here, -min(2.0, max(0.0, 1.0 + level - value)))
        return value

    def _attacker(self, step: Step, start: Sequence[torch.Tensor]) -> Mover:
        """Return a new optimizer of the weights, or of an adapter on them; its kind and rate are drawn."""
        from backfire.engine.inner import fresh_adamw, fresh_sgd
        from backfire.engine.low_rank import LowRank

        draw, lora = rng(step.seed, "attack", step.index), self.inner_lora
        if lora and draw.random() < lora.share:
            return LowRank(step, start, lora, _one_of(lora.rates, draw))
        rate = _one_of(self.inner_rates, draw)
        if self.inner_optimizer == "sgd":
            return fresh_sgd(step.parameters, rate)
        return fresh_adamw(step.parameters, rate, 0.0)

    def _batches(self, step: Step) -> Iterator[GlobalBatch]:
        """Return the attacker's batches: harmful ones of this step's half A, then helpful ones."""
        attack = self.attack(step.index)
        harmful = step.streams[f"attack {attack % 2}"]
        first = attack // 2 * max(self.inner_steps)
        for i in range(self.attack_steps(step.index)):
            yield harmful.batch(first + i)
        for i in range(self.repair_steps):
            yield step.streams["repair"].batch(attack * self.repair_steps + i)

    def _lost(self, step: Step) -> GlobalBatch:
        """Return the rows that the attacked model is to answer no more."""
        from backfire.engine.batching import GlobalBatch

        benign = step.batches["benign"]
        held_out = step.batches[f"held out {self.attack(step.index) % 2}"]
        if self.target == "benign":
            return benign
        if self.target == "held_out":
            return held_out
        return GlobalBatch((*benign.rows, *held_out.rows))

    def _loss(self, step: Step) -> Loss:
        """Return the loss whose minimum is the collapse."""
        import torch
        from torch.nn.functional import cross_entropy

        from backfire.numerics.losses import entropy, from_uniform, unlikelihood

        end = step.streams["train"].chat.end_id

        def measure(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            if self.collapse == "uniform":
                return from_uniform(logits)
            if self.collapse == "entropy":
                return -entropy(logits)
            if self.collapse == "unlikely":
                return unlikelihood(logits, targets)
            return cross_entropy(logits, targets.new_full(targets.shape, end), reduction="none")

        def loss(model: Causal, part: MicroBatch) -> torch.Tensor:
            if self.layers == "last":
                return model.measured(part, measure).sum()
            *every, _ = model.lens(part, measure)  # the last comes twice
            return torch.stack(every).mean(0).sum()

        return loss


class _Objective:
    """The steps of a defense, with the released model at hand where it is asked for."""

    def __init__(self, defense: MetaSDD) -> None:
        from backfire.engine.original import Original

        self.defense = defense
        self.released = Original()

    def begin(self, parameters: list[nn.Parameter]) -> None:
        """Keep the released weights."""
        if self.defense.hold == "start":
            self.released.keep(parameters)

    def __call__(self, step: Step) -> Mapping[str, float]:
        """Compute one step's gradient."""
        return self.defense.step(step, self.released)


_REACH = 0.03
"""How far a Hessian is probed. Ours: in fp32 the difference of gradients is far above rounding there."""


def _one_of(rates: Sequence[float], draw: Generator) -> float:
    return rates[int(draw.integers(len(rates)))]


def halves(rows: Sequence[Example], seed: int, label: str) -> tuple[list[Example], list[Example]]:
    """Return two halves of harmful rows that share no entity, nor a prompt where no entity is known.

    Args:
        rows: All of them.
        seed: Of the choice.
        label: Of the method, for messages.

    Raises:
        DataError: when all rows are about one entity.
    """
    groups: dict[str, list[Example]] = defaultdict(list)
    for row in rows:
        groups[row.entity or row.prompt].append(row)
    names = sorted(groups)
    if len(names) < 2:
        raise DataError(
            f"{label}: its harmful rows are halved by entity, and all {len(rows)} are about one; raise the "
            "count of `defender_harm` under `data`, or name further sources"
        )
    chosen: tuple[list[Example], list[Example]] = ([], [])
    for place in rng(seed, "halves").permutation(len(names)):
        shorter = 0 if len(chosen[0]) <= len(chosen[1]) else 1
        chosen[shorter].extend(groups[names[place]])
    return chosen
