"""The accuracy by drawing: counts in the noiseless limit, or the data model with its noise.

>>> from backfire.theory.features import Features, single
>>> drawn = simulated_accuracy(single(Features(2, 20)), p=0.9, num_classes=3, draws=20_000)
>>> abs(drawn.random_ties.value - 0.76495) < 4 * drawn.random_ties.standard_error
True
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backfire.errors import ConfigError
from backfire.seeding import rng
from backfire.theory.data_model import DataModel, LinearModel
from backfire.theory.exact import TIE, lattice, whole
from backfire.theory.features import Model
from backfire.theory.limit import Estimate, check_shift

__all__ = ["Simulation", "measured_accuracy", "realised", "simulated_accuracy"]

_CHUNK_NUMBERS = 2_000_000


@dataclass(frozen=True)
class Simulation:
    """Accuracies of one simulation, each with its standard error."""

    random_ties: Estimate
    """A tie earns 1/(number of tied classes)."""
    strict: Estimate
    """A tie earns nothing."""
    tie_mass: Estimate
    """Share of draws in which the true class ties for the best score."""


def simulated_accuracy(
    model: Model,
    p: float,
    num_classes: int,
    draws: int = 400_000,
    seed: int = 0,
    sigma: float = 0.0,
) -> Simulation:
    """Return the accuracy after the shift, by drawing.

    Args:
        model: One model, with whole numbers of features.
        p: Probability in [0, 1] that a spurious feature is reassigned.
        num_classes: K, at least 2.
        draws: Examples; the standard error falls with its root.
        seed: Seed of the stream.
        sigma: Noise of the data model. 0 draws multinomial counts; above 0 the features are drawn
            as vectors and scored with the model's selector and head.

    Raises:
        ConfigError: an argument is out of range.
    """
    check_shift(p, num_classes)
    if draws < 2:
        raise ConfigError(f"simulating an accuracy: met {draws} draws; at least 2 are needed")
    if sigma < 0:
        raise ConfigError(f"simulating an accuracy: met sigma {sigma}; use 0 or more")
    random = rng(seed, "theory", "simulation")
    if sigma == 0:
        return _summary(_count_leads(model, p, num_classes, draws, random))
    data, linear = realised(model, num_classes, sigma)
    return measured_accuracy(linear, data, p, draws, random)


def realised(model: Model, num_classes: int, sigma: float) -> tuple[DataModel, LinearModel]:
    """Return data and a linear model whose features carry the weights of `model`.

    A weight w is realised as selector value and head value sqrt(w) each, which is how interpolated
    weights come about (a negative one gets its sign in the head); an output ensemble becomes the one
    model with the same feature weights.

    Raises:
        ConfigError: the model stands for many, or has fractions of features.
    """
    invariant: list[float] = []
    spurious: list[float] = []
    for group in model.groups:
        grid = whole(group)
        invariant += [grid.weight] * grid.invariant
        spurious += [grid.weight] * grid.spurious
    data = DataModel(len(invariant), len(spurious), num_classes, sigma)
    weights = np.array(invariant + spurious)
    roots = np.sqrt(np.abs(weights))
    return data, LinearModel(roots, data.ideal_head(np.sign(weights) * roots))


def measured_accuracy(
    linear: LinearModel, data: DataModel, p: float, draws: int, random: np.random.Generator
) -> Simulation:
    """Return a linear model's accuracy on shifted draws of the data model."""

    def leads() -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        for count in _chunks(draws, data.dimension):
            sums, labels = data.represented(linear.selector, count, p, random)
            scores = sums @ linear.head
            own = scores[np.arange(count), labels]
            scores[np.arange(count), labels] = -np.inf
            yield own, scores

    return _summary(leads())


def _count_leads(
    model: Model, p: float, num_classes: int, draws: int, random: np.random.Generator
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield the true class's score, shape (n,), and the others', shape (n, K-1)."""
    grid = lattice(model)
    chances = np.full(num_classes, p / num_classes)
    chances[0] += 1 - p
    for count in _chunks(draws, num_classes):
        scores = np.zeros((count, num_classes))
        scores[:, 0] = grid.base
        for weight, spurious in zip(grid.weights, grid.spurious, strict=True):
            scores += weight * random.multinomial(spurious, chances, size=count)
        yield scores[:, 0], scores[:, 1:]


def _chunks(draws: int, numbers_each: int) -> Iterator[int]:
    size = max(1, _CHUNK_NUMBERS // numbers_each)
    for start in range(0, draws, size):
        yield min(size, draws - start)


def _summary(pairs: Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Simulation:
    """Return means and standard errors over all (own score, other scores)."""
    draws = wins = ties = 0
    credit = credit_squared = 0.0
    for own, others in pairs:
        beaten = (others > own[:, None] + TIE).any(axis=1)
        tied = (np.abs(others - own[:, None]) <= TIE).sum(axis=1)
        share = np.where(beaten, 0.0, 1 / (1 + tied))
        draws += len(own)
        wins += int((~beaten & (tied == 0)).sum())
        ties += int((~beaten & (tied > 0)).sum())
        credit += float(share.sum())
        credit_squared += float((share**2).sum())
    return Simulation(
        _estimate(credit, credit_squared, draws),
        _estimate(wins, wins, draws),
        _estimate(ties, ties, draws),
    )


def _estimate(total: float, squares: float, draws: int) -> Estimate:
    """Return a mean; a variance of zero is replaced by that of one deviating draw."""
    mean = total / draws
    variance = max(squares / draws - mean**2, 1 / draws)
    return Estimate(mean, float(np.sqrt(variance / draws)), draws)
