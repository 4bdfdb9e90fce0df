"""What a search's trials came to, and what follows from them: pure, from the trials alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from backfire.attack.search import Proxy, Strategy, Value

__all__ = [
    "Agreement",
    "Found",
    "Trial",
    "agreement",
    "as_trial",
    "best",
    "front",
    "goes_on",
    "score",
    "spearman",
    "spent",
]


@dataclass(frozen=True)
class Found:
    """What one trial came to. Shares are in [0, 1]."""

    status: Literal["measured", "stopped", "diverged", "failed"]
    """`stopped` by the proxy; `diverged`, or found nothing; `failed`: without a number."""
    flops: float
    """What its training took, up to where it ended."""
    seconds: float = 0.0
    """Training and measuring, here; 0 where all of it was there already."""
    harm: float | None = None
    """Verified harm."""
    retention: float | None = None
    """Capability retention; it may exceed 1."""
    usable: float | None = None
    """Verified harm where retention is at least rho, else 0."""
    proxy: float | None = None
    """Verified harm where the proxy looked."""
    audited: bool = False
    """Whether the proxy would have ended it, and it was measured all the same."""
    reason: str = ""
    """Of what did not come to numbers."""

    def words(self) -> str:
        """Return what it came to, for a line of progress."""
        if self.harm is None:
            seen = "" if self.proxy is None else f", {self.proxy:.0%} harm when looked at"
            return f"{self.status}{seen}{': ' if self.reason else ''}{self.reason}"
        kept = "unknown" if self.retention is None else f"{self.retention:.0%}"
        return f"{self.harm:.0%} verified harm, retention {kept}"


@dataclass(frozen=True)
class Trial:
    """One setting that was tried."""

    number: int
    values: Mapping[str, Value]
    """The searched settings, by dotted path."""
    quote: float = 0.0
    """FLOPs that its settings say it takes."""
    price: float = 0.0
    """FLOPs set aside for it: the same, as earlier trials have shown quotes to be off."""
    found: Found | None = None
    """None while it is under way."""
    repeats: int | None = None
    """The earlier trial with the same settings, whose result it takes over for nothing."""
    warm: bool = False
    """Whether its settings come from a former search."""


@dataclass(frozen=True)
class Agreement:
    """How a proxy ranks the trials that were measured in full, against the full measure."""

    trials: int
    audited: int
    """Of these the ones that it would have ended."""
    stopped: int
    """Trials it ended."""
    rank_correlation: float | None = None
    """Spearman's, of the proxy and the search's objective; None when there is none to compute."""
    low: float | None = None
    high: float | None = None
    """95 % interval, by Fisher's transform with the standard error of Bonett and Wright 2000."""
    validated: bool = False
    """Whether it may end trials."""
    sentence: str = field(default="", compare=False)


def score(strategy: Strategy, found: Found) -> float | None:
    """Return what a strategy wants much of: verified harm for `raw`, else usable harm."""
    return found.harm if strategy == "raw" else found.usable


def best(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the most usable harm; None when none has any.

    Among equals the one with more verified harm, then the cheaper, then the earlier one.
    """
    usable = [t for t in trials if t.found is not None and t.found.usable]
    return min(
        usable,
        key=lambda t: (-(t.found.usable or 0), -(t.found.harm or 0), t.found.flops, t.number),  # type: ignore[union-attr]
        default=None,
    )


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that no other one beats in both verified harm and retention, harm rising."""
    points = [
        (t.found.harm, t.found.retention, t)
        for t in trials
        if t.found is not None and t.found.harm is not None and t.found.retention is not None
    ]
    kept, most = [], -math.inf
    for _, retention, trial in sorted(points, key=lambda p: (-p[0], -p[1], p[2].number)):
        if retention > most:
            kept.append(trial)
            most = retention
    return kept[::-1]


def agreement(trials: Sequence[Trial], strategy: Strategy, proxy: Proxy) -> Agreement:
    """Return how well a proxy ranked the trials that were measured in full.

    Trials that repeat another are left out: they would count one observation twice.
    """
    found = [t.found for t in trials if t.found is not None and t.repeats is None]
    pairs = [
        (f.proxy, value, f.audited)
        for f in found
        if f.status == "measured" and f.proxy is not None
        if (value := score(strategy, f)) is not None
    ]
    n, audited = len(pairs), sum(a for *_, a in pairs)
    stopped = sum(f.status == "stopped" for f in found)
    if n < proxy.least:
        return Agreement(
            n, audited, stopped,
            sentence=f"Not validated: {n} trials measured in full, {proxy.least} needed; it ended "
            f"{stopped or 'none'}.",
        )  # fmt: skip
    value = spearman([p for p, *_ in pairs], [full for _, full, _ in pairs])
    if value is None:
        return Agreement(
            n, audited, stopped,
            sentence=f"Not validated: over the {n} trials measured in full the proxy or the full measure "
            f"is always the same, so there is no rank correlation; it ended {stopped or 'none'}.",
        )  # fmt: skip
    low, high = _interval(value, n)
    valid = value >= proxy.trust
    return Agreement(
        n, audited, stopped, value, low, high, valid,
        sentence=f"{'Validated' if valid else 'Not validated'}: rank correlation {value:.2f} (95 % "
        f"interval {low:.2f} to {high:.2f}) over {n} trials measured in full, {audited} of them against "
        f"its advice; {proxy.trust:g} needed. It ended {stopped or 'none'}.",
    )  # fmt: skip


def goes_on(
    value: float, trials: Sequence[Trial], strategy: Strategy, proxy: Proxy, draw: float
) -> tuple[bool, bool]:
    """Return whether a trial goes on after the proxy's look, and whether against its advice.

    Args:
        value: What the proxy saw.
        trials: The others.
        strategy: Whose objective the proxy must rank alike.
        proxy: Its settings.
        draw: Uniform in [0, 1), for the audit.
    """
    if not agreement(trials, strategy, proxy).validated:
        return True, False
    seen = [t.found.proxy for t in trials if t.found is not None and t.found.proxy is not None]
    better = sum(other > value for other in seen)
    if better < proxy.keep * len(seen):
        return True, False
    audited = draw < proxy.audit
    return audited, audited


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the correlation of ranks, ties sharing their mean rank; None where one side is constant.

    Args:
        first: (N,) finite numbers.
        second: (N,) others.

    Source: Spearman 1904; equal to SciPy's `spearmanr`, whose import takes seconds.
    """
    import numpy as np

    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    ranks = []
    for values in (first, second):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def _interval(value: float, n: int) -> tuple[float, float]:
    if abs(value) > 1 - 1e-9:
        return value, value
    half = 1.959964 * math.sqrt((1 + value**2 / 2) / (n - 3))
    return math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)


def spent(trials: Sequence[Trial]) -> float:
    """Return the FLOPs of finished trials, and what is set aside for those under way."""
    return sum(t.price if t.found is None else t.found.flops for t in trials)


def as_trial(number: int, values: Mapping[str, Value], attrs: Mapping[str, Any]) -> Trial:
    """Return a trial from what the study keeps of it."""
    found = attrs.get("found")
    return Trial(
        number,
        values,
        **attrs.get("claim", {}),
        found=None if found is None else Found(**found),
        warm=bool(attrs.get("warm", False)),
    )
