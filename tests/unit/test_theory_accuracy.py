"""The accuracy functions: reference values, limits, and agreement between independent ways."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backfire.errors import ConfigError
from backfire.theory.exact import exact_accuracy
from backfire.theory.features import Features, Model, output_ensemble, single, weight_ensemble
from backfire.theory.limit import limit_accuracy, sampled_limit_accuracy
from backfire.theory.simulate import simulated_accuracy

shifts = st.floats(0.02, 1.0)
classes = st.integers(2, 40)


def by_shared_normal(x: float, p: float, num_classes: int) -> float:
    """F_p by 20-digit integration over the shared normal: the other way round than ours."""
    import mpmath as mp

    with mp.workdps(20):
        x, p = mp.mpf(x), mp.mpf(p)
        shared, private = p * (num_classes + 1 - p * num_classes) / num_classes, p / num_classes
        centre, width = -x / mp.sqrt(shared), mp.sqrt(private / shared)

        def integrand(g: object) -> object:
            return mp.npdf(g) * mp.ncdf((x + mp.sqrt(shared) * g) / mp.sqrt(private)) ** (
                num_classes - 1
            )

        edges = sorted({-12, 12, *(min(12, max(-12, centre + k * width)) for k in range(-8, 9, 4))})
        return float(mp.quad(integrand, edges))


@pytest.mark.parametrize("num_classes", [2, 4, 30, 5000])
@pytest.mark.parametrize("p", [1e-6, 0.05, 0.9, 1.0])
def test_quadrature_is_right_to_1e_8(p: float, num_classes: int) -> None:
    for relative in (-1.5, 0.7):
        x = relative * math.sqrt(p) + math.sqrt(2 * p * math.log(num_classes) / num_classes)
        ours = float(limit_accuracy(x, p, num_classes))
        assert ours == pytest.approx(by_shared_normal(x, p, num_classes), abs=1e-8)


REFERENCE_SINGLES = [
    # p, K, n_v, n_s, F_p, strict, tie mass, random ties
    (0.9, 3, 2, 20, 0.7769, 0.7247, 0.0804, 0.7649),
    (0.95, 4, 6, 100, 0.8563, 0.8316, 0.0357, 0.8491),
    (0.9, 10, 5, 50, 0.9817, 0.9673, 0.0173, 0.9757),
]
REFERENCE_BLENDS = [
    (0.5, 0.8767, 0.8543, 0.0232, 0.8658),
    (0.3, 0.7933, 0.7826, 0.0011, 0.7832),
    (0.8, 0.8748, 0.8629, 0.0030, 0.8644),
]


def blend(weight: float) -> Model:
    return weight_ensemble(Features(5, 40), Features(3, 80), Features(1, 6), weight)


@pytest.mark.parametrize("row", REFERENCE_SINGLES)
def test_reference_values_of_single_models(row: tuple[float, ...]) -> None:
    p, k, n_v, n_s, formula, strict, ties, fair = row
    model = single(Features(n_v, n_s))
    assert float(model.accuracy(p, k)) == pytest.approx(formula, abs=5.1e-5)
    exact = exact_accuracy(model, p, int(k))
    # The reference is a simulation with a standard error up to 2.5e-4.
    assert (exact.strict, exact.tie_mass, exact.random_ties) == pytest.approx(
        (strict, ties, fair), abs=5e-4
    )


@pytest.mark.parametrize("row", REFERENCE_BLENDS)
def test_reference_values_of_blends(row: tuple[float, ...]) -> None:
    weight, formula, strict, ties, fair = row
    model = blend(weight)
    assert float(model.accuracy(0.95, 4)) == pytest.approx(formula, abs=5.1e-5)
    drawn = simulated_accuracy(model, 0.95, 4, draws=300_000)
    for estimate, value in (
        (drawn.strict, strict),
        (drawn.tie_mass, ties),
        (drawn.random_ties, fair),
    ):
        assert abs(estimate.value - value) < 4 * estimate.standard_error + 3e-4


def test_the_even_blend_is_known_exactly() -> None:
    exact = exact_accuracy(blend(0.5), 0.95, 4)
    assert (exact.strict, exact.tie_mass, exact.random_ties) == pytest.approx(
        (0.8543, 0.0232, 0.8658), abs=5e-4
    )


def by_enumeration(model: Model, p: float, num_classes: int) -> tuple[float, float]:
    """Strict and random-tie accuracy by going through every outcome of every spurious feature."""
    weights = [float(g.weight) for g in model.groups for _ in range(int(g.features.spurious))]
    base = sum(float(g.weight) * int(g.features.invariant) for g in model.groups)
    strict = fair = 0.0
    for shown in itertools.product(range(num_classes), repeat=len(weights)):
        chance = math.prod(p / num_classes + (1 - p if where == 0 else 0.0) for where in shown)
        scores = [base] + [0.0] * (num_classes - 1)
        for where, weight in zip(shown, weights, strict=True):
            scores[where] += weight
        best = max(scores)
        tied = sum(best - score < 1e-9 for score in scores)
        if best - scores[0] < 1e-9:
            strict += chance * (tied == 1)
            fair += chance / tied
    return strict, fair


@pytest.mark.parametrize("num_classes", [2, 3, 4])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("build", [weight_ensemble, output_ensemble])
def test_exact_equals_enumeration(build: object, weight: float, num_classes: int) -> None:
    model = build(Features(1, 3), Features(2, 3), Features(1, 1), weight)  # type: ignore[operator]
    for p in (0.0, 0.6, 1.0):
        exact = exact_accuracy(model, p, num_classes)
        strict, fair = by_enumeration(model, p, num_classes)
        assert (exact.strict, exact.random_ties) == pytest.approx((strict, fair), abs=1e-11)


GRID = [
    (p, k, first, second, shared, weight)
    for p in (0.5, 0.95)
    for k in (2, 6)
    for first, second, shared in (
        (Features(3, 30), Features(1, 45), Features(0, 0)),
        (Features(4, 40), Features(3, 60), Features(2, 8)),
    )
    for weight in (0.0, 0.5, 1.0)
]


@pytest.mark.parametrize("case", GRID)
def test_exact_formula_and_simulation_agree_on_a_grid(case: tuple) -> None:  # type: ignore[type-arg]
    p, k, first, second, shared, weight = case
    model = weight_ensemble(first, second, shared, weight)
    exact = exact_accuracy(model, p, k).random_ties
    drawn = simulated_accuracy(model, p, k, draws=40_000).random_ties
    assert abs(drawn.value - exact) < 4.5 * drawn.standard_error
    noisy = simulated_accuracy(model, p, k, draws=3_000, sigma=1e-4).random_ties
    assert abs(noisy.value - exact) < 4.5 * noisy.standard_error
    # The limit errs towards optimism, by an amount that n_s/K governs (docs/theory.md).
    gap = float(model.accuracy(p, k)) - exact
    assert -1e-3 < gap < (0.077 if 40 / k < 10 else 0.048)


def test_sampler_agrees_with_quadrature() -> None:
    for x, p, k in ((0.4, 0.9, 3), (-0.2, 0.3, 7), (0.1, 1.0, 20)):
        drawn = sampled_limit_accuracy(x, p, k, draws=100_000)
        assert abs(drawn.value - float(limit_accuracy(x, p, k))) < 4.5 * drawn.standard_error


@given(st.integers(2, 10_000))
def test_at_full_shift_no_lead_means_guessing(num_classes: int) -> None:
    assert float(limit_accuracy(0.0, 1.0, num_classes)) == pytest.approx(1 / num_classes, abs=1e-9)


@given(shifts, classes)
def test_accuracy_rises_with_its_argument(p: float, num_classes: int) -> None:
    values = limit_accuracy(np.linspace(-4, 4, 60), p, num_classes)
    assert ((np.diff(values) > 0) | (values[1:] > 1 - 1e-12) | (values[1:] < 1e-12)).all()
    assert limit_accuracy(np.inf, p, num_classes) == pytest.approx(1.0)
    assert limit_accuracy(-np.inf, p, num_classes) == 0


@given(st.floats(-3, 3), shifts)
def test_two_classes_have_a_closed_form(x: float, p: float) -> None:
    """With K = 2 there is one margin, N(x, a + b) with a + b = p(4 - 2p)/2."""
    expected = 0.5 * math.erfc(-x / math.sqrt(2 * (p * (4 - 2 * p) / 2)))
    assert float(limit_accuracy(x, p, 2)) == pytest.approx(expected, abs=1e-9)


def test_without_shift_the_function_is_a_step() -> None:
    values = limit_accuracy([-1e-9, 0.0, 1e-9], 0.0, 5)
    assert values.tolist() == [0.0, 0.2, 1.0]


counts = st.tuples(st.integers(0, 40), st.integers(1, 200))


@given(counts, counts, shifts)
def test_ends_of_the_path_are_the_models(
    first: tuple[int, int], second: tuple[int, int], p: float
) -> None:
    a, b = Features(*first), Features(*second)
    shared = Features(min(first[0], second[0]) // 2, min(first[1], second[1]) // 2)
    for build in (weight_ensemble, output_ensemble):
        assert build(a, b, shared, 1.0).argument(p) == pytest.approx(single(a).argument(p))
        assert build(a, b, shared, 0.0).argument(p) == pytest.approx(single(b).argument(p))


@given(counts, counts, shifts, st.floats(0, 1))
def test_swapping_the_models_changes_nothing(
    first: tuple[int, int], second: tuple[int, int], p: float, weight: float
) -> None:
    a, b = Features(*first), Features(*second)
    for build in (weight_ensemble, output_ensemble):
        assert build(a, b, None, weight).argument(p) == pytest.approx(
            build(b, a, None, 1 - weight).argument(p)
        )


@given(counts, counts, st.integers(0, 40), st.integers(0, 200), shifts)
def test_even_blends_match_the_published_arguments(
    first: tuple[int, int], second: tuple[int, int], both_v: int, both_s: int, p: float
) -> None:
    """With weight 1/2 the denominators read n + n* + 2 n_so (outputs) and n + n* + 14 n_so."""
    assume(both_v <= min(first[0], second[0]) and both_s <= min(first[1], second[1]))
    a, b, shared = Features(*first), Features(*second), Features(both_v, both_s)
    s, v = first[1] + second[1], first[0] + second[0]
    outputs = ((1 - p) * s + v) / math.sqrt(s + 2 * both_s)
    weights = ((1 - p) * (s + 2 * both_s) + v + 2 * both_v) / math.sqrt(s + 14 * both_s)
    assert output_ensemble(a, b, shared).argument(p) == pytest.approx(outputs)
    assert weight_ensemble(a, b, shared).argument(p) == pytest.approx(weights)


def test_equal_models_blend_to_themselves_when_all_is_shared() -> None:
    same = Features(4, 30)
    model = weight_ensemble(same, same, same, 0.3)
    assert float(model.argument(0.8)) == pytest.approx(float(single(same).argument(0.8)))


def test_special_models() -> None:
    assert float(single(Features(3, 0)).accuracy(0.9, 4)) == 1.0
    assert float(single(Features(0, 0)).accuracy(0.9, 4)) == 0.25
    assert exact_accuracy(single(Features(0, 0)), 0.9, 4).random_ties == 0.25
    assert exact_accuracy(single(Features(2, 0)), 0.9, 4).strict == 1.0


def test_one_call_serves_many_points_of_every_shape() -> None:
    p, k = np.array([0.3, 0.9])[:, None], np.array([2, 5, 9])[None, :]
    table = single(Features(2, np.full((1, 1), 30.0))).accuracy(p, k)
    assert table.shape == (2, 3)
    assert table[1, 2] == pytest.approx(float(single(Features(2, 30)).accuracy(0.9, 9)))


def test_simulation_repeats_with_its_seed_and_not_with_another() -> None:
    model = single(Features(2, 20))
    runs = [simulated_accuracy(model, 0.9, 3, draws=5_000, seed=s) for s in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: limit_accuracy(0.0, 1.2, 3), "p is a probability"),
        (lambda: limit_accuracy(0.0, 0.5, 1), "whole numbers from 2"),
        (lambda: limit_accuracy(0.0, 0.5, 2.5), "whole numbers from 2"),
        (lambda: limit_accuracy(math.nan, 0.5, 2), "not a number"),
        (lambda: Features(-1, 3), "below 0"),
        (lambda: weight_ensemble(Features(1, 1), Features(1, 1), Features(2, 0)), "cannot share"),
        (lambda: weight_ensemble(Features(1, 1), Features(1, 1), None, 1.5), "from 0 to 1"),
        (lambda: exact_accuracy(single(Features(1.5, 2)), 0.5, 3), "fractions"),
        (lambda: exact_accuracy(single(Features(1, np.ones(2))), 0.5, 3), "one at a time"),
        (lambda: exact_accuracy(blend(0.31), 0.95, 4), "use the simulation"),
        (lambda: simulated_accuracy(single(Features(1, 2)), 0.5, 3, sigma=-1), "0 or more"),
        (lambda: simulated_accuracy(single(Features(1, 2)), 0.5, 3, draws=1), "at least 2"),
    ],
)
def test_wrong_arguments_are_named(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()  # type: ignore[operator]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 4), st.integers(1, 12), st.integers(2, 5), st.floats(0, 1))
def test_exact_accuracies_are_consistent(n_v: int, n_s: int, k: int, p: float) -> None:
    exact = exact_accuracy(single(Features(n_v, n_s)), p, k)
    rounding = 1e-12  # the two are sums in different orders
    assert 0 <= exact.strict <= exact.random_ties + rounding
    assert exact.random_ties <= exact.strict + exact.tie_mass + rounding
    assert exact.strict + exact.tie_mass / k <= exact.random_ties + 1e-12
    assert exact.strict + exact.tie_mass <= 1 + 1e-9
