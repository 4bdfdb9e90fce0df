"""Assumption 1, Lemma 1, Theorems 1 and 2, the region where they hold, and fitted models."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfire.errors import ConfigError
from backfire.seeding import rng
from backfire.theory.data_model import DataModel, LinearModel
from backfire.theory.exact import exact_accuracy
from backfire.theory.features import Features, single
from backfire.theory.learned import effective_model, learned_check
from backfire.theory.region import (
    enough_invariant_ratio,
    falls_at_full_shift,
    falls_without_overlap,
    invariant_needed,
    share_that_falls,
)
from backfire.theory.simulate import simulated_accuracy
from backfire.theory.theorems import (
    COUNTEREXAMPLES,
    Interpolation,
    accuracy_falls,
    extrapolated,
    lemma1_arguments,
    near_optimal,
    theorem1,
    theorem2,
)


def random_cases(draws: int, overlap: bool, seed: int = 3) -> tuple[Interpolation, np.ndarray]:
    random = rng(seed, "cases")
    both_v, both_s = (random.integers(0, 9, draws) * overlap for _ in range(2))
    aligned = Features(
        both_v + random.integers(1, 40, draws), both_s + random.integers(1, 200, draws)
    )
    optimal = Features(
        both_v + random.integers(0, 40, draws), both_s + random.integers(1, 400, draws)
    )
    p = random.uniform(0.01, 1, draws)
    return Interpolation(aligned, optimal, Features(both_v, both_s), random.uniform(0, 1, draws)), p


def test_theorem2_has_a_counterexample_in_the_derived_form() -> None:
    told = theorem2(*COUNTEREXAMPLES[0])
    assert told.premises
    assert not told.conclusion
    assert not told.holds
    assert float(told.aligned) == pytest.approx(0.953, abs=5e-4)
    assert float(told.attacked) == pytest.approx(0.994, abs=5e-4)
    case = COUNTEREXAMPLES[0].case
    assert exact_accuracy(single(case.aligned), 0.95, 4).strict == pytest.approx(0.942, abs=1e-3)
    drawn = simulated_accuracy(case.attacked, 0.95, 4, draws=40_000).strict
    assert drawn.value == pytest.approx(0.992, abs=4 * drawn.standard_error + 5e-4)


def test_theorem2_has_a_counterexample_under_the_root() -> None:
    told = theorem2(*COUNTEREXAMPLES[1])
    assert told.premises
    assert not told.conclusion


def test_under_the_root_and_without_overlap_theorem2_always_holds() -> None:
    case, p = random_cases(100_000, overlap=False)
    even = Interpolation(case.aligned, case.optimal)
    premises = theorem2(even, p, 3, "sqrt").premises
    assert premises.sum() > 10_000
    assert accuracy_falls(even, p, "sqrt")[premises].all()


def test_under_the_root_overlap_adds_a_condition() -> None:
    """2 n_vo n + n*_v n + 2(1-p) n n_so < n_v n*_s + 14 n_so n_v + 14(1-p) n n_so, with n = n_s."""
    case, p = random_cases(50_000, overlap=True)
    even = Interpolation(case.aligned, case.optimal, case.shared)
    n_v, n = (np.asarray(v) for v in (case.aligned.invariant, case.aligned.spurious))
    s_v, s_s = (np.asarray(v) for v in (case.optimal.invariant, case.optimal.spurious))
    o_v, o_s = (np.asarray(v) for v in (case.shared.invariant, case.shared.spurious))
    left = 2 * o_v * n + s_v * n + 2 * (1 - p) * n * o_s
    right = n_v * s_s + 14 * o_s * n_v + 14 * (1 - p) * n * o_s
    clear = np.abs(left - right) > 1e-9 * right
    assert ((left < right) == accuracy_falls(even, p, "sqrt"))[clear].all()
    assert (2 * 90 * 100 + 99 * 100, 100 * 101) == (27_900, 10_100)  # the counterexample's sides


def test_at_full_shift_the_exact_condition_decides() -> None:
    case, _ = random_cases(200_000, overlap=False)
    r_v = np.asarray(case.optimal.invariant) / np.asarray(case.aligned.invariant)
    r_s = np.asarray(case.optimal.spurious) / np.asarray(case.aligned.spurious)
    before, after = lemma1_arguments(case, 1.0)
    clear = np.abs(before - after) > 1e-9
    predicted = falls_at_full_shift(r_v, r_s, case.weight)
    assert (predicted == (after < before))[clear].all()
    enough = (r_v <= enough_invariant_ratio(case.weight)) & (r_s > 1) & clear
    assert enough.sum() > 1_000
    assert (after < before)[enough].all()


def test_enough_invariant_ratio_at_even_weight() -> None:
    assert float(enough_invariant_ratio(0.5)) == pytest.approx(2**0.5 - 1)
    assert float(enough_invariant_ratio(1.0)) == 0.0
    assert float(enough_invariant_ratio(0.0)) == 1.0


def test_at_any_shift_the_ratios_decide() -> None:
    case, p = random_cases(50_000, overlap=False)
    n_v, n_s = (np.asarray(v) for v in (case.aligned.invariant, case.aligned.spurious))
    r_v, r_s = np.asarray(case.optimal.invariant) / n_v, np.asarray(case.optimal.spurious) / n_s
    before, after = lemma1_arguments(case, p)
    clear = np.abs(before - after) > 1e-9
    predicted = falls_without_overlap((1 - p) * n_s / n_v, r_v, r_s, case.weight)
    assert (predicted == (after < before))[clear].all()


def test_invariant_needed_is_the_boundary() -> None:
    case, p = random_cases(50_000, overlap=True)
    needed = invariant_needed(case.aligned.spurious, case.optimal, p, case.weight, case.shared)
    above = Interpolation(
        Features(np.minimum(needed * 1.001 + 1e-6, 1e12), case.aligned.spurious),
        case.optimal,
        case.shared,
        case.weight,
    )
    reachable = needed < 1e9
    assert reachable.sum() > 10_000
    assert accuracy_falls(above, p)[reachable].all()
    inside = reachable & (needed * 0.999 > np.asarray(case.shared.invariant))
    below = Interpolation(
        Features(np.where(inside, needed * 0.999, 1e6), case.aligned.spurious),
        case.optimal,
        case.shared,
        case.weight,
    )
    assert not accuracy_falls(below, p)[inside].any()


@pytest.mark.parametrize("form", ["lin", "sqrt"])
def test_theorem1s_condition_is_the_sign_of_the_derivative(form: str) -> None:
    case, p = random_cases(20_000, overlap=True)
    weight = 0.5 if form == "sqrt" else case.weight
    step = 1e-4
    more = Features(case.optimal.invariant, np.asarray(case.optimal.spurious) + step)
    at, after = (
        lemma1_arguments(Interpolation(case.aligned, o, case.shared, weight), p, form).attacked  # type: ignore[arg-type]
        for o in (case.optimal, more)
    )
    told = theorem1(Interpolation(case.aligned, case.optimal, case.shared, weight), p, 4, form)  # type: ignore[arg-type]
    slope = (after - at) / step
    clear = np.abs(slope) > 1e-5
    assert clear.sum() > 5_000
    assert (told.conclusion == (slope < 0))[clear].all()
    assert 0.05 < told.conclusion.mean() < 0.999


def test_theorem1s_condition_at_even_weight() -> None:
    """(1-p)(n*_s + n_s + 26 n_so) < n_v + n*_v + 2 n_vo."""
    case, p = random_cases(20_000, overlap=True)
    even = Interpolation(case.aligned, case.optimal, case.shared)
    left = (1 - p) * (
        np.asarray(case.optimal.spurious)
        + case.aligned.spurious
        + 26 * np.asarray(case.shared.spurious)
    )
    right = (
        np.asarray(case.aligned.invariant)
        + case.optimal.invariant
        + 2 * np.asarray(case.shared.invariant)
    )
    clear = np.abs(left - right) > 1e-9
    assert ((left < right) == theorem1(even, p, 3).conclusion)[clear].all()
    assert theorem1(even, 1.0, 3).conclusion.all()  # at full shift it always falls


@pytest.mark.parametrize(
    ("sampling", "percent"),
    [("conditional", (78, 60, 21, 6, 0.07)), ("rejection", (80, 70, 34, 12, 0.15))],
)
def test_shares_of_the_premise_box(sampling: str, percent: tuple[float, ...]) -> None:
    shares = share_that_falls((1.0, 0.99, 0.95, 0.9, 0.7), sampling, draws=200_000)  # type: ignore[arg-type]
    for share, expected in zip(shares, percent, strict=True):
        rounding = 0.006 if expected > 1 else 0.0005
        assert abs(share.value - expected / 100) < rounding + 3 * share.standard_error


def test_nothing_falls_without_shift_or_without_attack() -> None:
    case = Interpolation(Features(10, 50), Features(1, 300))
    assert accuracy_falls(case, 1.0)
    assert not accuracy_falls(case, 0.0)
    untouched = Interpolation(case.aligned, case.optimal, weight=1.0)
    assert not accuracy_falls(untouched, 1.0)
    assert not theorem1(untouched, 1.0, 3).premises
    assert np.isinf(invariant_needed(50, case.optimal, 1.0, 1.0))


selectors = st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=4)


@given(selectors, selectors, st.floats(0, 0.9))
def test_assumption1_recovers_the_optimal_model(
    aligned: list[float], optimal: list[float], weight: float
) -> None:
    data = DataModel(1, 3, 3, 0.0)
    first, second = (
        LinearModel(np.array(s), data.ideal_head(np.array(s))) for s in (aligned, optimal)
    )
    inferred = extrapolated(first.mixed(second, weight), first, weight)
    assert inferred.model.selector == pytest.approx(second.selector, abs=1e-9)
    assert inferred.model.head == pytest.approx(second.head, abs=1e-9)
    assert inferred.share_in_range == 1.0
    assert inferred.worst <= 1e-9


def test_assumption1_tells_when_no_such_model_exists() -> None:
    head = np.zeros((4, 2))
    aligned, attacked = (LinearModel(np.array(s), head) for s in ([1.0, 0.0], [0.2, 0.5]))
    inferred = extrapolated(attacked, aligned, 0.5)
    assert inferred.model.selector.tolist() == pytest.approx([-0.6, 1.0])
    assert inferred.share_in_range == 0.5
    assert inferred.worst == pytest.approx(0.6)
    assert near_optimal([0.9, 0.9], [0.88, 0.7], 0.05).tolist() == [True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda case: lemma1_arguments(case, 0.9, "lni"), "did you mean 'lin'"),  # type: ignore[arg-type]
        (
            lambda case: lemma1_arguments(
                Interpolation(case.aligned, case.optimal, weight=0.3), 0.9, "sqrt"
            ),
            "weight 0.5 alone",
        ),
        (lambda case: share_that_falls((1.0,), "uniform"), "unknown sampling"),  # type: ignore[arg-type]
        (lambda case: share_that_falls((1.0,), draws=0), "at least 2"),
        (lambda case: falls_at_full_shift(0.5, 2.0, 1.2), "from 0 to 1"),
        (lambda case: extrapolated(None, None, 1.0), "below 1"),  # type: ignore[arg-type]
        (lambda case: DataModel(0, 0, 3, 0.1), "at least one feature"),
        (lambda case: DataModel(1, 0, 3, -0.1), "0 or more"),
    ],
)
def test_wrong_arguments_of_the_theorems_are_named(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(Interpolation(Features(2, 10), Features(1, 20)))  # type: ignore[operator]


def test_the_data_model_has_the_moments_it_states() -> None:
    data = DataModel(2, 3, 4, sigma=0.3)
    p, n = 0.6, 6_000
    features, labels = data.sample(n, p, rng(0, "moments"))
    assert features.shape == (n, 5, 20)
    own = features[np.arange(n)[:, None], np.arange(5), np.arange(5) * 4 + labels[:, None]]
    # An invariant feature always shows its class; a spurious one with 1 - p + p/K = 0.55.
    assert own.mean(0) == pytest.approx([1, 1, 0.55, 0.55, 0.55], abs=0.04)
    assert (features[:, 0] - features[:, 0].mean(0))[:, 10:].std() == pytest.approx(0.3, abs=0.01)
    sums, _ = data.represented(np.ones(5), n, p, rng(1, "moments"))
    assert sums.sum(1).mean() == pytest.approx(5, abs=0.1)
    assert sums.sum(1).std() == pytest.approx(0.3 * np.sqrt(5 * 20), rel=0.05)


@pytest.mark.parametrize("fit", ["means", "network"])
def test_fitted_models_do_what_the_formula_says(fit: str) -> None:
    points = learned_check(
        Features(2, 10), Features(1, 14), Features(0, 2), 0.9, 3, fit,  # type: ignore[arg-type]
        weights=(0.0, 0.5, 1.0), train=300, draws=30_000,
    )  # fmt: skip
    for point in points:
        error = np.hypot(point.measured.standard_error, point.fitted_counted.standard_error)
        # The fitted weights differ a little within a group, which breaks ties their own way.
        assert abs(point.measured.value - point.fitted_counted.value) < 4 * error + 0.004
        assert 0 < point.fitted_formula - point.measured.value < 0.077
    if fit == "means":
        for point in points:
            assert point.fitted_formula == pytest.approx(point.formula, abs=2e-3)
            assert (
                abs(point.measured.value - point.counted.value)
                < 4.5 * point.measured.standard_error + 0.002
            )


def test_effective_weights_are_read_off_a_blend() -> None:
    data = DataModel(1, 2, 3, 0.0)
    parts = [np.array(s) for s in ([1.0, 1.0, 0.0], [1.0, 0.0, 1.0])]
    first, second = (LinearModel(s, data.ideal_head(s)) for s in parts)
    weights = [float(g.weight) for g in effective_model(first.mixed(second, 0.3), data).groups]
    assert weights == pytest.approx([1.0, 0.09, 0.49])
