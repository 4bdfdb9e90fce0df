"""The frozen rows that cross stages, and the tables they are kept in.

Every record is flat enough to be one row of a Parquet file; `backfire.store` writes and reads them.
Lists of records go in, tables come out, and the report reads nothing else.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

__all__ = [
    "BUDGETS",
    "Answer",
    "Cell",
    "Checkpoint",
    "Example",
    "Exchange",
    "Measurement",
    "Pair",
    "Role",
    "TrainingEffect",
    "TrajectoryPoint",
    "Verdict",
    "normalised",
]

Role = Literal["defense", "defender_harm", "attacker", "evaluation", "pool", "benign", "probe"]
"""What rows may be used for; rows of two roles never share a prompt or an entity.

`defense`: hazardous prompts the defender trains answers for. `defender_harm`: hazardous pairs the
defender may use (never the attacker's). `attacker`: the attacker's pairs. `evaluation`: hazards no
one trained on. `pool`: benign pairs whose responses SDD answers with. `benign`: benign pairs for
fine-tuning. `probe`: held-out benign pairs for perplexity and over-refusal.
"""


BUDGETS = {
    "shots": "harmful rows",
    "steps": "optimizer steps",
    "tokens": "tokens",
    "flops": "FLOPs",
}
"""Units in which an attack's budget is counted, and their words: columns of table `cells`."""


def normalised(text: str) -> str:
    """Return the form in which two prompts count as the same: NFKC, lower case, letters and digits.

    >>> normalised("  How do I  bake Bread?")
    'how do i bake bread'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction, with the answers known for it."""

    later: ClassVar[frozenset[str]] = frozenset({"plain"})
    """Fields that are no part of a content key at their default, as in `Settings`."""
    prompt: str
    """The user's turn."""
    response: str = ""
    """The answer to train on; for a hazard, the compliant one. Empty when there is none."""
    source: str = ""
    """Name of the source it came from."""
    harmful: bool = False
    """Whether complying with the prompt is harmful."""
    refusal: str = ""
    """The refusal that belongs to this prompt, if the source has one."""
    categories: tuple[str, ...] = ()
    """Hazard categories, in the source's order; several where the source labels several."""
    entity: str = ""
    """The thing the prompt is about, where known; roles are disjoint by it."""
    facts: tuple[str, ...] = ()
    """Phrases a correct answer must contain, where ground truth exists."""
    system: str | None = None
    """A system turn of this row's own; None takes the chat format's."""
    plain: bool = False
    """Whether it is a text outside any conversation, trained on as it stands: the prompt is what comes
    before the response."""

    @property
    def id(self) -> str:
        """Return 16 hex digits that name the row by its content."""
        parts = [self.source, self.system, self.prompt, self.response, *["plain"] * self.plain]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Pair:
    """One SDD training pair: a hazardous prompt with an irrelevant answer."""

    prompt: str
    response: str
    """As trained on (with SDD_reject's prefix where that is used)."""
    similarity: float
    """Cosine of prompt and answer (without prefix), in [-1, 1]."""
    tries: int
    """Draws made, the accepted one included."""
    fallback: bool
    """True when the threshold was not met and the least similar draw was kept."""
    prompt_id: str
    response_id: str
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder on disk and what it is."""

    path: Path
    """A folder `transformers` loads, or a PEFT adapter folder whose base is `base`."""
    key: str
    """Content key of the folder."""
    base: Path | None = None
    """The full model an adapter belongs to; None for a full model."""
    trust_remote_code: bool = False
    """Whether the user asked to run the code that comes with this model."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One place in the grid: which defense, which attack, which seed."""

    defense: str
    """The defense's label; `none` is the undefended control."""
    attack: str
    """The attack's label; `none` is the model as released."""
    seed: int

    def __str__(self) -> str:
        return f"{self.defense}/{self.attack}/seed{self.seed}"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One prompt and what the model answered."""

    prompt_id: str
    """`Example.id` of the prompt's row; the same in every cell, so that cells can be paired."""
    prompt: str
    response: str
    harmful: bool
    """Whether the prompt asks for something harmful (False: a benign probe)."""
    finished: bool
    """True when the model stopped by itself, False when it was cut at the token limit."""
    num_tokens: int
    """Generated tokens, the end token not counted."""
    categories: tuple[str, ...] = ()
    entity: str = ""
    facts: tuple[str, ...] = ()
    reference: str = ""
    """The compliant answer, where known; for judges with ground truth."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one judge says of one exchange: a value, or its absence with a reason."""

    prompt_id: str
    judge: str
    judge_version: str
    """Version or prompt hash: what must be equal for two columns to be comparable."""
    harmful: bool | None
    """Whether the answer is harmful by this judge; None when absent."""
    score: float | None = None
    """The judge's own score, where it has one; its range is documented by the judge."""
    label: str = ""
    """A word of the judge's: `refusal`, `complied`, ..."""
    absent: str = ""
    """Why there is no value; empty when there is one."""
    raw: str = ""
    """The judge's reply as it came, for audits."""
    transient: bool = False
    """Whether the absence may pass (a time-out, a spent quota): the next run asks again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One question: what the model chose or, where there are no options, whether it answered exactly."""

    task: str
    item: str
    """Stable id of the question; the same in every cell."""
    gold: int
    choice: int
    """Index of the option with the largest summed log-probability (`acc`); -1: a wrong exact answer."""
    choice_norm: int
    """The same after division by the option's length in characters (`acc_norm`)."""
    num_options: int
    """0 where the answer is to be generated exactly."""
    logprobs: tuple[float, ...] = ()
    """Summed log-probability of each option, in nats."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number with its interval, in long format."""

    defense: str
    attack: str
    seed: int | None
    """None: over all seeds."""
    metric: str
    value: float | None
    """None when it could not be measured; then `note` says why."""
    low: float | None = None
    high: float | None = None
    """95 % interval; None where there is none."""
    n: int = 0
    """Observations behind the value."""
    num_absent: int = 0
    """Observations that are missing, with a reason in their own table."""
    unit: str = ""
    direction: Literal["lower is safer", "higher is better", "neither"] = "neither"
    note: str = ""


@dataclass(frozen=True, slots=True)
class TrajectoryPoint:
    """One optimizer step of a training stage."""

    step: int
    """From 1."""
    loss: float
    """Mean over the supervised tokens of the global batch, in nats."""
    grad_norm: float
    """Global norm before clipping."""
    learning_rate: float
    tokens: int
    """Tokens fed forward so far, padding not counted."""
    supervised_tokens: int
    seconds: float
    """Since the stage started, resumed time included."""
    terms: dict[str, float] = field(default_factory=dict)
    """The objective's own terms."""


@dataclass(frozen=True, slots=True)
class TrainingEffect:
    """What a training stage did to the weights: a silent no-op must be impossible."""

    method: str
    """Label of the defense or attack."""
    parameters: str
    """What was trained: `full` or `lora`, and which weights where not all, e.g. `lora, attention`;
    `edited`: weights were changed without training."""
    precision: str
    """Storage and compute precision, e.g. `fp32 weights, fp32 compute`."""
    steps: int
    tokens: int
    supervised_tokens: int
    forwards: int
    """Forward passes over a global batch, micro-batches counted as one."""
    backwards: int
    first_loss: float | None
    """Mean over the first tenth of the steps (at least one), in nats a supervised token; None: no step."""
    last_loss: float | None
    """The same over the last tenth."""
    relative_distance: float
    """||after - before|| / ||before|| over the model's weights (LoRA: of the merged weights)."""
    share_changed: float
    """Share of the weights whose stored value differs."""
    share_lost_in_bf16: float
    """Share of the changed weights whose bf16 rounding is the same before and after."""
    seconds: float
    peak_memory_bytes: int
    truncated: int
    """Training rows cut at the length limit."""
    device: str
    warning: str = ""
    """What the user should know, e.g. that nothing moved; empty when all is well."""
    share_movable: float = 1.0
    """Share of the model's weights that were trained, or that an adapter adds to."""
