"""The data the theory speaks of, as tensors, and linear models on them.

Axes: n examples, f features, d = f K coordinates, K classes. Every feature is a vector in R^d; its K
class means are unit vectors, and all means of all features are orthogonal, so the standard basis
serves: feature i of class k has its mean on coordinate i K + k. In training data every feature shows
the example's own class. After the shift an invariant feature still does; a spurious feature j shows
class k' = Q_j(k), where Q_j(k) is k with probability 1-p and uniformly random else, drawn once per
example. Gaussian noise of standard deviation sigma lies on every coordinate of every feature.

Source: structure of Lin et al. (arXiv 2309.17230), as methods of the SDD paper use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backfire.errors import ConfigError
from backfire.theory.limit import check_shift

__all__ = ["DataModel", "LinearModel", "Sample"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


class Sample(NamedTuple):
    """Examples with all their features apart."""

    features: Array
    """Shape (n, f, d)."""
    labels: Indices
    """Shape (n,), values 0 .. K-1."""


@dataclass(frozen=True)
class LinearModel:
    """A selector and a head: score = (sum over f of selector[f] x[f]) @ head."""

    selector: Array
    """Shape (f,); 1 uses a feature, 0 does not, interpolation gives values between."""
    head: Array
    """Shape (d, K)."""

    def scores(self, features: Array) -> Array:
        """Return the scores, shape (n, K), of `features`, shape (n, f, d)."""
        return np.asarray((self.selector @ features) @ self.head)

    def mixed(self, other: LinearModel, weight: float) -> LinearModel:
        """Return the model at `weight` self + (1 - `weight`) other, selector and head alike.

        A weight outside of [0, 1] extrapolates.
        """
        return LinearModel(
            weight * self.selector + (1 - weight) * other.selector,
            weight * self.head + (1 - weight) * other.head,
        )


@dataclass(frozen=True)
class DataModel:
    """How examples come about."""

    num_invariant: int
    num_spurious: int
    num_classes: int
    sigma: float
    """Standard deviation of the noise on each coordinate; the theory's limit is 0."""

    def __post_init__(self) -> None:
        """Reject a model without features or with negative noise."""
        check_shift(0.0, self.num_classes)
        if min(self.num_invariant, self.num_spurious) < 0 or self.num_features < 1:
            raise ConfigError(
                f"building the data model: met {self.num_invariant} invariant and "
                f"{self.num_spurious} spurious features; at least one feature is needed"
            )
        if not self.sigma >= 0:
            raise ConfigError(f"building the data model: met sigma {self.sigma}; use 0 or more")

    @property
    def num_features(self) -> int:
        """Return f; invariant features come first."""
        return self.num_invariant + self.num_spurious

    @property
    def dimension(self) -> int:
        """Return d."""
        return self.num_features * self.num_classes

    def ideal_head(self, selector: Array) -> Array:
        """Return the head of the theory, shape (d, K): class k's selected means, summed."""
        return np.asarray(np.kron(selector[:, None], np.eye(self.num_classes)))

    def sample(self, draws: int, p: float, random: np.random.Generator) -> Sample:
        """Return `draws` examples; p=0 gives training data."""
        labels, shown = self._classes(draws, p, random)
        features = self.sigma * random.standard_normal((draws, self.num_features, self.dimension))
        rows, columns = np.arange(draws)[:, None], np.arange(self.num_features)[None, :]
        features[rows, columns, columns * self.num_classes + shown] += 1
        return Sample(features, labels)

    def represented(
        self, selector: Array, draws: int, p: float, random: np.random.Generator
    ) -> tuple[Array, Indices]:
        """Return the selected features' sums, shape (n, d), and the labels.

        Equal in law to summing `sample`'s features, but the noise of a sum is drawn once.
        """
        labels, shown = self._classes(draws, p, random)
        spread = self.sigma * float(np.linalg.norm(selector))
        sums = spread * random.standard_normal((draws, self.dimension))
        columns = np.arange(self.num_features)[None, :] * self.num_classes + shown
        sums[np.arange(draws)[:, None], columns] += selector
        return sums, labels

    def _classes(
        self, draws: int, p: float, random: np.random.Generator
    ) -> tuple[Indices, Indices]:
        """Return labels, shape (n,), and the class each feature shows, shape (n, f)."""
        check_shift(p, self.num_classes)
        labels = random.integers(self.num_classes, size=draws)
        shown = np.repeat(labels[:, None], self.num_features, axis=1)
        moved = random.random((draws, self.num_spurious)) < p
        other = random.integers(self.num_classes, size=(draws, self.num_spurious))
        spurious = shown[:, self.num_invariant :]
        spurious[moved] = other[moved]
        return labels, shown
