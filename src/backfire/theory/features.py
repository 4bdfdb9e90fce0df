"""Models of the feature lab: which features they use, and with what weight.

A model selects features and scores a class by the sum of the selected features on it. Interpolating
two models (head and selector alike) or adding their outputs gives each feature a *weight*; features
with equal weight form a group, and a model is nothing but its groups. Writing w for a group's
weight, v and s for its numbers of invariant and spurious features,

    argument x = ((1-p) sum w s + sum w v) / sqrt(sum w^2 s),    accuracy = F_p(x).

>>> first, second = Features(5, 40), Features(3, 80)
>>> blend = weight_ensemble(first, second, shared=Features(1, 6))
>>> round(float(blend.accuracy(p=0.95, num_classes=4)), 4)
0.8767

Source: the model and its two ensembles are Lin et al.'s (arXiv 2309.17230), as the SDD paper uses
them; the form for any interpolation weight is derived in `docs/theory.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backfire.errors import ConfigError
from backfire.theory.limit import limit_accuracy

__all__ = ["Features", "Group", "Model", "output_ensemble", "single", "weight_ensemble"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Features:
    """Numbers of features; arrays of equal shape describe many models at once."""

    invariant: ArrayLike
    """Features whose meaning is the same everywhere; at least 0, fractions allowed in formulas."""
    spurious: ArrayLike
    """Features that a shift may reassign; at least 0."""

    def __post_init__(self) -> None:
        """Reject negative counts."""
        for name, value in (("invariant", self.invariant), ("spurious", self.spurious)):
            if not (np.asarray(value, float) >= 0).all():
                raise ConfigError(f"counting {name} features: met a number below 0; use 0 or more")

    def __add__(self, other: Features) -> Features:
        return Features(
            np.add(self.invariant, other.invariant), np.add(self.spurious, other.spurious)
        )

    def without(self, shared: Features) -> Features:
        """Return the features that are not among `shared`, of which they must be a superset.

        Raises:
            ConfigError: more are shared than there are.
        """
        invariant = np.subtract(self.invariant, shared.invariant)
        spurious = np.subtract(self.spurious, shared.spurious)
        if (invariant < 0).any() or (spurious < 0).any():
            raise ConfigError(
                f"splitting features: {shared} are shared, but a model has only {self}; a model "
                "cannot share more than it has"
            )
        return Features(invariant, spurious)


@dataclass(frozen=True)
class Group:
    """Features that act with one weight."""

    weight: ArrayLike
    features: Features


@dataclass(frozen=True)
class Model:
    """A scorer: the true class gets sum w (v + hits), another class sum w (misses that fell on it)."""

    groups: tuple[Group, ...]

    def mean_margin(self, p: ArrayLike) -> Array:
        """Return the expected lead of the true class over any other."""
        keep = 1 - np.asarray(p, float)
        return np.asarray(
            sum(
                np.multiply(g.weight, keep * g.features.spurious + np.asarray(g.features.invariant))
                for g in self.groups
            )
        )

    def squared_weight(self) -> Array:
        """Return sum w^2 s, to which the variance of a margin is proportional."""
        return np.asarray(sum(np.square(g.weight) * g.features.spurious for g in self.groups))

    def argument(self, p: ArrayLike) -> Array:
        """Return x of F_p(x); infinite without spurious features, 0 without any feature."""
        mean, square = np.broadcast_arrays(self.mean_margin(p), self.squared_weight())
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(mean == 0, 0.0, mean / np.sqrt(square))

    def accuracy(self, p: ArrayLike, num_classes: ArrayLike) -> Array:
        """Return the accuracy in the limit of many spurious features.

        A model without any feature guesses: 1/K.
        """
        result = limit_accuracy(self.argument(p), p, num_classes)
        empty = (self.squared_weight() == 0) & (self.mean_margin(p) == 0)
        return np.where(empty, 1 / np.asarray(num_classes, float), result)


def single(features: Features) -> Model:
    """Return the model that uses `features`, each with weight 1."""
    return Model((Group(1.0, features),))


def weight_ensemble(
    first: Features,
    second: Features,
    shared: Features | None = None,
    weight: ArrayLike = 0.5,
) -> Model:
    """Return the model whose head and selector are `weight` first + (1 - `weight`) second.

    Both factors of a score are interpolated, so a feature of one model alone keeps the *square* of
    its model's share; a shared one keeps weight 1.

    Args:
        first: Features of the first model, shared ones included.
        second: Features of the second model, shared ones included.
        shared: Features that both models use; none by default.
        weight: The first model's share, in [0, 1].

    Raises:
        ConfigError: the share is out of range, or more is shared than a model has.
    """
    share = _share(weight)
    return _ensemble(first, second, shared, share**2, (1 - share) ** 2)


def output_ensemble(
    first: Features,
    second: Features,
    shared: Features | None = None,
    weight: ArrayLike = 0.5,
) -> Model:
    """Return the model whose scores are `weight` first's + (1 - `weight`) second's.

    Arguments and errors are those of `weight_ensemble`.
    """
    share = _share(weight)
    return _ensemble(first, second, shared, share, 1 - share)


def _ensemble(
    first: Features, second: Features, shared: Features | None, own: ArrayLike, other: ArrayLike
) -> Model:
    both = shared or Features(0, 0)
    return Model(
        (Group(own, first.without(both)), Group(other, second.without(both)), Group(1.0, both))
    )


def _share(weight: ArrayLike) -> Array:
    share = np.asarray(weight, float)
    if not ((share >= 0) & (share <= 1)).all():
        raise ConfigError(f"interpolating two models: met a share of {weight!r}; it is from 0 to 1")
    return share
