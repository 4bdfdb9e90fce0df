"""Estimates with intervals, from rows clustered by seed: numpy in, numpy out.

Everything is a *replicated* array whose first row is the point value and whose other rows are
bootstrap replicates. The same names always give the same weights, so two cells resampled over the
same prompts and seeds are resampled together, and any arithmetic on replicated arrays (a
difference, a ratio, a gate) is a paired bootstrap of the result:

>>> plan = Resampling(draws=200)
>>> prompts = plan.weights("prompts", ["a", "b", "c", "d"])
>>> before = per_seed([[0, 0, 1, 0]], prompts)
>>> after = per_seed([[1, 0, 1, 1]], prompts)
>>> plan.estimate(over_seeds(after - before, plan.seed_weights([0])), n=4).value
0.5

Legend: R replicated rows (1 + draws), S seeds, I items (prompts, questions or texts).

Source:
    Wilson 1927; Owen, "The pigeonhole bootstrap", 2007 (items and seeds resampled independently);
    Rao and Wu 1988 (S - 1 draws of S seeds); Dean and Pagano 2015 (design effect in Wilson's
    interval); Newcombe 1998 (difference of two proportions).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from backfire.seeding import rng

__all__ = [
    "Array",
    "Estimate",
    "Resampling",
    "above_chance",
    "over_seeds",
    "per_seed",
    "resolvable",
    "retention",
    "wilson",
]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """One number, its interval and how many observations are behind it."""

    value: float | None
    """None when it could not be estimated; then `note` says why."""
    low: float | None = None
    high: float | None = None
    n: int = 0
    note: str = ""


def wilson(rate: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion.

    Args:
        rate: Observed proportion in [0, 1].
        n: Number of observations, positive; not whole when it is an effective number.
        confidence: Coverage in (0, 1).

    Raises:
        ValueError: when an argument is out of its range.

    Source: Wilson 1927; equal to SciPy's `binomtest(...).proportion_ci(method="wilson")`.
    """
    if not (0 <= rate <= 1 and n > 0 and 0 < confidence < 1):
        raise ValueError(f"wilson needs 0 <= rate <= 1, n > 0, 0 < confidence < 1; got {rate}, {n}")
    from scipy.special import ndtri

    z = float(ndtri(0.5 + confidence / 2))
    center = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # Rounding may push a bound past the rate itself where the rate is 0 or 1.
    return max(0.0, min(center - half, rate)), min(1.0, max(center + half, rate))


def resolvable(n: float, confidence: float = 0.95, power: float = 0.8) -> float:
    """Return the smallest difference of two rates that n observations each are likely to show.

    Rates lie around one half, where they vary most, and the observations are not paired: both make the
    number larger than it need be. It is (z_c + z_p) sqrt((p1 q1 + p2 q2) / n), solved for the difference.

    Args:
        n: Independent observations of each rate, positive.
        confidence: Of the two-sided interval that must exclude zero.
        power: Chance that it does.

    Raises:
        ValueError: when an argument is out of its range.

    Source: the usual normal approximation, e.g. Fleiss 1981.
    """
    if not (n > 0 and 0 < confidence < 1 and 0 < power < 1):
        raise ValueError(
            f"resolvable needs n > 0 and shares in (0, 1); got {n}, {confidence}, {power}"
        )
    from scipy.special import ndtri

    ratio = float(ndtri(0.5 + confidence / 2) + ndtri(power)) ** 2 / (2 * n)
    return math.sqrt(ratio / (1 + ratio))


@dataclass(frozen=True)
class Resampling:
    """How often, how wide and with which seed to resample."""

    draws: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def weights(self, stream: str, names: Sequence[Any]) -> Array:
        """Return how often each name is drawn, (R, I): row 0 is all ones, each other row sums to I.

        The same stream and names give the same weights, whatever else is drawn.
        """
        return self._weights(stream, names, len(names))

    def seed_weights(self, seeds: Sequence[int]) -> Array:
        """Return how often each seed is drawn, (R, S); with one seed, always once.

        S - 1 of S seeds are drawn, with replacement: S draws of so few would understate the
        spread between seeds by the factor (S - 1) / S.
        """
        return self._weights("seeds", seeds, max(1, len(seeds) - 1))

    def _weights(self, stream: str, names: Sequence[Any], size: int) -> Array:
        digest = hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()
        generator = rng(self.seed, "bootstrap", stream, digest)
        weights = np.ones((1 + self.draws, len(names)))
        for row in weights[1:]:
            row[:] = np.bincount(generator.integers(len(names), size=size), minlength=len(names))
        return weights

    def estimate(self, replicated: Array, n: int, note: str = "") -> Estimate:
        """Return the first entry with the percentile interval of the others.

        Args:
            replicated: (R,); replicates that are not finite are left out.
            n: Observations behind the value.
            note: What the reader must know.
        """
        value = float(replicated[0])
        if not math.isfinite(value):
            return Estimate(None, n=n, note=note or "no observation")
        low, high = self._percentiles(replicated[1:], value)
        return Estimate(value, low, high, n, note)

    def proportion(self, replicated: Array, n: int, num_items: int, note: str = "") -> Estimate:
        """Return a proportion's estimate that stays honest at 0 and at 1.

        A bootstrap of all-equal answers has no spread at all, so the percentile interval is widened
        to Wilson's with the effective number of observations p (1 - p) / variance, at most n; where
        the answers are all equal, that number is the items': another seed's equal answers to the
        same prompts say little about other prompts.

        Args:
            replicated: (R,), in [0, 1].
            n: Observations behind the value.
            num_items: Distinct prompts behind it.
            note: What the reader must know.
        """
        plain = self.estimate(replicated, n, note)
        if plain.value is None or plain.low is None or plain.high is None:
            return plain
        variance = float(np.nanvar(replicated[1:]))
        spread = plain.value * (1 - plain.value)
        effective = min(n, spread / variance) if variance > 0 and spread > 0 else num_items
        low, high = wilson(plain.value, max(effective, 1), self.confidence)
        return Estimate(plain.value, min(low, plain.low), max(high, plain.high), n, note)

    def difference(self, first: Estimate, second: Estimate, replicated: Array, n: int) -> Estimate:
        """Return the paired difference of two proportions, first minus second.

        Args:
            first: Its own estimate.
            second: Its own estimate.
            replicated: (R,), differences under the same weights.
            n: Pairs behind it.

        Note: without any spread (both all 0, or all 1), Newcombe's interval from the two
        estimates' own bounds takes the bootstrap's place; it ignores that they are paired.
        """
        result = self.estimate(replicated, n)
        bounds = (first.value, first.low, first.high, second.value, second.low, second.high)
        if result.value is None or float(np.nanvar(replicated[1:])) > 0 or None in bounds:
            return result
        value1, low1, high1, value2, low2, high2 = (float(bound or 0) for bound in bounds)
        low = result.value - math.hypot(value1 - low1, high2 - value2)
        high = result.value + math.hypot(high1 - value1, value2 - low2)
        return Estimate(result.value, max(-1.0, low), min(1.0, high), n)

    def _percentiles(self, replicates: Array, value: float) -> tuple[float, float]:
        finite = replicates[np.isfinite(replicates)]
        if not finite.size:
            return value, value
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(finite, [tail, 1 - tail])
        # With few seeds the percentile interval can miss its own point value; never report that.
        return min(float(low), value), max(float(high), value)


def per_seed(values: npt.ArrayLike, weights: Array) -> Array:
    """Return each seed's weighted mean over its items, (R, S).

    Args:
        values: (S, I), NaN where there is no observation.
        weights: (R, I) of `Resampling.weights`.
    """
    table = np.asarray(values, dtype=np.float64)
    present = np.isfinite(table)
    with np.errstate(invalid="ignore", divide="ignore"):
        total: Array = weights @ np.where(present, table, 0.0).T
        means: Array = total / (weights @ present.T.astype(np.float64))
    return means


def over_seeds(values: Array, weights: Array) -> Array:
    """Return the weighted mean over seeds, (R,), of replicated values (R, S).

    Args:
        values: NaN for a seed without a value.
        weights: (R, S) of `Resampling.seed_weights`.
    """
    present = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        total: Array = (np.where(present, values, 0.0) * weights).sum(axis=1)
        means: Array = total / (present * weights).sum(axis=1)
    return means


def above_chance(accuracy: float, n: int, chance: float, confidence: float = 0.95) -> bool:
    """Return whether an accuracy over n items lies above chance by its whole Wilson interval."""
    return wilson(accuracy, n, confidence)[0] > chance


def retention(accuracy: Array, reference: Array, chance: Array) -> Array:
    """Return the share of above-chance accuracy that is kept, averaged over tasks.

    1 keeps all of it, 0 is guessing, below 0 is worse than guessing. The ratio is taken of the
    tasks' mean excess over chance, not task by task: a task the reference hardly knows would
    otherwise rule the mean. NaN where the reference is not above chance.

    Args:
        accuracy: (tasks, ...), of the model in question.
        reference: The same shape, of the model it is compared with.
        chance: (tasks,), accuracy of guessing.

    Returns:
        The array of shape `...`.
    """
    floor = chance.reshape(-1, *[1] * (accuracy.ndim - 1))
    kept = (accuracy - floor).mean(axis=0)
    whole = (reference - floor).mean(axis=0)
    kept = np.where(whole > 0, kept, np.nan)
    ratio: Array = kept / np.where(whole > 0, whole, 1.0)
    return ratio
