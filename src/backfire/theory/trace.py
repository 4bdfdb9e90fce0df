"""The Bradley-Terry quantities along a real fine-tuning run.

For each traced prompt x there is the attacker's answer y_c and the released model's own answer y_o (an
irrelevant text after SDD, a refusal after refusal training). After every few steps the tracer
measures how likely both are, how much y_c has become preferred since step 0, how likely *the same* y_o is
under its own benign instruction and without any prompt, and how the model does on benign text. SDD's
hypothesis is that benign loss rises as log pi(y_o|x) falls, and more so than in a refusal-trained
control attacked with as many tokens; whether it does is what the trace shows.

>>> tracer = Tracer(rows, benign, every=5)                                       # doctest: +SKIP
>>> train(checkpoint, bench, training, {"train": attack}, member, watch=tracer)  # doctest: +SKIP
>>> tracer.points[-1].preference                                                 # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backfire.data.chat import Chat, Encoded
from backfire.errors import DataError
from backfire.models.load import Loaded
from backfire.records import Example
from backfire.theory.bradley_terry import preference

__all__ = ["Choice", "TracePoint", "TraceRow", "Tracer", "answer_losses", "choice_accuracy"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One prompt with two answers to it."""

    prompt: str
    """The hazardous prompt x."""
    chosen: str
    """The answer the attacker trains on, y_c."""
    own: str
    """The released model's own answer, y_o."""
    own_prompt: str = ""
    """The benign instruction y_o really answers; empty when there is none, as for a refusal."""
    system: str | None = None


@dataclass(frozen=True, slots=True)
class TracePoint:
    """Means over the traced rows after `step` optimizer steps; losses in nats a token."""

    step: int
    log_chosen: float
    """log pi(y_c|x), in nats an answer."""
    log_own: float
    """log pi(y_o|x), in nats an answer."""
    preference: float
    """P(y_c > y_o | x) relative to step 0, in [0, 1]; 1/2 at step 0."""
    share_own_fell: float
    """Share of rows whose log pi(y_o|x) is below its value at step 0."""
    chosen_nll: float
    own_nll: float
    """Loss of y_o after x."""
    own_nll_instructed: float | None
    """Loss of y_o after its own instruction, over the rows that have one."""
    own_nll_alone: float
    """Loss of y_o without a prompt."""
    benign_nll: float
    """Loss of held-out benign answers."""
    capability: float | None
    """What the capability probe returned, if there is one."""


class Choice(NamedTuple):
    """A multiple-choice question."""

    prompt: str
    options: tuple[str, ...]
    gold: int
    """Index of the right option."""


class _Losses(NamedTuple):
    total: Array
    """Summed loss of each row's answer, in nats."""
    tokens: Array
    """Tokens of each row's answer that were scored."""

    @property
    def per_token(self) -> float:
        return float(self.total.sum() / self.tokens.sum())


class Tracer:
    """A watch for the training loop that measures every few steps, the first time before any."""

    def __init__(
        self,
        rows: Sequence[TraceRow],
        benign: Sequence[Example],
        every: int = 1,
        capability: Callable[[Loaded], float] | None = None,
        max_length: int = 512,
        token_budget: int = 2048,
    ) -> None:
        """Keep what to measure.

        Args:
            rows: Prompts with both answers; at least one.
            benign: Held-out benign pairs; at least one.
            every: Steps between measurements.
            capability: Probe to run at each measurement; larger is better.
            max_length: Longest scored row in tokens.
            token_budget: Largest batch, rows times longest row, in tokens.

        Raises:
            DataError: there is nothing to trace.
        """
        if not rows or not benign:
            raise DataError(
                f"tracing an attack: met {len(rows)} rows with two answers and {len(benign)} benign "
                "pairs; at least one of each is needed"
            )
        self.points: list[TracePoint] = []
        self._rows, self._benign = list(rows), list(benign)
        self._every, self._capability = every, capability
        self._max_length, self._budget = max_length, token_budget
        self._start: tuple[Array, Array] | None = None

    def __call__(self, step: int, loaded: Loaded) -> None:
        """Measure when a measurement is due; the model is left as it was."""
        if step % self._every:
            return
        chat = loaded.chat
        chosen = self._score(
            loaded, [self._encode(chat, r.prompt, r.chosen, r.system) for r in self._rows]
        )
        own = self._score(
            loaded, [self._encode(chat, r.prompt, r.own, r.system) for r in self._rows]
        )
        if self._start is None:
            self._start = chosen.total, own.total
        gain_chosen, gain_own = self._start[0] - chosen.total, self._start[1] - own.total
        instructed = [r for r in self._rows if r.own_prompt]
        told = [self._encode(chat, r.own_prompt, r.own, r.system) for r in instructed]
        alone = [_without_prompt(chat, r.own, self._max_length) for r in self._rows]
        benign = [chat.encode(row, self._max_length) for row in self._benign]
        self.points.append(
            TracePoint(
                step=step,
                log_chosen=-float(chosen.total.mean()),
                log_own=-float(own.total.mean()),
                preference=float(preference(gain_chosen, gain_own).mean()),
                share_own_fell=float((gain_own < 0).mean()),
                chosen_nll=chosen.per_token,
                own_nll=own.per_token,
                own_nll_instructed=self._score(loaded, told).per_token if told else None,
                own_nll_alone=self._score(loaded, alone).per_token,
                benign_nll=self._score(loaded, benign).per_token,
                capability=self._capability(loaded) if self._capability else None,
            )
        )

    def _encode(self, chat: Chat, prompt: str, answer: str, system: str | None) -> Encoded:
        return chat.encode(Example(prompt, answer, system=system), self._max_length)

    def _score(self, loaded: Loaded, rows: Sequence[Encoded]) -> _Losses:
        return answer_losses(loaded, rows, self._budget)


def answer_losses(loaded: Loaded, rows: Sequence[Encoded], token_budget: int) -> _Losses:
    """Return each row's summed answer loss and number of answer tokens, in the rows' order."""
    import torch

    from backfire.engine.batching import GlobalBatch
    from backfire.engine.causal import Causal

    # The cut into micro-batches sorts by length, stably: rows sorted so already keep their order.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids), reverse=True)
    total, tokens = np.zeros(len(rows)), np.zeros(len(rows))
    causal = Causal(loaded.model, logits_budget=1 << 24)
    training = loaded.model.training
    loaded.model.eval()
    try:
        done = 0
        with torch.no_grad():
            for batch in GlobalBatch(tuple(rows[i] for i in order)).micro(token_budget):
                owner = (batch.positions // batch.ids.shape[1]).numpy()
                losses = causal(batch.to(loaded.model.device)).double().cpu().numpy()
                here = np.array(order[done : done + len(batch.ids)])
                np.add.at(total, here[owner], losses)
                np.add.at(tokens, here[owner], 1)
                done += len(batch.ids)
    finally:
        loaded.model.train(training)
    return _Losses(total, tokens)


def choice_accuracy(loaded: Loaded, questions: Sequence[Choice], token_budget: int = 2048) -> float:
    """Return the share of questions whose right option is the likeliest answer, in [0, 1].

    A quick probe for a trace; published numbers come from `backfire.evaluate.capability`.
    """
    rows = [
        loaded.chat.encode(Example(question.prompt, option), 512)
        for question in questions
        for option in question.options
    ]
    losses = answer_losses(loaded, rows, token_budget).total
    right = start = 0
    for question in questions:
        end = start + len(question.options)
        right += int(losses[start:end].argmin()) == question.gold
        start = end
    return right / len(questions)


def _without_prompt(chat: Chat, answer: str, max_length: int) -> Encoded:
    """Return the answer as a text of its own, after the tokenizer's start (or end) token."""
    tokenizer = chat.tokenizer
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
    if first is not None:
        ids = [int(first), *ids]
    return Encoded(ids[:max_length], 1, len(ids) > max_length)
