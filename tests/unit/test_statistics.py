"""Intervals: by hand, against SciPy, and as properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from backfire.evaluate.statistics import (
    Estimate,
    Resampling,
    above_chance,
    over_seeds,
    per_seed,
    resolvable,
    retention,
    wilson,
)

PLAN = Resampling(draws=4000)


class TestWilson:
    def test_by_hand(self) -> None:
        # 8 of 10: (0.8 + 1.92/10) / (1 + 3.84/10) +- 1.96 sqrt(.16/10 + 3.84/400) / 1.384
        z2 = 3.8414588
        center = (0.8 + z2 / 20) / (1 + z2 / 10)
        half = math.sqrt(z2) / (1 + z2 / 10) * math.sqrt(0.8 * 0.2 / 10 + z2 / 400)
        assert wilson(0.8, 10) == pytest.approx((center - half, center + half), abs=1e-6)
        assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)

    @given(st.integers(1, 400), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
    def test_equals_scipy(self, n: int, data: st.DataObject, confidence: float) -> None:
        successes = data.draw(st.integers(0, n))
        expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
        assert wilson(successes / n, n, confidence) == pytest.approx(tuple(expected), abs=1e-12)

    @given(st.floats(0, 1), st.floats(0.5, 1e4))
    def test_holds_the_rate_and_stays_in_range(self, rate: float, n: float) -> None:
        low, high = wilson(rate, n)
        assert 0 <= low <= rate <= high <= 1

    def test_none_of_forty_is_not_zero(self) -> None:
        assert wilson(0.0, 40) == pytest.approx((0.0, 0.0876), abs=1e-3)

    @pytest.mark.parametrize(("rate", "n"), [(1.2, 5), (-0.1, 5), (0.5, 0)])
    def test_refuses_nonsense(self, rate: float, n: float) -> None:
        with pytest.raises(ValueError, match="wilson needs"):
            wilson(rate, n)


class TestWeights:
    def test_the_first_row_is_the_sample_itself_and_each_draw_has_its_size(self) -> None:
        weights = Resampling(draws=50).weights("prompts", list("abcde"))
        assert weights.shape == (51, 5)
        assert (weights[0] == 1).all()
        assert (weights.sum(axis=1) == 5).all()

    def test_are_equal_for_equal_names_only(self) -> None:
        plan = Resampling(draws=50)
        first = plan.weights("prompts", list("abcde"))
        assert (plan.weights("prompts", list("abcde")) == first).all()
        assert (plan.weights("answers", list("abcde")) != first).any()
        assert (plan.weights("prompts", list("abcdf")) != first).any()
        assert (Resampling(draws=50, seed=1).weights("prompts", list("abcde")) != first).any()

    def test_of_one_seed_draw_it_always(self) -> None:
        assert (Resampling(draws=20).seed_weights([7]) == 1).all()

    def test_of_seeds_draw_one_fewer(self) -> None:
        weights = Resampling(draws=20).seed_weights([0, 1, 2])
        assert (weights[0] == 1).all()
        assert (weights[1:].sum(axis=1) == 2).all()


class TestMeans:
    def test_per_seed_leaves_out_what_is_absent(self) -> None:
        values = [[1.0, 0.0, np.nan], [np.nan, np.nan, np.nan]]
        weights = np.array([[1.0, 1.0, 1.0], [3.0, 1.0, 5.0]])
        found = per_seed(values, weights)
        assert found[:, 0].tolist() == [0.5, 0.75]
        assert np.isnan(found[:, 1]).all()

    def test_over_seeds_leaves_out_a_seed_without_a_value(self) -> None:
        values = np.array([[0.2, np.nan, 0.4]])
        assert over_seeds(values, np.array([[2.0, 9.0, 1.0]])) == pytest.approx([0.8 / 3])

    def test_bootstrap_of_a_mean_equals_scipy(self) -> None:
        data = np.random.default_rng(3).gamma(2.0, size=60)
        found = PLAN.estimate(per_seed([data], PLAN.weights("x", range(60)))[:, 0], n=60)
        expected = stats.bootstrap(
            (data,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        spread = expected.high - expected.low
        assert found.value == pytest.approx(data.mean())
        assert found.low == pytest.approx(expected.low, abs=0.06 * spread)
        assert found.high == pytest.approx(expected.high, abs=0.06 * spread)

    def test_seeds_that_differ_widen_the_interval_as_their_variance_says(self) -> None:
        # Constant within seeds, so all spread is between them: sd of the mean = s / sqrt(S).
        levels = np.array([0.1, 0.2, 0.35, 0.5, 0.6])
        values = np.repeat(levels[:, None], 30, axis=1)
        means = over_seeds(
            per_seed(values, PLAN.weights("x", range(30))), PLAN.seed_weights(range(5))
        )
        assert means[1:].std() == pytest.approx(levels.std(ddof=1) / math.sqrt(5), rel=0.05)

    def test_prompts_shared_by_seeds_do_not_count_as_new_prompts(self) -> None:
        # Every seed answers alike: three seeds know as little of other prompts as one.
        one = (np.arange(40) % 4 == 0).astype(float)
        weights = PLAN.weights("x", range(40))
        single = PLAN.estimate(per_seed([one], weights)[:, 0], n=40)
        three = over_seeds(per_seed([one] * 3, weights), PLAN.seed_weights(range(3)))
        pooled = PLAN.estimate(three, n=120)
        assert (pooled.low, pooled.high) == pytest.approx((single.low, single.high))


class TestProportion:
    def test_without_spread_takes_the_number_of_prompts(self) -> None:
        found = PLAN.proportion(np.zeros(4001), n=120, num_items=40)
        assert (found.low, found.high) == pytest.approx(wilson(0, 40))

    def test_of_one_seed_is_about_wilson(self) -> None:
        values = (np.arange(100) < 30).astype(float)
        replicated = per_seed([values], PLAN.weights("x", range(100)))[:, 0]
        found = PLAN.proportion(replicated, n=100, num_items=100)
        assert (found.low, found.high) == pytest.approx(wilson(0.3, 100), abs=0.01)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 4), st.integers(2, 25), st.integers(0, 2**20))
    def test_holds_its_value_and_stays_in_range(self, seeds: int, items: int, pick: int) -> None:
        plan = Resampling(draws=200)
        values = np.random.default_rng(pick).integers(0, 2, (seeds, items)).astype(float)
        means = over_seeds(
            per_seed(values, plan.weights("x", range(items))), plan.seed_weights(range(seeds))
        )
        found = plan.proportion(means, n=values.size, num_items=items)
        assert found.value is not None
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.value == pytest.approx(values.mean())

    def test_covers_the_truth_about_as_often_as_it_says(self) -> None:
        # Prompts differ in difficulty, seeds in strength: 5 seeds x 40 prompts, true mean 0.4.
        plan, generator, hits = Resampling(draws=300), np.random.default_rng(0), 0
        for _ in range(200):
            prompts = generator.beta(2, 3, 40)
            luck = generator.uniform(0.85, 1.15, 5)
            values = (generator.random((5, 40)) < np.clip(np.outer(luck, prompts), 0, 1)) * 1.0
            means = over_seeds(
                per_seed(values, plan.weights("x", range(40))), plan.seed_weights(range(5))
            )
            found = plan.proportion(means, n=200, num_items=40)
            hits += (found.low or 0) <= 0.4 <= (found.high or 0)
        assert hits >= 0.93 * 200


class TestDifference:
    def test_is_paired(self) -> None:
        # Both answer alike but on one prompt: the difference is known far better than either.
        first = (np.arange(40) < 20).astype(float)
        second = first.copy()
        second[0] = 0
        weights = PLAN.weights("x", range(40))
        a, b = (per_seed([v], weights)[:, 0] for v in (first, second))
        found = PLAN.difference(PLAN.proportion(a, 40, 40), PLAN.proportion(b, 40, 40), a - b, n=40)
        assert found.value == pytest.approx(1 / 40)
        assert (found.high or 1) - (found.low or 0) < 0.1

    def test_of_all_and_nothing_is_newcombes(self) -> None:
        ones, zeros = np.ones(4001), np.zeros(4001)
        found = PLAN.difference(
            PLAN.proportion(ones, 10, 10), PLAN.proportion(zeros, 10, 10), ones - zeros, n=10
        )
        low = wilson(1, 10)[0]
        assert found.value == 1
        assert found.high == 1
        assert found.low == pytest.approx(1 - math.hypot(1 - low, wilson(0, 10)[1]))

    def test_of_equal_nothing_is_not_certain(self) -> None:
        zeros = np.zeros(4001)
        nothing = PLAN.proportion(zeros, 48, 48)
        found = PLAN.difference(nothing, nothing, zeros, n=48)
        assert found.value == 0
        assert found.low == pytest.approx(-wilson(0, 48)[1])
        assert found.high == pytest.approx(wilson(0, 48)[1])


class TestRetention:
    def test_by_hand(self) -> None:
        # Excess over chance: (.35 + .25) of (.45 + .35).
        found = retention(np.array([0.6, 0.75]), np.array([0.7, 0.85]), np.array([0.25, 0.5]))
        assert found == pytest.approx(0.6 / 0.8)

    def test_of_guessing_is_zero_and_below_is_negative(self) -> None:
        chance, reference = np.array([0.25]), np.array([0.65])
        assert retention(np.array([0.25]), reference, chance) == pytest.approx(0)
        assert retention(np.array([0.15]), reference, chance) == pytest.approx(-0.25)

    def test_without_anything_to_keep_is_undefined(self) -> None:
        assert np.isnan(retention(np.array([0.5]), np.array([0.25]), np.array([0.25])))

    def test_goes_through_replicates(self) -> None:
        own = np.array([[[0.5, 0.6]], [[0.3, 0.4]]])  # (tasks, R, S)
        reference = np.array([[[0.7, 0.7]], [[0.5, 0.5]]])
        found = retention(own, reference, np.array([0.5, 0.25]))
        assert found == pytest.approx(np.array([[0.05 / 0.45, 0.25 / 0.45]]))

    def test_above_chance_needs_the_whole_interval(self) -> None:
        assert above_chance(0.40, 500, 0.25)
        assert not above_chance(0.27, 500, 0.25)
        assert above_chance(0.27, 500_000, 0.25)
        assert not above_chance(0.20, 500, 0.25)


def test_nothing_observed_is_absent_with_a_reason() -> None:
    assert PLAN.estimate(np.full(4001, np.nan), n=0) == Estimate(None, note="no observation")
    assert PLAN.proportion(np.full(4001, np.nan), 0, 0, "why").note == "why"


class TestResolvable:
    def test_by_hand(self) -> None:
        # k = (1.95996 + 0.84162)^2 / 200 = 0.039244; sqrt(k / (1 + k)) = 0.19433.
        assert resolvable(100) == pytest.approx(0.19433, abs=1e-5)

    def test_a_difference_of_that_size_is_found_as_often_as_promised(self) -> None:
        n, draw = 150, np.random.default_rng(0)
        gap = resolvable(n)
        one, two = (draw.binomial(n, 0.5 + sign * gap / 2, 20_000) / n for sign in (1, -1))
        error = np.sqrt((one * (1 - one) + two * (1 - two)) / n)
        assert np.mean(np.abs(one - two) > 1.95996 * error) == pytest.approx(0.8, abs=0.02)

    @given(st.integers(1, 10_000))
    def test_more_observations_resolve_more(self, n: int) -> None:
        assert 0 < resolvable(n + 1) < resolvable(n) < 1
        assert resolvable(n, power=0.9) > resolvable(n) > resolvable(n, confidence=0.9)

    @pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 5, "power": 1.0}, {"n": 5, "confidence": 0}])
    def test_impossible_arguments_are_refused(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="resolvable needs"):
            resolvable(**wrong)
