"""Where Theorem 2's conclusion really holds, and what a defense would have to reach.

Without shared features let a = weight^2, b = (1-weight)^2, r_v = n*_v / n_v, r_s = n*_s / n_s and
q = (1-p) n_s / n_v. Accuracy falls exactly when

    q (a + b r_s) + (a + b r_v) < (1 + q) sqrt(a^2 + b^2 r_s),

which for p = 1 is r_s > r_v^2 + 2 (a/b) r_v. All of this is our own analysis (`docs/theory.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backfire.errors import ConfigError, near_miss
from backfire.seeding import rng
from backfire.theory.features import Features
from backfire.theory.limit import Estimate
from backfire.theory.theorems import Interpolation, accuracy_falls

__all__ = [
    "Sampling",
    "enough_invariant_ratio",
    "falls_at_full_shift",
    "falls_without_overlap",
    "invariant_needed",
    "share_that_falls",
]

Array = NDArray[np.float64]

Sampling = Literal["conditional", "rejection"]
"""How the premise box is filled. Box: n_v in [1, 20], n_s in [20, 200], n*_v in [0, n_v), n*_s in
(n_s, 400]. `conditional` draws n*_v and n*_s uniformly given the others; `rejection` draws n*_v in
[0, 20], n*_s in [20, 400] freely and keeps what meets the premises, uniform over the region."""


def falls_without_overlap(
    spurious_pull: ArrayLike, r_v: ArrayLike, r_s: ArrayLike, weight: ArrayLike = 0.5
) -> NDArray[np.bool_]:
    """Return where accuracy falls, from ratios alone.

    Args:
        spurious_pull: q = (1-p) n_s / n_v, at least 0.
        r_v: n*_v / n_v.
        r_s: n*_s / n_s.
        weight: The aligned model's share in [0, 1].
    """
    a, b = _squares(weight)
    q, r_v, r_s = (np.asarray(v, float) for v in (spurious_pull, r_v, r_s))
    return np.asarray(q * (a + b * r_s) + (a + b * r_v) < (1 + q) * np.sqrt(a**2 + b**2 * r_s))


def falls_at_full_shift(
    r_v: ArrayLike, r_s: ArrayLike, weight: ArrayLike = 0.5
) -> NDArray[np.bool_]:
    """Return where accuracy falls at p = 1: b r_s > b r_v^2 + 2 a r_v, when b > 0."""
    a, b = _squares(weight)
    r_v, r_s = np.asarray(r_v, float), np.asarray(r_s, float)
    return np.asarray((b * r_s > b * r_v**2 + 2 * a * r_v) & (b > 0))


def enough_invariant_ratio(weight: ArrayLike = 0.5) -> Array:
    """Return the r_v up to which the premises suffice at p = 1: sqrt(k^2+1) - k, k = a/b.

    0.414 at weight 1/2; 0 at weight 1, where no ratio is enough.
    """
    a, b = _squares(weight)
    return np.asarray(b / (np.sqrt(a**2 + b**2) + a), float)


def invariant_needed(
    spurious: ArrayLike,
    optimal: Features,
    p: ArrayLike,
    weight: ArrayLike = 0.5,
    shared: Features | None = None,
) -> Array:
    """Return the n_v an aligned model with `spurious` features needs for accuracy to fall.

    Accuracy falls for every n_v above the returned value and for none below it. The value is at
    least the number of shared invariant features and may exceed what any training could reach; it is
    infinite where no n_v is enough (no attack, or no spurious feature other than the aligned ones).

    Args:
        spurious: n_s of the aligned model, shared ones included; above 0.
        optimal: Features of the attacker's near-optimal model, shared ones included.
        p: Probability of a spurious feature's reassignment, in (0, 1].
        weight: The aligned model's share.
        shared: Features both use; none by default.
    """
    a, b = _squares(weight)
    both = shared or Features(0, 0)
    n_s, keep = np.asarray(spurious, float), 1 - np.asarray(p, float)
    own, theirs = Features(0, n_s).without(Features(0, both.spurious)), optimal.without(both)
    own_spurious, their_spurious, both_spurious = (
        np.asarray(f.spurious, float) for f in (own, theirs, both)
    )
    total = a * own_spurious + b * their_spurious + both_spurious
    root = np.sqrt(a**2 * own_spurious + b**2 * their_spurious + both_spurious)
    free = b * np.asarray(theirs.invariant) + (1 - a) * np.asarray(both.invariant)
    gain = root - a * np.sqrt(n_s)
    needed = (keep * total + free) * np.sqrt(n_s) - keep * n_s * root
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(gain > 1e-12 * root, needed / gain, np.inf)
    return np.asarray(np.maximum(value, both.invariant), float)


def share_that_falls(
    shifts: Sequence[float],
    sampling: Sampling = "conditional",
    weight: float = 0.5,
    draws: int = 1_000_000,
    seed: int = 0,
) -> list[Estimate]:
    """Return, for each p, the share of the premise box in which accuracy falls (no overlap).

    Args:
        shifts: Values of p.
        sampling: How the box is filled; the shares depend on it, so name it with the number.
        weight: The aligned model's share.
        draws: Points in the box (`rejection` draws more to keep about as many).
        seed: Seed of the stream.

    Raises:
        ConfigError: unknown sampling or an argument out of range.
    """
    case = Interpolation(*_premise_box(sampling, draws, seed), weight=weight)
    result = []
    for p in shifts:
        falls = accuracy_falls(case, p)
        share = float(falls.mean())
        error = np.sqrt(max(share * (1 - share), 1 / falls.size) / falls.size)
        result.append(Estimate(share, float(error), falls.size))
    return result


def _premise_box(sampling: str, draws: int, seed: int) -> tuple[Features, Features]:
    """Return aligned and optimal features, arrays of real numbers that meet the premises."""
    if draws < 2:
        raise ConfigError(f"sampling the premise box: met {draws} draws; at least 2 are needed")
    random = rng(seed, "theory", "region", sampling)
    if sampling == "conditional":
        n_v, n_s = random.uniform(1, 20, draws), random.uniform(20, 200, draws)
        return Features(n_v, n_s), Features(random.uniform(0, n_v), random.uniform(n_s, 400))
    if sampling == "rejection":
        tries = 3 * draws
        n_v, n_s = random.uniform(1, 20, tries), random.uniform(20, 200, tries)
        v, s = random.uniform(0, 20, tries), random.uniform(20, 400, tries)
        kept = np.flatnonzero((v < n_v) & (s > n_s))[:draws]
        return Features(n_v[kept], n_s[kept]), Features(v[kept], s[kept])
    raise ConfigError(
        near_miss("sampling of the premise box", sampling, ("conditional", "rejection"))
    )


def _squares(weight: ArrayLike) -> tuple[Array, Array]:
    share = np.asarray(weight, float)
    if not ((share >= 0) & (share <= 1)).all():
        raise ConfigError(f"reading the aligned model's share: met {weight!r}; it is from 0 to 1")
    return share**2, (1 - share) ** 2
