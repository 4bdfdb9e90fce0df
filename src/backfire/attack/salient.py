"""Benign rows chosen because they undo a refusal best (He, Xia, Henderson 2024, arXiv 2404.01099).

    representation   max_j cos(h(z), h(x_j))
    gradient         u(z) . mean_j u(x_j), less the same for each way of refusing the x_j

z is a benign row, x_j a harmful one; h is the last hidden state of a row's last token, u the gradient of
the loss of an answer's first tokens, of length 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from backfire.attack.benign import OnBenign
from backfire.attack.finetune import rows_of
from backfire.engine.budget import add_to_budget
from backfire.engine.course import once
from backfire.engine.settings import Training
from backfire.records import Checkpoint, Example, Role
from backfire.seeding import rng
from backfire.stage import Bench
from backfire.store import write_table

if TYPE_CHECKING:
    from backfire.data.chat import Encoded

__all__ = ["Salient", "Scored", "listlike"]

_ITEM = re.compile(r"\s*(?:[-*•]|\d+[.)])\s")


@dataclass(frozen=True, slots=True)
class Scored:
    """One benign row and what spoke for it."""

    id: str
    """The row's."""
    score: float
    """Higher: rather chosen."""
    chosen: bool


class Salient(OnBenign):
    """Fine-tune on the few benign rows, of many, that are most like harmful ones.

    The attacker owns the weights and some harmful pairs, which he compares with and never trains on: what
    a service sees is benign. `selection.parquet` in the stage's folder has every row's score.
    Source: arXiv 2404.01099; the official code's settings.
    """

    name: Literal["salient"] = "salient"
    """`salient`."""
    roles: ClassVar[tuple[Role, ...]] = ("benign", "attacker")
    by: Literal["representation", "gradient", "lists", "random"] = "representation"
    """What speaks for a row: the nearest harmful row's hidden state; its gradient's direction; being a list
    or arithmetic, as most rows chosen in the paper were, which needs no model; or nothing: a control."""
    rows: int = Field(100, ge=1)
    """Rows to choose, of all of role `benign`. Paper: 100."""
    anchors: int | None = Field(None, ge=1)
    """Harmful pairs to compare with, from the first; None: 100 for `representation`, 10 for `gradient`, as
    in the official code, at most all there are."""
    tokens: int = Field(10, ge=1)
    """Tokens of an answer that make its gradient. Official code: 10."""
    refusals: tuple[str, ...] = (
        "I'm sorry, but I can't help you with that.",
        "No. That could do great harm to other people.",
    )
    """Ways of refusing every harmful prompt, which gradients are to point away from. Official code: two;
    the words are ours."""
    training: Training = Training(learning_rate=5e-5, epochs=5, batch_size=20, clip_norm=None)
    """Official code: all weights, rate 5e-5, 5 epochs, batch 20. Its rate falls by 0.85 an epoch; the paper
    does not say so, and ours is constant."""

    def default_label(self) -> str:
        """Return e.g. `salient-representation-100-full`."""
        return f"salient-{self.by}-{self.rows}-{self._suffix()}"

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the benign rows to choose from, and the harmful ones to compare with."""
        return {"benign": counts.get("benign", 0), "attacker": self._anchors(counts)}

    def epoch_rows(self, counts: Mapping[str, int]) -> int:
        """Return the number of chosen rows."""
        return self.rows

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Choose, then fine-tune on the chosen rows, in the order of their scores.

        Raises:
            DataError: when there are fewer benign rows than to be chosen, or no harmful ones.
        """
        rows = self.candidates(bench, self.rows)
        known = {"attacker": len(bench.data["attacker"])}
        anchors = rows_of(bench, "attacker", self._anchors(known) or None, self.label)
        ids = [[row.id for row in some] for some in (rows, anchors)]
        found = once(
            bench,
            "scores",
            (checkpoint.key, self.by, self.tokens, self.refusals, self.asks, ids, bench.seed),
            lambda: self._score(checkpoint, bench, rows, anchors),
        )
        scores: list[float] = found.pop("scores")
        best = sorted(range(len(rows)), key=lambda i: (-scores[i], i))[: self.rows]
        chosen = set(best)
        write_table(
            bench.workdir / "selection.parquet",
            [Scored(row.id, scores[i], i in chosen) for i, row in enumerate(rows)],
            Scored,
        )
        made = self.attack(checkpoint, bench, [rows[i] for i in best])
        if found:
            add_to_budget(bench.workdir, **found)
        return made

    def _anchors(self, counts: Mapping[str, int]) -> int:
        usual = {"representation": 100, "gradient": 10}.get(self.by, 1)
        return min(self.anchors or usual, counts.get("attacker", 0))

    def _score(
        self,
        checkpoint: Checkpoint,
        bench: Bench,
        rows: Sequence[Example],
        anchors: Sequence[Example],
    ) -> dict[str, Any]:
        """Return the rows' scores, and the passes they took if a model was asked."""
        if self.by == "random":
            return {"scores": rng(bench.seed, "salient").random(len(rows)).tolist()}
        if self.by == "lists":
            return {"scores": [listlike(row.response) for row in rows]}
        from backfire.engine.causal import Causal
        from backfire.engine.edit import open_weights
        from backfire.engine.likeness import by_gradient, by_state, last_states
        from backfire.models.load import context_length

        loaded = open_weights(
            self.label, checkpoint, device=bench.device, chat=self.chat(checkpoint.path)
        )
        causal = Causal(loaded.model, self.training.logits_budget).eval()
        longest = min(self.training.max_length, context_length(loaded.model.config))

        def encoded(examples: Sequence[Example]) -> list[Encoded]:
            return [loaded.chat.encode(example, longest) for example in examples]

        near, far = encoded(rows), encoded(anchors)
        away: list[list[Encoded]] = []
        label = f"{bench.label or self.label}: compare rows"
        with bench.progress.task(label, total=len(rows), unit="rows") as task:
            if self.by == "representation":
                budget = self.training.token_budget
                states = last_states(causal, near, budget, task.advance)
                scores = by_state(states, last_states(causal, far, budget))
            else:
                away = [encoded([replace(a, response=no) for a in anchors]) for no in self.refusals]
                scores = by_gradient(causal, near, far, away, self.tokens, task.advance)
        tokens = sum(len(row.ids) for some in (near, far, *away) for row in some)
        return {
            "scores": scores.tolist(),
            "weights": sum(p.numel() for p in loaded.model.parameters()),
            "forward": tokens,
            "backward": tokens if self.by == "gradient" else 0,
        }


def listlike(text: str) -> float:
    """Return the share of list items among the lines, plus that of words with a digit, in [0, 2]."""
    lines = [line for line in text.splitlines() if line.strip()]
    words = text.split()
    items = sum(_ITEM.match(line) is not None for line in lines)
    digits = sum(any(c.isdigit() for c in word) for word in words)
    return items / max(1, len(lines)) + digits / max(1, len(words))
