"""The theory's predictions against models that were really fitted.

Two models are fitted on training data of the data model, each shown only the features it is to use;
their weights are interpolated as Assumption 1 says; the result is measured on shifted data with
noise. Two kinds of model are fitted:

    means     the head is the class means of the selected features' sum, estimated from the sample
    network   selector and head are learned together by gradient descent on the cross-entropy

The first is the model of the theory up to estimation error. The second finds its own scale, so that
its features do not weigh what the theory says; `fitted_formula` therefore evaluates the same formula
at the weights the trained network turned out to have.

Axes: n examples, f features, d coordinates, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backfire.errors import ConfigError, near_miss
from backfire.seeding import rng
from backfire.theory.data_model import DataModel, LinearModel, Sample
from backfire.theory.features import Features, Group, Model, weight_ensemble
from backfire.theory.limit import Estimate
from backfire.theory.simulate import measured_accuracy, simulated_accuracy

__all__ = ["Fit", "LearnedPoint", "effective_model", "fit_means", "fit_network", "learned_check"]

Array = NDArray[np.float64]

Fit = Literal["means", "network"]


@dataclass(frozen=True)
class LearnedPoint:
    """Prediction and measurement at one interpolation weight."""

    weight: float
    """The first model's share."""
    formula: float
    """F_p with the theory's feature weights."""
    counted: Estimate
    """Finite accuracy with the theory's feature weights, drawn, ties at random."""
    fitted_formula: float
    """F_p with the weights read off the fitted model."""
    fitted_counted: Estimate
    """Finite accuracy with the weights read off the fitted model, drawn with the data's noise, which
    breaks what the theory counts as ties."""
    measured: Estimate
    """Accuracy of the fitted and interpolated model on shifted data."""


def learned_check(
    first: Features,
    second: Features,
    shared: Features,
    p: float,
    num_classes: int,
    fit: Fit,
    weights: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    sigma: float = 0.003,
    train: int = 600,
    draws: int = 100_000,
    seed: int = 0,
) -> list[LearnedPoint]:
    """Return predictions and measurements along the path between two fitted models.

    Args:
        first: Features of the first model, shared ones included; whole numbers.
        second: Features of the second model, likewise.
        shared: Features both use.
        p: Shift of the measured data.
        num_classes: K.
        fit: How models are fitted.
        weights: Interpolation weights, the first model's share.
        sigma: Noise of the data, in training and in measurement.
        train: Training examples of each model.
        draws: Measured examples.
        seed: Seed of the streams.

    Raises:
        ConfigError: an argument is out of range.
    """
    if fit not in ("means", "network"):
        raise ConfigError(near_miss("fit", fit, ("means", "network")))
    fitter = fit_means if fit == "means" else fit_network
    data, uses_first, uses_second = _shared_data(first, second, shared, num_classes, sigma)
    sample = data.sample(train, 0.0, rng(seed, "theory", "learned", "train"))
    models = [fitter(_shown(sample, uses)) for uses in (uses_first, uses_second)]
    points = []
    for weight in weights:
        mixed = models[0].mixed(models[1], weight)
        theory = weight_ensemble(first, second, shared, weight)
        fitted = effective_model(mixed, data)
        random = rng(seed, "theory", "learned", "measure", f"{weight:.6f}")
        points.append(
            LearnedPoint(
                weight,
                float(theory.accuracy(p, num_classes)),
                simulated_accuracy(theory, p, num_classes, draws, seed).random_ties,
                float(fitted.accuracy(p, num_classes)),
                simulated_accuracy(fitted, p, num_classes, draws, seed, sigma).random_ties,
                measured_accuracy(mixed, data, p, draws, random).random_ties,
            )
        )
    return points


def fit_means(sample: Sample) -> LinearModel:
    """Return the model that selects every feature shown and scores by the estimated class means.

    A feature is shown when it is not zero throughout.
    """
    selector = (sample.features != 0).any(axis=(0, 2)).astype(float)
    sums = np.einsum("f,nfd->nd", selector, sample.features)
    classes = np.unique(sample.labels)
    return LinearModel(selector, np.stack([sums[sample.labels == k].mean(0) for k in classes], 1))


def fit_network(sample: Sample, steps: int = 300, rate: float = 0.3) -> LinearModel:
    """Return a two-layer network, selector then head, learned by gradient descent.

    Full-batch descent with momentum 0.9 and weight decay 1e-3 on the cross-entropy, from selectors
    at 0.1 and a head of zeros. The decay lets selectors of features that are never shown vanish and
    fixes the scale of the others.
    """
    features, labels = sample
    classes = int(labels.max()) + 1
    selector = np.full(features.shape[1], 0.1)
    head = np.zeros((features.shape[2], classes))
    speed = [np.zeros_like(selector), np.zeros_like(head)]
    target = np.eye(classes)[labels]
    for _ in range(steps):
        hidden = selector @ features
        scores = hidden @ head
        chance = np.exp(scores - scores.max(1, keepdims=True))
        chance /= chance.sum(1, keepdims=True)
        error = (chance - target) / len(labels)
        slopes = [
            np.matmul(features, (error @ head.T)[:, :, None]).sum(axis=(0, 2)) + 1e-3 * selector,
            hidden.T @ error + 1e-3 * head,
        ]
        speed = [0.9 * v - rate * g for v, g in zip(speed, slopes, strict=True)]
        selector, head = selector + speed[0], head + speed[1]
    return LinearModel(selector, head)


def effective_model(linear: LinearModel, data: DataModel) -> Model:
    """Return the model of the theory whose feature weights a linear model really has.

    Feature i weighs selector[i] times how much its mean of a class raises that class over the
    others, averaged over the classes.
    """
    k = data.num_classes
    blocks = linear.head.reshape(data.num_features, k, k)
    own = np.einsum("fkk->f", blocks) / k
    others = (blocks.sum(axis=(1, 2)) / k - own) / (k - 1)
    weights = linear.selector * (own - others)
    counts = (Features(1, 0),) * data.num_invariant + (Features(0, 1),) * data.num_spurious
    return Model(tuple(Group(float(w), c) for w, c in zip(weights, counts, strict=True)))


def _shared_data(
    first: Features, second: Features, shared: Features, num_classes: int, sigma: float
) -> tuple[DataModel, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return data that holds both models' features, and who uses which."""
    parts = (shared, first.without(shared), second.without(shared))
    uses = []
    for own in (1, 2):
        flags = [np.full(int(np.asarray(f.invariant)), i in (0, own)) for i, f in enumerate(parts)]
        flags += [np.full(int(np.asarray(f.spurious)), i in (0, own)) for i, f in enumerate(parts)]
        uses.append(np.concatenate(flags))
    num_invariant = sum(int(np.asarray(f.invariant)) for f in parts)
    num_spurious = sum(int(np.asarray(f.spurious)) for f in parts)
    return DataModel(num_invariant, num_spurious, num_classes, sigma), uses[0], uses[1]


def _shown(sample: Sample, uses: NDArray[np.bool_]) -> Sample:
    """Return the sample with every other feature blank."""
    return Sample(np.where(uses[None, :, None], sample.features, 0.0), sample.labels)
