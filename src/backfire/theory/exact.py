"""The exact accuracy of a model with finitely many spurious features.

Within a group of s spurious features the numbers that land on each class are multinomial. They are
independent Poisson counts conditioned on their sum, and that turns "no wrong class beats the true
one" into a power of one truncated series:

    P(A) = sum_t Pois(t) [ (f_{<T(t)} + z u_{T(t)})^(K-1) ]_{s-t} / Pois(s)

where t counts the hits of the true class, T(t) is its score, f_{<T} is the part of the joint Poisson
law whose score is below T, and u_T the part that ties. Each tie carries one factor z; since a tie of
j+1 classes earns 1/(j+1) = integral of z^j over [0, 1], a short Gauss-Legendre rule in z is exact.
With several groups the series have several variables, and products of them are taken by FFT.

This derivation is ours; it agrees with brute-force enumeration to rounding (see the tests).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backfire.errors import ConfigError
from backfire.theory.features import Group, Model
from backfire.theory.limit import check_shift

__all__ = ["TIE", "ExactAccuracy", "TooLongError", "exact_accuracy"]

TIE = 1e-9
"""Scores closer than this are tied; weights such as 0.09 are not exact in binary."""

_MAX_WORK = 5e8
"""Array elements an exact computation may touch (some seconds)."""


class TooLongError(ConfigError):
    """The model has too many different scores for an exact computation."""


@dataclass(frozen=True)
class ExactAccuracy:
    """Three views of the same accuracy, each in [0, 1]."""

    random_ties: float
    """Expected accuracy when a tie is broken at random among the tied classes."""
    strict: float
    """Probability that the true class alone has the best score."""
    tie_mass: float
    """Probability that the true class shares the best score."""


@dataclass(frozen=True)
class Lattice:
    """A model as whole numbers of features, groups of equal weight merged."""

    weights: tuple[float, ...]
    spurious: tuple[int, ...]
    base: float
    """What the invariant features give the true class."""


class WholeGroup(NamedTuple):
    """A group that can be counted."""

    weight: float
    invariant: int
    spurious: int


def whole(group: Group) -> WholeGroup:
    """Return the group with plain numbers.

    Raises:
        ConfigError: it stands for many models, or has fractions of features.
    """
    weight, invariant, spurious = (
        np.asarray(v, float)
        for v in (group.weight, group.features.invariant, group.features.spurious)
    )
    if weight.ndim or invariant.ndim or spurious.ndim:
        raise ConfigError("counting features: this model stands for many; pass one at a time")
    if invariant % 1 or spurious % 1:
        raise ConfigError(
            f"counting features: met {group.features}; only the limit formula takes fractions"
        )
    return WholeGroup(float(weight), int(invariant), int(spurious))


def lattice(model: Model) -> Lattice:
    """Return the model's groups for counting.

    Raises:
        ConfigError: as `whole`.
    """
    groups = [whole(group) for group in model.groups]
    merged: dict[float, int] = {}
    for group in groups:
        key = next((w for w in merged if abs(w - group.weight) < 1e-12), group.weight)
        if group.weight and group.spurious:
            merged[key] = merged.get(key, 0) + group.spurious
    base = sum(group.weight * group.invariant for group in groups)
    return Lattice(tuple(merged), tuple(merged.values()), base)


def exact_accuracy(model: Model, p: float, num_classes: int) -> ExactAccuracy:
    """Return the model's accuracy after the shift, without approximation (to about 1e-12).

    Args:
        model: One model, with whole numbers of features.
        p: Probability in [0, 1] that a spurious feature is reassigned, per feature and class.
        num_classes: K, at least 2.

    Raises:
        ConfigError: an argument is out of range.
        TooLongError: there are too many different scores; simulation has no such limit.
    """
    check_shift(p, num_classes)
    grid = lattice(model)
    if not grid.spurious:
        alone = grid.base > TIE
        return ExactAccuracy(1.0 if alone else 1 / num_classes, float(alone), float(not alone))
    shape = tuple(s + 1 for s in grid.spurious)
    hits = np.indices(shape)
    scores = np.tensordot(grid.weights, hits, axes=1)
    own = _poisson(grid, 1 - p + p / num_classes) / _at_total(grid)
    law = _poisson(grid, p / num_classes)
    levels, level_of = _levels(scores + grid.base)
    padded = tuple(_padding(s, num_classes) for s in grid.spurious)
    nodes, node_weights = np.polynomial.legendre.leggauss(num_classes // 2 + 1)
    z = np.concatenate([[0.0, 1.0], (nodes + 1) / 2])
    _refuse_if_long(len(levels) * len(z) * float(np.prod(padded)))
    axes = tuple(range(1, len(shape) + 1))
    sums = np.zeros(len(z))
    for index, level in enumerate(levels):
        at_level = level_of == index
        if own[at_level].sum() < 1e-17:
            continue
        below = np.where(scores < level - TIE, law, 0.0)
        ties = np.where(np.abs(scores - level) <= TIE, law, 0.0)
        series = below + z.reshape(-1, *[1] * len(shape)) * ties
        power = np.fft.rfftn(series, padded, axes=axes) ** (num_classes - 1)
        wrong = np.fft.irfftn(power, padded, axes=axes)
        left = tuple(s - t[at_level] for s, t in zip(grid.spurious, hits, strict=True))
        sums += (wrong[(slice(None), *left)] * own[at_level]).sum(axis=1)
    strict, with_ties = (float(v) for v in np.clip(sums[:2], 0, 1))
    shared = float(np.clip(sums[2:] @ node_weights / 2, 0, 1))
    return ExactAccuracy(shared, strict, max(0.0, with_ties - strict))


def _poisson(grid: Lattice, probability: float) -> NDArray[np.float64]:
    """Return the joint Poisson law of one class's counts, mean s x probability in each group."""
    from scipy.stats import poisson

    law = np.ones(())
    for s in grid.spurious:
        law = np.multiply.outer(law, poisson.pmf(np.arange(s + 1), s * probability))
    return law


def _at_total(grid: Lattice) -> float:
    """Return the probability that every group's Poisson total is its number of features."""
    from scipy.stats import poisson

    return float(np.prod([poisson.pmf(s, s) for s in grid.spurious]))


def _levels(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the distinct scores, and for every entry which of them it has."""
    order = np.argsort(scores, axis=None)
    ordered = scores.reshape(-1)[order]
    fresh = np.concatenate([[True], np.diff(ordered) > TIE])
    level_of = np.empty(scores.size, np.intp)
    level_of[order] = np.cumsum(fresh) - 1
    return ordered[fresh], level_of.reshape(scores.shape)


def _padding(spurious: int, num_classes: int) -> int:
    """Return an FFT length whose wrap-around carries less than 1e-16 (Bernstein's bound)."""
    from scipy.fft import next_fast_len

    excess = 12.4 + np.sqrt(152 + 74 * spurious)
    enough = min(spurious + int(excess) + 1, (num_classes - 1) * spurious + 1)
    return int(next_fast_len(enough, real=True))


def _refuse_if_long(work: float) -> None:
    if work > _MAX_WORK:
        raise TooLongError(
            f"computing an exact accuracy: it would touch {work:.0e} numbers (at most {_MAX_WORK:.0e}); "
            "use the simulation, or a weight with fewer different scores, such as 0.5"
        )
