"""Assumption 1, Lemma 1 and Theorems 1 and 2 as statements whose two sides are evaluated.

The attacked model is taken to lie between the aligned model and a near-optimal one for the
attacker's data. What the paper states, and what can be shown of it, are kept apart: a `Statement`
holds premises and conclusion separately and claims nothing. All counts may be arrays.

>>> case = Interpolation(Features(10, 100), Features(9, 101))
>>> told = theorem2(case, p=0.95, num_classes=4)
>>> bool(told.premises), bool(told.conclusion)          # the premises do not suffice
(True, False)

Source: statements as reported of the SDD paper (arXiv 2507.21182), whose text was not at hand; the
conditions under which they hold are derived in `docs/theory.md` and are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backfire.errors import ConfigError, near_miss
from backfire.theory.data_model import LinearModel
from backfire.theory.features import Features, Model, single, weight_ensemble
from backfire.theory.limit import limit_accuracy

__all__ = [
    "COUNTEREXAMPLES",
    "Extrapolation",
    "Form",
    "Interpolation",
    "Statement",
    "accuracy_falls",
    "extrapolated",
    "lemma1_arguments",
    "near_optimal",
    "theorem1",
    "theorem2",
]

Array = NDArray[np.float64]
Truth = NDArray[np.bool_]

Form = Literal["lin", "sqrt"]
"""Lemma 1's numerator: as derived (`lin`), or under a root, as it was handed down (`sqrt`)."""


@dataclass(frozen=True)
class Interpolation:
    """Who is interpolated: attacked = weight aligned + (1 - weight) optimal."""

    aligned: Features
    """What the aligned model uses, shared features included."""
    optimal: Features
    """What the near-optimal model of the attacker's task uses, shared features included."""
    shared: Features = Features(0, 0)  # noqa: RUF009 - frozen, so one default serves all
    """What both use."""
    weight: ArrayLike = 0.5
    """The aligned model's share in [0, 1]: 1 is no attack at all, 0 a complete one."""

    @property
    def attacked(self) -> Model:
        """Return the model after malicious fine-tuning."""
        return weight_ensemble(self.aligned, self.optimal, self.shared, self.weight)


class Arguments(NamedTuple):
    """Arguments of F_p, before and after the attack, in the same form."""

    aligned: Array
    attacked: Array


@dataclass(frozen=True)
class Statement:
    """A theorem at one point or at many: does what it asks hold, does what it says hold?"""

    premises: Truth
    conclusion: Truth
    aligned: Array
    """Accuracy before the attack."""
    attacked: Array
    """Accuracy after it."""

    @property
    def holds(self) -> Truth:
        """Return where the implication is true: the conclusion holds or a premise fails."""
        return ~self.premises | self.conclusion

    @property
    def change(self) -> Array:
        """Return accuracy after minus before."""
        return self.attacked - self.aligned


class Extrapolation(NamedTuple):
    """The near-optimal model that Assumption 1 infers from the other two."""

    model: LinearModel
    share_in_range: float
    """Share of selector entries in [0, 1] (to 1e-9): elsewhere the model selects nothing real."""
    worst: float
    """How far the worst entry lies outside of [0, 1]; 0 when all are inside."""


def extrapolated(attacked: LinearModel, aligned: LinearModel, weight: float) -> Extrapolation:
    """Return (attacked - weight aligned) / (1 - weight), and whether it can be a model.

    Raises:
        ConfigError: the weight is not in [0, 1), so that nothing can be inferred.
    """
    if not 0 <= weight < 1:
        raise ConfigError(
            f"extrapolating by Assumption 1: met weight {weight}; it must be at least 0 and below 1"
        )
    model = attacked.mixed(aligned, 1 / (1 - weight))
    outside = np.maximum(np.maximum(-model.selector, model.selector - 1), 0.0)
    return Extrapolation(model, float((outside <= 1e-9).mean()), float(outside.max()))


def near_optimal(best: ArrayLike, reached: ArrayLike, epsilon: float) -> Truth:
    """Return where two accuracies differ by at most `epsilon`, as Assumption 1 asks."""
    return np.asarray(np.abs(np.subtract(best, reached)) <= epsilon)


def lemma1_arguments(case: Interpolation, p: ArrayLike, form: Form = "lin") -> Arguments:
    """Return Lemma 1's arguments of F_p before and after the attack.

    `lin` is the interpolated model's own argument, for any weight. `sqrt` puts both numerators under
    a root; it is not invariant to scaling the weights and is defined for weight 1/2 alone, in the
    scaling where the denominator reads sqrt(n_s + n*_s + 14 n_so).

    Raises:
        ConfigError: unknown form, or `sqrt` with another weight.
    """
    if form not in ("lin", "sqrt"):
        raise ConfigError(near_miss("form of Lemma 1", form, ("lin", "sqrt")))
    before, after = single(case.aligned), case.attacked
    if form == "lin":
        return Arguments(before.argument(p), after.argument(p))
    if not np.all(np.asarray(case.weight) == 0.5):
        raise ConfigError(
            f"evaluating Lemma 1: the form 'sqrt' is known for weight 0.5 alone, met {case.weight!r}; "
            "use the form 'lin'"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        aligned = np.sqrt(before.mean_margin(p) / before.squared_weight())
        attacked = np.sqrt(4 * after.mean_margin(p) / (16 * after.squared_weight()))
    return Arguments(aligned, attacked)


def theorem1(
    case: Interpolation, p: ArrayLike, num_classes: ArrayLike, form: Form = "lin"
) -> Statement:
    """Return whether the bound on the accuracy's change falls as n*_s grows.

    Premise: weight < 1, there is an attack. Conclusion: the derivative of Lemma 1's argument in n*_s
    is negative, which is the reading under which the theorem supports "more spurious features, less
    alignment". It does not always hold; with b = (1-weight)^2, S = sum w s and V = sum w v:

        lin:  2 (1-p) sum w^2 s < b ((1-p) S + V)
        sqrt: 12 (1-p) n_so < n_v + n*_v + 2 n_vo     (weight 1/2)

    `change` of the result is the bound itself, F_p(Lemma 1) minus the aligned model's accuracy.

    Raises:
        ConfigError: as `lemma1_arguments`, or an argument out of range.
    """
    keep, other = 1 - np.asarray(p, float), (1 - np.asarray(case.weight, float)) ** 2
    after = case.attacked
    if form == "lin":
        falls = 2 * keep * after.squared_weight() < other * after.mean_margin(p)
    else:
        invariant = 4 * after.mean_margin(1.0)
        falls = 12 * keep * np.asarray(case.shared.spurious) < invariant
    return _statement(case, p, num_classes, form, np.asarray(other > 0), np.asarray(falls))


def theorem2(
    case: Interpolation, p: ArrayLike, num_classes: ArrayLike, form: Form = "lin"
) -> Statement:
    """Return whether general accuracy falls, beside the premises said to make it fall.

    Premises: the aligned model has more invariant and fewer spurious features than the near-optimal
    one. Conclusion: the argument of F_p after the attack is below the one before, and p > 0 (at p=0
    nothing is ever lost).

    Raises:
        ConfigError: as `lemma1_arguments`, or an argument out of range.
    """
    premises = np.greater(case.aligned.invariant, case.optimal.invariant) & np.less(
        case.aligned.spurious, case.optimal.spurious
    )
    return _statement(case, p, num_classes, form, premises, accuracy_falls(case, p, form))


def accuracy_falls(case: Interpolation, p: ArrayLike, form: Form = "lin") -> Truth:
    """Return where the attack lowers accuracy; F_p is increasing, so the arguments decide for any K.

    Raises:
        ConfigError: as `lemma1_arguments`.
    """
    before, after = lemma1_arguments(case, p, form)
    return np.asarray((after < before) & (np.asarray(p) > 0))


def _statement(
    case: Interpolation,
    p: ArrayLike,
    num_classes: ArrayLike,
    form: Form,
    premises: Truth,
    conclusion: Truth,
) -> Statement:
    before, after = lemma1_arguments(case, p, form)
    aligned, attacked = (limit_accuracy(x, p, num_classes) for x in (before, after))
    premises, conclusion, aligned, attacked = np.broadcast_arrays(
        premises, conclusion, aligned, attacked
    )
    return Statement(premises, conclusion, aligned, attacked)


class Counterexample(NamedTuple):
    """Premises of Theorem 2 without its conclusion."""

    case: Interpolation
    p: float
    num_classes: int
    form: Form


COUNTEREXAMPLES = (
    Counterexample(Interpolation(Features(10, 100), Features(9, 101)), 0.95, 4, "lin"),
    Counterexample(
        Interpolation(Features(100, 100), Features(99, 101), Features(90, 0)), 0.95, 4, "sqrt"
    ),
)
"""Where Theorem 2's premises hold and accuracy does not fall: one for each form of Lemma 1."""
