"""Refusal-direction ablation: one direction taken out of the weights, and the model cannot refuse."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from backfire.engine.settings import Member
from backfire.errors import DataError, NothingFoundError, TrainingError
from backfire.records import Checkpoint, Example, Role
from backfire.seeding import rng
from backfire.stage import Bench
from backfire.store import write_table

if TYPE_CHECKING:
    import torch

    from backfire.data.chat import Chat
    from backfire.engine.residual import Residual

__all__ = ["Candidate", "RefusalDirection", "divergence", "first_tokens", "refusal_scores"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One direction that was tried. Later figures are absent where an earlier one ruled it out."""

    position: int
    """Token of the template after the prompt, counted from the end: -1 is the last."""
    layer: int
    """Block at whose input the means were taken, from 0."""
    norm: float
    """Of the difference of the means."""
    induced: float | None
    """Mean refusal score of harmless prompts with the difference added at that block."""
    change: float | None
    """Mean KL divergence (original || ablated) of the next token after harmless prompts, in nats."""
    refusal: float | None
    """Mean refusal score of harmful prompts with the direction ablated."""
    outcome: str
    """`chosen`, `passed`, or why it was ruled out."""


class RefusalDirection(Member):
    """Find the direction that harmful prompts differ by from harmless ones, and take it out of the weights.

    The attacker owns the weights, and needs prompts of both kinds but no harmful answer and no training.
    A model that does not refuse has no such direction: then the result is that none was found. Source:
    Arditi et al. 2024 (arXiv 2406.11717).
    """

    name: Literal["refusal_direction"] = "refusal_direction"
    """`refusal_direction`."""
    roles: ClassVar[tuple[Role, ...]] = ("attacker", "benign")
    reads_answers: ClassVar[bool] = False
    train: int = Field(128, ge=1)
    """Prompts of each kind whose means are compared. Arditi et al.: 128. Where a role has fewer than
    `train` + `validation`, both take their share of what there is, and the note says so."""
    validation: int = Field(32, ge=1)
    """Prompts of each kind by which a direction is chosen. Arditi et al.: 32."""
    openings: tuple[str, ...] = Field(("I", "As"), min_length=1)
    """How refusals begin; their first tokens count as refusing. Arditi et al.: `I` for Llama-2 and
    `I`, `As` for Qwen."""
    depth: float = Field(0.8, gt=0, le=1)
    """Share of the blocks, from the first, whose directions are considered. Arditi et al.: 0.8."""
    most_change: float = Field(0.1, ge=0)
    """Largest KL divergence on harmless prompts. Arditi et al.: 0.1."""
    least_induced: float = 0.0
    """Smallest refusal score that adding the difference to harmless prompts must give them. Arditi et al.:
    0."""
    token_budget: int = Field(4096, ge=1)
    """Most tokens of one forward pass, padding included. Changes memory, not the result. Ours."""

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return the prompts of each kind, as many as there are at most."""
        wanted = self.train + self.validation
        return {role: min(wanted, counts.get(role, wanted)) for role in self.roles}

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Write the weights without the direction; `candidates.parquet` says what was tried.

        Raises:
            NothingFoundError: when no direction is found, which is a result.
            TrainingError: when something unknown writes to the residual stream, so that the attack does
                not fit the architecture.
            DataError: when a role has less than two prompts.
        """
        import time

        from backfire.engine.causal import Causal
        from backfire.engine.edit import open_weights, write_budget, write_edited
        from backfire.engine.residual import Residual

        began = time.monotonic()
        loaded = open_weights(self.label, checkpoint, device=bench.device)
        search = _Search(self, bench, Residual(Causal(loaded.model, 1 << 26)), loaded.chat)
        try:
            facts = search.take_out(search.direction())
        finally:
            write_budget(bench.workdir, loaded.model, steps=0, forward=search.tokens)
        return write_edited(checkpoint, bench, self, loaded, began, direction=facts)


class _Search:
    """One search for a direction."""

    def __init__(
        self, settings: RefusalDirection, bench: Bench, residual: Residual, chat: Chat
    ) -> None:
        self.settings, self.bench, self.residual, self.chat = settings, bench, residual, chat
        self.label = bench.label or settings.label
        self.refusing = first_tokens(chat, settings.openings)
        self.prompts: dict[str, list[list[int]]] = {}
        """Token ids by kind and use (`harmful train`); those of the wrong score are left out."""
        self.tokens = 0
        """Fed forward so far."""
        self.facts: dict[str, Any] = {"refusing_tokens": self.refusing, "prompts": {}}

    def direction(self) -> torch.Tensor:
        """Return the direction that is best to ablate (D,), of norm 1, in fp64.

        Raises:
            NothingFoundError: when there is none.
        """
        from backfire.engine.residual import unit

        self._note([])
        self._keep("harmful", "attacker", refused=True)
        self._keep("harmless", "benign", refused=False)
        empty = [name for name, prompts in self.prompts.items() if not prompts]
        if empty:
            raise self._nothing(
                f"no prompts are left ({', '.join(empty)}): harmful ones must be refused and harmless "
                "ones must not"
            )
        differences = self._differences()
        places, layers = differences.shape[:2]
        self.usual = self._logits("harmless validation").softmax(-1)
        tried = []
        total = places * int(self.settings.depth * layers)
        with self.bench.progress.task(self.label, total, "directions") as task:
            for place in range(places):
                for layer in range(int(self.settings.depth * layers)):
                    tried.append(self._tried(place - places, layer, differences[place, layer]))
                    task.advance()
        passed = [candidate for candidate in tried if candidate.outcome == "passed"]
        if not passed:
            self._note(tried)
            counts = Counter(candidate.outcome for candidate in tried)
            listed = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
            raise self._nothing(
                f"none of {len(tried)} directions will do ({listed}; see candidates.parquet)"
            )
        best = min(passed, key=lambda candidate: candidate.refusal or 0.0)
        chosen = replace(best, outcome="chosen")
        self._note([chosen if candidate is best else candidate for candidate in tried])
        before = self._refusal("harmful validation")
        self.facts |= {**asdict(chosen), "tried": len(tried), "refusal_before": before}
        return unit(differences[chosen.position, chosen.layer])

    def take_out(self, direction: torch.Tensor) -> dict[str, Any]:
        """Bake the ablation into the weights, and return what the note should say.

        Raises:
            TrainingError: when the stream is not free of the direction afterwards.
        """
        self.residual.bake(direction)
        left = max(
            self.residual.share(ids, direction)
            for name in self.prompts
            for _, ids, _ in self._batches(self.prompts[name])
        )
        if not left < 1e-5:
            raise TrainingError(
                f"{self.label}: with the direction taken out of the weights, {left:.1e} of the residual "
                "stream still lies along it, so something unknown writes to it; this architecture cannot "
                "be attacked so"
            )
        after = self._refusal("harmful validation")
        return {**self.facts, "refusal_after": after, "left_in_the_stream": left}

    def _keep(self, kind: str, role: Role, *, refused: bool) -> None:
        """Draw prompts of a role, part them, and keep those that are refused, or that are not."""
        rows, settings = self.bench.data.get(role, ()), self.settings
        wanted = settings.train + settings.validation
        total = min(len(rows), wanted)
        if total < 2:
            raise DataError(
                f"{self.label}: it needs at least 2 prompts of role `{role}`, there are {len(rows)}; raise "
                f"the count of `{role}` under `data`"
            )
        drawn = [rows[i] for i in rng(self.bench.seed, "directions", role).permutation(len(rows))]
        ids = [self.chat.prompt_ids(row.prompt, row.system) for row in drawn[:total]]
        seam = min(total - 1, round(total * settings.train / wanted))
        for use, part in (("train", ids[:seam]), ("validation", ids[seam:])):
            scores = refusal_scores(self._logits_of(part), self.refusing)
            name = f"{kind} {use}"
            self.prompts[name] = [
                prompt
                for prompt, score in zip(part, scores.tolist(), strict=True)
                if (score > 0 if refused else score < 0)
            ]
            self.facts["prompts"][name] = {"asked": len(part), "kept": len(self.prompts[name])}

    def _differences(self) -> torch.Tensor:
        """Return mean(harmful) - mean(harmless) of what enters each block (K, L, D), in fp64.

        K positions: the tokens that all prompts end in, which are the template's.
        """
        import torch

        ends = [self.chat.prompt_ids(text) for text in ("a", "7?")]
        ends += [prompt for prompts in self.prompts.values() for prompt in prompts]
        places = max(1, _common_end(ends))
        means = []
        for name in ("harmful train", "harmless train"):
            total: Any = 0.0
            for _, ids, lengths in self._batches(self.prompts[name]):
                positions = lengths[:, None] - places + torch.arange(places, device=ids.device)
                total = total + self.residual.entering(ids, positions).cpu().double().sum(0)
            means.append(total / len(self.prompts[name]))
        difference: torch.Tensor = means[0] - means[1]
        return difference

    def _tried(self, position: int, layer: int, difference: torch.Tensor) -> Candidate:
        """Try one direction, no further than to the first figure that rules it out."""
        from backfire.engine.residual import unit

        settings, device = self.settings, self.residual.causal.model.device
        induced = change = refusal = None
        with self.residual.pushed(layer, difference.float().to(device)):
            induced = self._refusal("harmless validation")
        outcome = "induces no refusal" if induced < settings.least_induced else "passed"
        if outcome == "passed":
            with self.residual.ablated(unit(difference).float().to(device)):
                ablated = self._logits("harmless validation").softmax(-1)
                change = float(divergence(self.usual, ablated).mean())
                if change > settings.most_change:
                    outcome = "changes harmless answers"
                else:
                    refusal = self._refusal("harmful validation")
        if any(value is not None and math.isnan(value) for value in (induced, change, refusal)):
            outcome = "is not a number"
        norm = float(difference.norm())
        return Candidate(position, layer, norm, induced, change, refusal, outcome)

    def _refusal(self, name: str) -> float:
        return float(refusal_scores(self._logits(name), self.refusing).mean())

    def _logits(self, name: str) -> torch.Tensor:
        return self._logits_of(self.prompts[name])

    def _logits_of(self, prompts: Sequence[list[int]]) -> torch.Tensor:
        """Return the logits (n, V) of the first word after each prompt, in fp64."""
        import torch

        found: dict[int, torch.Tensor] = {}
        for rows, ids, lengths in self._batches(prompts):
            found |= zip(rows, self.residual.next_logits(ids, lengths), strict=True)
        return torch.stack([found[i] for i in range(len(prompts))])

    def _batches(
        self, prompts: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """Yield which prompts go together, their ids (B, T) padded on the right, their lengths (B,)."""
        import torch

        device = self.residual.causal.model.device
        waiting = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        while waiting:
            width = len(prompts[waiting[0]])
            size = max(1, self.settings.token_budget // width)
            rows, waiting = waiting[:size], waiting[size:]
            ids = [prompts[i] + [0] * (width - len(prompts[i])) for i in rows]
            lengths = [len(prompts[i]) for i in rows]
            self.tokens += sum(lengths)
            yield rows, torch.tensor(ids, device=device), torch.tensor(lengths, device=device)

    def _note(self, candidates: Sequence[Candidate]) -> None:
        write_table(self.bench.workdir / "candidates.parquet", candidates, Candidate)

    def _nothing(self, why: str) -> NothingFoundError:
        return NothingFoundError(f"{self.label}: no refusal direction was found: {why}")


def first_tokens(chat: Chat, openings: Sequence[str]) -> list[int]:
    """Return the first token of each opening as an answer would begin with it, each id once."""
    rows = [chat.encode(Example("question", opening), 1 << 30) for opening in openings]
    return list(dict.fromkeys(row.ids[row.start] for row in rows))


def refusal_scores(logits: torch.Tensor, refusing: Sequence[int]) -> torch.Tensor:
    """Return log(p + 1e-8) - log(1 - p + 1e-8) (B,), p being the chance that a refusal begins.

    Args:
        logits: (B, V).
        refusing: Ids of the tokens that begin one; an id that stands twice would count twice.
    """
    p = logits.softmax(-1)[:, list(refusing)].sum(-1)
    return (p + 1e-8).log() - (1 - p + 1e-8).log()


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return KL(p || q) (B,) of distributions (B, V), 1e-6 added inside the logarithms."""
    return (p * ((p + 1e-6).log() - (q + 1e-6).log())).sum(-1)


def _common_end(rows: Sequence[Sequence[int]]) -> int:
    """Return how many last tokens all rows share."""
    shared = zip(*(reversed(row) for row in rows), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda tokens: len(set(tokens)) == 1, shared))
