"""F_p: how often a model is right when its spurious features are many.

With many spurious features the K-1 margins of the true class over the others are jointly normal,
mean x and covariance M, M_ii = a + b and M_ij = a, where a = p(K+1-pK)/K and b = p/K. Then

    F_p(x) = P(all margins > 0) = P(x + sqrt(a) g + sqrt(b) min_i g_i > 0)

for one shared normal g and K-1 private ones. Integrating the *shared* normal in closed form leaves
one integral, over the minimum u of the private ones:

    F_p(x) = E_u[ Phi((x + sqrt(b) u) / sqrt(a)) ].

Its weight does not depend on x or p, and its integrand never changes faster than on a scale of 1
(a >= b), so that one rule of about 45 nodes serves all points of a sweep with the same K.

>>> float(limit_accuracy(0.0, p=1.0, num_classes=4).round(9))
0.25
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backfire.errors import ConfigError
from backfire.seeding import rng

__all__ = ["QUADRATURE_ERROR", "Estimate", "limit_accuracy", "sampled_limit_accuracy"]

Array = NDArray[np.float64]

QUADRATURE_ERROR = 1e-8
"""Bound on the absolute error of `limit_accuracy` for 2 <= K <= 100 000 (measured: below 1e-9)."""

_STEP = 0.4
"""Node spacing in standard deviations of the minimum; halving it changes nothing above 1e-9."""
_MAX_CLASSES = 100_000
_CHUNK = 1 << 15
"""Points worked on at once: small enough for the cache, large enough for vector speed."""


class Estimate(NamedTuple):
    """A Monte Carlo mean."""

    value: float
    standard_error: float
    """Standard error of `value`, of the same unit."""
    draws: int


class _Rule(NamedTuple):
    nodes: Array
    """Values of the minimum of the K-1 private normals."""
    weights: Array
    """Their probabilities; they sum to 1."""


def limit_accuracy(x: ArrayLike, p: ArrayLike, num_classes: ArrayLike) -> Array:
    """Return F_p(x) by quadrature, to `QUADRATURE_ERROR`.

    Args:
        x: The argument, mean margin over its scale; any real, infinities included.
        p: Probability in [0, 1] that a spurious feature is reassigned at random. At p=0 the function
            is a step, with 1/K (all classes tie) at x=0.
        num_classes: K, whole numbers from 2 to 100 000.

    Returns:
        Accuracies in [0, 1], of the broadcast shape of the arguments. Increasing in x for p > 0.

    Raises:
        ConfigError: an argument is out of its range.

    Source: the function is Lin et al.'s (arXiv 2309.17230); this form of the integral is ours.
    """
    x, p, classes = np.broadcast_arrays(
        np.asarray(x, float), np.asarray(p, float), np.asarray(num_classes)
    )
    check_shift(p, classes)
    if np.isnan(x).any():
        raise ConfigError("computing F_p: x is not a number at some point; check the counts given")
    result = np.empty(x.shape)
    flat = result.reshape(-1)
    for k in np.unique(classes):
        where = np.flatnonzero(classes.reshape(-1) == k)
        rule = _minimum_rule(int(k))
        for part in np.array_split(where, -(-len(where) // _CHUNK)):
            flat[part] = _integrate(x.reshape(-1)[part], p.reshape(-1)[part], int(k), rule)
    return result


def sampled_limit_accuracy(
    x: float, p: float, num_classes: int, draws: int = 1_000_000, seed: int = 0
) -> Estimate:
    """Return F_p(x) by drawing the K-1 correlated margins; a check on the quadrature.

    Raises:
        ConfigError: an argument is out of its range.
    """
    check_shift(p, num_classes)
    shared, private = _margin_variances(np.float64(p), num_classes)
    random = rng(seed, "theory", "limit")
    right = 0
    size = max(1, min(draws, 4_000_000 // num_classes))
    for start in range(0, draws, size):
        count = min(size, draws - start)
        margins = np.sqrt(private) * random.standard_normal((num_classes - 1, count))
        margins += x + np.sqrt(shared) * random.standard_normal(count)
        right += int((margins > 0).all(axis=0).sum())
    mean = right / draws
    return Estimate(mean, float(np.sqrt(max(mean * (1 - mean), 1 / draws) / draws)), draws)


def check_shift(p: ArrayLike, num_classes: ArrayLike) -> None:
    """Raise `ConfigError` unless 0 <= p <= 1 and K is whole and in [2, 100 000]."""
    p, num_classes = np.asarray(p, float), np.asarray(num_classes, float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ConfigError(f"reading p: met {_worst(p, 0, 1)}; p is a probability, from 0 to 1")
    whole = num_classes == np.floor(num_classes)
    if not (whole & (num_classes >= 2) & (num_classes <= _MAX_CLASSES)).all():
        raise ConfigError(
            f"reading the number of classes: met {_worst(num_classes, 2, _MAX_CLASSES)}; "
            f"allowed are whole numbers from 2 to {_MAX_CLASSES}"
        )


def _worst(values: Array, low: float, high: float) -> float:
    """Return the value that is furthest outside of the range."""
    flat = values.reshape(-1)
    return float(flat[np.argmax(np.nan_to_num(np.maximum(low - flat, flat - high), nan=np.inf))])


def _margin_variances(p: Array | np.float64, num_classes: int) -> tuple[Array, Array]:
    """Return the shared part a and the private part b of the margins' variance."""
    return np.asarray(p * (num_classes + 1 - p * num_classes) / num_classes), np.asarray(
        p / num_classes
    )


def _integrate(x: Array, p: Array, num_classes: int, rule: _Rule) -> Array:
    """Return the rule's sum at each point; every array has the points' shape."""
    from scipy.special import ndtr

    shared, private = _margin_variances(p, num_classes)
    step = p == 0
    scale = np.sqrt(np.where(step, 1.0, shared))
    centre, slope = x / scale, np.sqrt(private) / scale
    total = np.zeros_like(x)
    for node, weight in zip(rule.nodes, rule.weights, strict=True):
        total += weight * ndtr(centre + slope * node)
    if step.any():
        total = np.where(step, np.heaviside(x, 1 / num_classes), total)
    return np.minimum(total, 1.0)


@lru_cache(maxsize=256)
def _minimum_rule(num_classes: int) -> _Rule:
    """Return nodes and weights for the minimum of K-1 standard normals.

    The trapezoid rule converges faster than any power of the step for such a density; the tails
    left out hold less than 1e-12.
    """
    grid = np.linspace(-13.0, 10.0, 20_001)
    density = np.exp(_log_density(grid, num_classes))
    density /= density.sum()
    mean = float(density @ grid)
    deviation = float(np.sqrt(density @ (grid - mean) ** 2))
    kept = grid[density > 1e-13 * density.max()]
    step = _STEP * deviation
    nodes = np.arange(kept[0], kept[-1] + step, step)
    weights = np.exp(_log_density(nodes, num_classes))
    return _Rule(nodes, weights / weights.sum())


def _log_density(u: Array, num_classes: int) -> Array:
    """Return the log density of the minimum, up to a constant."""
    from scipy.special import log_ndtr

    return np.asarray(-u * u / 2 + (num_classes - 2) * log_ndtr(-u))
