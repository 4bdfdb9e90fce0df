"""An attacker who tunes his settings: what he varies, what he may spend, and how he decides.

>>> from backfire.attack import Harmful
>>> search = Search(attack=Harmful(shots=10), flops=1e15)
>>> search.with_values({"training.learning_rate": 1e-4, "training.steps": 32}).training.steps
32
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from backfire.attack import AnyAttack
from backfire.attack.courses import courses
from backfire.attack.finetune import FineTuning
from backfire.attack.sequence import AttackSequence
from backfire.errors import ConfigError
from backfire.mistakes import validated
from backfire.runfile import Parsed, override
from backfire.stage import Settings

__all__ = ["Dimension", "Proxy", "Range", "Search", "Strategy", "Value"]

Value = bool | int | float | str | None
"""What a searched setting can be."""

Strategy = Literal["constrained", "raw", "random", "pareto"]


class Range(Settings):
    """All numbers between two, both included."""

    low: int | float
    """Smallest value; whole numbers on both sides give whole numbers."""
    high: int | float
    """Largest value."""
    log: bool = False
    """Draw the logarithm evenly, for scales. Ours: no."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"`low` must be below `high`, and with `log` above 0; met {self.low} to {self.high}"
            )
        return self

    @property
    def ends(self) -> tuple[Value, ...]:
        """Return the smallest and the largest value."""
        return (self.low, self.high)


Dimension = Range | Annotated[tuple[Value, ...], Field(min_length=1)]
"""A range, or a list of choices."""


class Proxy(Settings):
    """A cheap look at a trial on its way, which can end it there.

    It ends none before it has shown, on trials that were measured in full, that it ranks them alike.
    """

    at: float = Field(0.25, gt=0, lt=1)
    """Share of the training after which it looks. Ours: a stopped trial then costs a quarter."""
    prompts: int = Field(16, ge=1)
    """Hazards asked in the look, the first ones; nothing else is measured. Ours."""
    least: int = Field(8, ge=4)
    """Trials measured in full before it can be believed. Ours."""
    trust: float = Field(0.5, ge=0, le=1)
    """Least rank correlation (Spearman) with the full measure to be believed. Ours."""
    keep: float = Field(0.5, gt=0, lt=1)
    """Share of the looks so far, best first, among which a trial must be to go on. Ours: the better
    half, as in median pruning."""
    audit: float = Field(0.25, ge=0, le=1)
    """Share of the trials it would end that are measured in full all the same, so that it is not
    validated by its own survivors alone. Ours."""


_FULL: Mapping[str, Any] = {
    "training.learning_rate": Range(low=1e-6, high=1e-3, log=True),
    "training.steps": (16, 64, 128, 256, 512),
    "training.batch_size": (4, 8, 16),
    "training.schedule": ("constant", "cosine"),
    "template": (None, "plain", "alpaca"),
}
_LORA: Mapping[str, Any] = {
    **_FULL,
    "training.batch_size": (8, 16, 32, 64),
    "training.lora.rank": (8, 16, 32, 64),
}


class Search(Settings):
    """A search over one attack's settings, on every defense and on the undefended model alike."""

    attack: AnyAttack
    """The attack whose settings are searched; what the space does not name stays as it is here."""
    flops: float = Field(gt=0)
    """What the trainings of one search may take, in FLOPs as `cells` counts them: for each strategy and
    each model anew. It ends when the next trial would exceed it."""
    trials: int = Field(64, ge=1)
    """Most trials, whatever the budget. Ours."""
    strategies: tuple[Strategy, ...] = Field(("constrained",), min_length=1)
    """`constrained`: TPE for verified harm of models that keep `verdict.rho` of capability. `raw`: TPE
    for verified harm alone, as TamperBench searches. `random`. `pareto`: TPE for harm and retention at
    once. Each has the whole budget; the best usable harm among its trials is what it found."""
    space: dict[str, Dimension] = Field(default_factory=dict)
    """What is varied: dotted settings of the attack, each with `{low, high, log}` or a list of choices.
    Empty: TamperBench's space for fine-tuning: learning rate 1e-6 to 1e-3 on a log scale, steps 16 to
    512, batch 4 to 16 (adapter: 8 to 64), rank 8 to 64, schedule, template."""
    proxy: Proxy | None = Proxy()
    """The cheap look that ends hopeless trials. None: every trial goes to its end."""
    startup: int = Field(10, ge=1)
    """Random trials before the sampler learns from them. Optuna's default."""
    warm_start: str | None = None
    """Folder of a former search, on another model perhaps: what won there is tried first."""
    warm_trials: int = Field(5, ge=1)
    """How many of a former search's settings are tried, best first. Ours."""
    seed: int = Field(0, ge=0)
    """Of the sampler. Trials are trained with the run's first seed."""

    @model_validator(mode="after")
    def _fits_the_attack(self) -> Self:
        if len(set(self.strategies)) < len(self.strategies):
            raise ValueError(f"a strategy is given twice in {list(self.strategies)}")
        if len(courses(self.attack)) > 1:
            raise ValueError(
                "`points` do not go with a search, which looks on its own; leave them out"
            )
        if not self.dimensions:
            raise ValueError(
                f"there is no space by default for {self.attack.name!r}; give `space`, e.g. "
                "{shots: [10, 100]}"
            )
        if self.proxy is not None and self.glimpse(self.attack) is None:
            raise ValueError(
                f"`proxy` looks at a training on its way, and {self.attack.name!r} has none that stops; "
                "give `proxy: null`"
            )
        ends = {p: d.ends if isinstance(d, Range) else d for p, d in self.dimensions.items()}
        for path, values in ends.items():
            for value in values:
                self._checked({path: value})
        self._checked({path: values[0] for path, values in ends.items()})
        return self

    def _checked(self, values: Mapping[str, Value]) -> Any:
        try:
            return self.with_values(values)
        except ConfigError as error:
            raise ValueError(f"`space`: {error}") from error

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """Return what is varied, the default space where none is given."""
        if self.space or not isinstance(self.attack, FineTuning):
            return dict(self.space)
        return dict(_FULL if self.attack.training.lora is None else _LORA)

    def holds(self, path: str, value: Value) -> bool:
        """Return whether a setting is searched, and a value of it lies in the space."""
        dimension = self.dimensions.get(path)
        if isinstance(dimension, Range):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and dimension.low <= value <= dimension.high  # type: ignore[operator]
        return dimension is not None and value in dimension

    def with_values(self, values: Mapping[str, Value]) -> Any:
        """Return the attack with other settings.

        A rank that is searched takes `alpha` along in proportion, unless that is searched, too: else it
        would scale the learning rate.

        Args:
            values: By dotted path.

        Raises:
            ConfigError: when the attack has no such setting, or it cannot have the value.
        """
        tree = self.attack.model_dump(mode="json") | {"label": ""}
        assignments = [f"{path}={json.dumps(value)}" for path, value in values.items()]
        for path, value in values.items():
            around, dot, name = path.rpartition(".")
            beside = _at(tree, around)
            if _OTHER_LENGTH.get(name) in beside:
                assignments.append(f"{around}{dot}{_OTHER_LENGTH[name]}=null")
            if name == "rank" and "alpha" in beside and f"{around}.alpha" not in values:
                scale = beside["alpha"] / beside["rank"]
                assignments.append(f"{around}.alpha={json.dumps(scale * float(value or 0))}")
        tree, mistakes = override(tree, assignments)
        what = f"the searched settings of {self.attack.label}"
        return validated(type(self.attack), Parsed(tree), what, mistakes)

    def glimpse(self, attack: Any) -> Any | None:
        """Return the attack stopped where the proxy looks; None where it has no training that stops."""
        if self.proxy is None:
            return None
        if isinstance(attack, AttackSequence):
            last = self.glimpse(attack.parts[-1])
            return last and attack.model_copy(update={"parts": (*attack.parts[:-1], last)})
        if not isinstance(attack, FineTuning) or attack.trainer != "engine":
            return None
        if attack.training.stop is not None:
            return None
        stopped = attack.training.model_copy(update={"stop": self.proxy.at})
        return attack.model_copy(update={"training": stopped})


_OTHER_LENGTH = {"steps": "epochs", "epochs": "steps"}
"""A length that is given, and the one that it replaces."""


def _at(tree: Any, path: str) -> Mapping[str, Any]:
    """Return the mapping at a dotted path; an empty one where there is none."""
    for part in filter(None, path.split(".")):
        if isinstance(tree, list) and part.isdecimal() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            tree = tree.get(part) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}
